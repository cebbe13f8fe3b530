//! The part of DER (ITU-T X.690) that is needed to turn a certificate into one of X.509 version 1, which no
//! library makes any more.

/// One element: its tag, its content, and all of it with tag and length.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

/// SEQUENCE, constructed.
const SEQUENCE: u8 = 0x30;
/// BIT STRING.
const BIT_STRING: u8 = 0x03;
/// `[0]`: the version of a TBSCertificate (RFC 5280 section 4.1).
const VERSION: u8 = 0xa0;
/// `[3]`: its extensions.
const EXTENSIONS: u8 = 0xa3;

/// Returns the certificate `der` as version 1: without version and extensions, signed again by `sign` with
/// the same algorithm. `None` if it is not a certificate, or `sign` failed.
pub(crate) fn as_version_1(der: &[u8], sign: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let (certificate, _) = next(der)?;
    let (tbs, rest) = next(certificate.content)?;
    let (algorithm, _) = next(rest)?;

    let mut fields = Vec::new();
    let mut rest = tbs.content;
    while !rest.is_empty() {
        let (field, after) = next(rest)?;
        if field.tag != VERSION && field.tag != EXTENSIONS {
            fields.extend_from_slice(field.whole);
        }
        rest = after;
    }
    let tbs = element(SEQUENCE, &fields);
    // All bits of the last byte are used.
    let signature = [vec![0], sign(&tbs)?].concat();
    Some(element(SEQUENCE, &[tbs, algorithm.whole.to_vec(), element(BIT_STRING, &signature)].concat()))
}

/// Returns the first element of `der`, and what follows it.
fn next(der: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().try_fold(0usize, |n, b| n.checked_mul(256)?.checked_add(usize::from(*b)))?, rest)
        }
    };
    let (content, after) = rest.split_at_checked(length)?;
    Some((Element { tag, content, whole: &der[..der.len() - after.len()] }, after))
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|b| **b == 0).count()..];
    match significant {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        bytes => {
            // There are at most eight length bytes.
            der.push(0x80 | u8::try_from(bytes.len()).unwrap_or(8));
            der.extend_from_slice(bytes);
        }
    }
    der.extend_from_slice(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_they_are_read() {
        for n in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7; n];
            let der = element(SEQUENCE, &content);
            let (read, rest) = next(&der).unwrap();
            assert!(read.tag == SEQUENCE && read.content == content && read.whole == der && rest.is_empty());
        }
        for broken in
            [&[][..], &[0x30], &[0x30, 2, 0], &[0x30, 0x82, 1], &[0x30, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
        {
            assert!(next(broken).is_none(), "{broken:?}");
        }
    }
}
