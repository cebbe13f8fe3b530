//! The messages, byte by byte, and answers that break the rules.

use super::*;

const KSID: Ksid = Ksid(*b"0123456789abcdef");

fn qos() -> Qos {
    Qos {
        key_chunk_size: 32,
        max_bps: 40_000,
        min_bps: 5_000,
        jitter: 10,
        priority: 0,
        timeout_ms: 5_000,
        ttl_s: 3_600,
    }
}

/// The payload of an answer to OPEN_CONNECT.
fn open_payload(status: u32, mimetype: &[u8]) -> Vec<u8> {
    let mut payload = status.to_be_bytes().to_vec();
    qos().numbers().iter().for_each(|number| payload.extend(number.to_be_bytes()));
    payload.extend(mimetype);
    payload.extend(KSID.0);
    payload
}

fn padded() -> Vec<u8> {
    let mut mimetype = MIMETYPE.to_vec();
    mimetype.resize(PADDED_MIMETYPE, 0);
    mimetype
}

/// The payload of an answer to GET_KEY.
fn key_payload(index: u32, key: &[u8], metadata: &[u8]) -> Vec<u8> {
    let mut payload = 0u32.to_be_bytes().to_vec();
    payload.extend(index.to_be_bytes());
    payload.extend(u32::try_from(key.len()).unwrap().to_be_bytes());
    payload.extend(key);
    payload.extend(u32::try_from(metadata.len()).unwrap().to_be_bytes());
    payload.extend(metadata);
    payload
}

fn violation(payload: &[u8], index: u32, chunk: Option<u32>) -> Violation {
    match parse_key(payload, index, chunk) {
        Err(ProtocolViolation(violation, text)) => {
            assert!(text.len() < 200, "{text}");
            violation
        }
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn an_open_request_has_both_formats() {
    let open = Request::Open { source: "qkd://A", destination: "qkd://B", qos: qos(), ksid: KSID };
    let c = open.encode(Dialect::C);
    let payload = 8 + 8 + 28 + 17 + 16;
    assert_eq!(c[..8], [2, 1, 1, 2, 0, 0, 0, payload]);
    assert_eq!(&c[8..24], b"qkd://A\0qkd://B\0");
    assert_eq!(c[24..28], [0, 0, 0, 32]);
    assert_eq!(&c[52..69], b"application/json\0");
    assert_eq!(c[69..], KSID.0);
    let python = open.encode(Dialect::Python);
    assert_eq!(python[..8], [1, 0, 1, 2, 0, 0, 1, 60]);
    assert_eq!(python[8..52], c[8..52]);
    assert_eq!(python[52..308], padded());
    assert_eq!(python[308..], KSID.0);
}

#[test]
fn a_key_request_has_room_for_metadata_in_c_alone() {
    let get = Request::GetKey { ksid: KSID, index: 7, metadata_size: 4 };
    let python = get.encode(Dialect::Python);
    assert_eq!(python[..8], [1, 0, 1, 4, 0, 0, 0, 24]);
    assert_eq!(python[24..], [0, 0, 0, 7, 0, 0, 0, 4]);
    let c = get.encode(Dialect::C);
    assert_eq!(c[..8], [2, 1, 1, 4, 0, 0, 0, 28]);
    assert_eq!(c[24..], [0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, 0]);
    let close = Request::Close { ksid: KSID }.encode(Dialect::C);
    assert_eq!(close[..8], [2, 1, 1, 8, 0, 0, 0, 16]);
    assert_eq!(close[8..], KSID.0);
}

/// Bytes that the Python server sent.
#[test]
fn a_key_is_read_and_an_unknown_stream_is() {
    let header = [1, 0, 1, 5, 0, 0, 0, 0x51];
    assert_eq!(parse_header(header, Service::GetKey), Ok(0x51));
    let payload = key_payload(0, &[9; 32], br#"{"age": 1739795939745, "hops": 0}"#);
    assert_eq!(payload.len(), 0x51);
    match parse_key(&payload, 0, Some(32)).unwrap() {
        KeyAnswer::Key(secret, 32) => assert!(secret.ct_eq(&[9; 32])),
        _ => panic!("no key"),
    }
    assert_eq!(parse_header([1, 0, 1, 5, 0, 0, 0, 4], Service::GetKey), Ok(4));
    assert!(matches!(parse_key(&[0, 0, 0, 3], 0, Some(32)), Ok(KeyAnswer::Refused(3))));
}

#[test]
fn a_larger_chunk_gives_its_first_256_bits() {
    let chunk: Vec<u8> = (1..=64).collect();
    match parse_key(&key_payload(3, &chunk, b""), 3, Some(64)).unwrap() {
        KeyAnswer::Key(secret, 64) => assert!(secret.ct_eq(&chunk[..32])),
        _ => panic!("no key"),
    }
}

#[test]
fn a_header_is_bounded() {
    use Service as S;
    let huge = parse_header([1, 0, 1, 5, 0xff, 0xff, 0xff, 0xff], S::GetKey).unwrap_err();
    assert_eq!(huge.0, Violation::TooLarge);
    assert_eq!(parse_header([1, 0, 1, 5, 0, 0, 0x40, 1], S::GetKey).unwrap_err().0, Violation::TooLarge);
    assert_eq!(parse_header([1, 0, 1, 5, 0, 0, 0x40, 0], S::GetKey), Ok(MAX_PAYLOAD));
    for header in [
        [1, 0, 1, 5, 0, 0, 0, 3],
        [1, 0, 1, 4, 0, 0, 0, 4],
        [1, 0, 1, 3, 0, 0, 0, 4],
        [2, 1, 1, 0, 0, 0, 0, 4],
        *b"HTTP/1.1",
    ] {
        assert_eq!(parse_header(header, S::GetKey).unwrap_err().0, Violation::Framing, "{header:?}");
    }
    assert!(parse_header(*b"HTTP/1.1", S::Close).unwrap_err().1.contains("speaks HTTP"));
}

#[test]
fn a_key_that_breaks_the_rules_is_refused() {
    use Violation as V;
    let key = [9; 32];
    let right = key_payload(5, &key, b"{}");
    assert_eq!(violation(&right, 6, Some(32)), V::OtherKeyId, "index backwards");
    assert_eq!(violation(&right, 4, Some(32)), V::OtherKeyId);
    assert_eq!(violation(&right, 5, Some(64)), V::KeySize, "a chunk size that changes");
    assert_eq!(violation(&key_payload(5, &[9; 31], b""), 5, None), V::KeySize);
    assert_eq!(violation(&key_payload(5, &[9; 1025], b""), 5, None), V::KeySize);
    assert_eq!(violation(&key_payload(5, &[0; 32], b""), 5, Some(32)), V::ZeroKey);
    for cut in 4..right.len() {
        assert_eq!(violation(&right[..cut], 5, Some(32)), V::Framing, "{cut} bytes");
    }
    let mut more = right.clone();
    more.push(0);
    assert_eq!(violation(&more, 5, Some(32)), V::Framing, "bytes after the metadata");
    // Metadata of 4 GB, and a key of as much.
    let mut huge = right.clone();
    huge[44..48].copy_from_slice(&[0xff; 4]);
    assert_eq!(violation(&huge, 5, Some(32)), V::Framing);
    let mut huge = right;
    huge[8..12].copy_from_slice(&[0xff; 4]);
    assert_eq!(violation(&huge, 5, None), V::Framing);
    assert_eq!(violation(&huge, 5, Some(32)), V::KeySize);
}

#[test]
fn needed_metadata_is_read_in_both_formats() {
    let python = [8u32.to_be_bytes(), 33u32.to_be_bytes()].concat();
    assert!(matches!(parse_key(&python, 0, Some(32)), Ok(KeyAnswer::MoreMetadata(33))));
    let c = [8u32, 0, 0, 33].map(u32::to_be_bytes).concat();
    assert!(matches!(parse_key(&c, 0, Some(32)), Ok(KeyAnswer::MoreMetadata(33))));
    for short in [&[0, 0, 0, 8][..], &[0, 0, 0, 8, 1]] {
        assert!(matches!(parse_key(short, 0, Some(32)), Ok(KeyAnswer::Refused(8))));
    }
}

#[test]
fn an_answer_to_open_shows_its_format() {
    for (mimetype, dialect) in [(padded(), Dialect::Python), (b"application/json\0".to_vec(), Dialect::C)] {
        for status in [0, 1, 5, 7] {
            let answer = parse_open(&open_payload(status, &mimetype)).unwrap();
            let stream = Some(OpenedStream { qos: qos(), ksid: KSID, dialect });
            assert_eq!(answer, OpenAnswer { status, stream });
        }
    }
    // An empty mimetype is a C string too.
    assert_eq!(parse_open(&open_payload(0, b"\0")).unwrap().stream.unwrap().dialect, Dialect::C);
}

#[test]
fn an_answer_to_open_that_breaks_the_rules_is_refused() {
    let right = open_payload(0, &padded());
    for cut in 0..right.len() {
        match parse_open(&right[..cut]) {
            Err(broken) => assert_eq!(broken.0, Violation::Framing, "{cut} bytes"),
            // What is left is a whole answer of the other format, with the padding as its KSID.
            Ok(answer) => assert_eq!(answer.stream.unwrap().ksid, Ksid::NIL, "{cut} bytes"),
        }
    }
    for mimetype in [&b"application/json"[..], b"", b"text\0text\0"] {
        assert_eq!(parse_open(&open_payload(0, mimetype)).unwrap_err().0, Violation::Framing);
    }
    // An error may have nothing more, or anything.
    for status in [2u32, 4, 5, 6, 7, 99] {
        let answer = parse_open(&status.to_be_bytes()).unwrap();
        assert_eq!(answer, OpenAnswer { status, stream: None });
    }
    let more = [&4u32.to_be_bytes()[..], b"no such place"].concat();
    assert_eq!(parse_open(&more).unwrap(), OpenAnswer { status: 4, stream: None });
}

#[test]
fn a_key_has_one_name() {
    let id = KSID.key_id(4_000_000_000).unwrap();
    assert_eq!(id.as_str(), "30313233343536373839616263646566:4000000000");
    assert_eq!(Ksid::parse_key_id(&id), Some((KSID, 4_000_000_000)));
    for other in [
        "30313233343536373839616263646566:01",
        "30313233343536373839616263646566:+1",
        "30313233343536373839616263646566:4294967296",
        "30313233343536373839616263646566:",
        "30313233343536373839616263646566",
        "303132333435363738396162636465:1",
        "3031323334353637383961626364656:1",
        "30313233343536373839616263646566 :1",
        "3031323334353637383961626364656F:1",
        "00000000000000000000000000000000:1",
        "é0313233343536373839616263646566:1",
        "bc490419-7d60-487f-adc1-4ddcc177c139",
    ] {
        assert_eq!(Ksid::parse_key_id(&KeyId::new(other).unwrap()), None, "{other}");
    }
}
