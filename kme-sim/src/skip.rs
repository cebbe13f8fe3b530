//! Cisco's Secure Key Integration Protocol (draft-cisco-skip-02) as a second interface of the same KMEs:
//! `/capabilities`, `/key`, `/key/{keyId}` and `/entropy`. A SKIP system ID is an SAE ID of ETSI GS QKD 014
//! here.

use data_encoding::HEXLOWER;
use hyper::Method;
use percent_encoding::percent_decode_str;
use qvpn_secret::with_scrubbed_stack;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::api::{DeliveredKey, KeyStyle, Op};
use crate::link::{NoRandomness, random_bytes};
use crate::refusal::Refusal;

/// The size of a key if the request specifies none (section 4.2.2).
pub(crate) const DEFAULT_KEY_BITS: u64 = 256;
const MAX_ENTROPY_BITS: u64 = 8192;

/// A SKIP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// The key provider's capabilities.
    Capabilities,
    /// A new key.
    NewKey {
        /// The remote system.
        remote: String,
        /// The size in bits.
        size: u64,
    },
    /// A key that the remote system took.
    KeyById {
        /// The remote system.
        remote: String,
        /// Its ID.
        id: String,
    },
    /// Random bits.
    Entropy {
        /// The number of bits.
        bits: u64,
    },
}

impl Request {
    /// Parses a request; `None` if the path isn't one of SKIP's.
    pub(crate) fn parse(method: &Method, path: &str, query: &str) -> Option<Result<Self, Refusal>> {
        let id = match path {
            "/capabilities" | "/key" | "/entropy" => None,
            _ => Some(path.strip_prefix("/key/").filter(|id| !id.contains('/'))?),
        };
        Some(if method == Method::GET {
            Self::read(path, id, query)
        } else {
            Err(Refusal::Method("SKIP", "GET"))
        })
    }

    fn read(path: &str, id: Option<&str>, query: &str) -> Result<Self, Refusal> {
        let (mut remote, mut size, mut bits) = (None, None, None);
        let number = |name: &str, value: &str| {
            value.parse().map_err(|_| Refusal::bad(format!("{name} must be a whole number of bits")))
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match (&*name, path) {
                ("remoteSystemID", _) => remote = Some(value.into_owned()),
                ("size", "/key") => size = Some(number("size", &value)?),
                ("minentropy", "/entropy") => bits = Some(number("minentropy", &value)?),
                _ => return Err(Refusal::bad(format!("there is no parameter {name:?} here"))),
            }
        }
        let no_remote = || Refusal::bad("remoteSystemID is missing");
        Ok(match (id, path) {
            (Some(id), _) => {
                let id = percent_decode_str(id).decode_utf8();
                let id = id.map_err(|_| Refusal::bad("the keyId in the URL is not UTF-8"))?.into_owned();
                Self::KeyById { remote: remote.ok_or_else(no_remote)?, id }
            }
            (None, "/capabilities") => Self::Capabilities,
            (None, "/key") => {
                Self::NewKey { remote: remote.ok_or_else(no_remote)?, size: size.unwrap_or(DEFAULT_KEY_BITS) }
            }
            (None, _) => {
                let bits = bits.unwrap_or(DEFAULT_KEY_BITS);
                if bits == 0 || !bits.is_multiple_of(8) || bits > MAX_ENTROPY_BITS {
                    let range = format!("minentropy must be a multiple of 8 from 8 to {MAX_ENTROPY_BITS}");
                    return Err(Refusal::bad(range));
                }
                Self::Entropy { bits }
            }
        })
    }

    /// Returns the corresponding method of ETSI GS QKD 014, whose faults apply.
    pub(crate) fn op(&self) -> Op {
        match self {
            Self::Capabilities | Self::Entropy { .. } => Op::Status,
            Self::NewKey { .. } => Op::EncKeys,
            Self::KeyById { .. } => Op::DecKeys,
        }
    }
}

/// Returns the capabilities (section 4.1) of the provider of `local`, which shares keys with `remote`.
pub(crate) fn capabilities(local: &str, remote: &[String]) -> Value {
    json!({
        "entropy": true,
        "key": true,
        "algorithm": "QKD",
        "localSystemID": local,
        "remoteSystemID": remote,
    })
}

/// Returns `bits` random bits (section 4.3).
pub(crate) fn entropy(bits: u64) -> Result<Value, NoRandomness> {
    let mut random = vec![0; usize::try_from(bits / 8).unwrap_or(0)];
    random_bytes(&mut random)?;
    Ok(json!({ "randomStr": HEXLOWER.encode(&random), "minentropy": bits }))
}

/// Returns the answer with a key (section 4.2). The key is erased here, and the answer after it is sent.
pub(crate) fn key(DeliveredKey { id, key }: DeliveredKey, style: KeyStyle) -> Zeroizing<Vec<u8>> {
    const JSON_OVERHEAD: usize = r#"{"keyId":,"key":"","vendor":{"x":1}}"#.len();
    let mut body = Zeroizing::new(Vec::with_capacity(JSON_OVERHEAD + 2 + 6 * id.len() + 2 * key.len()));
    let id = if style == KeyStyle::NumericIds { Value::from(1) } else { Value::String(id) };
    body.extend_from_slice(br#"{"keyId":"#);
    body.extend_from_slice(id.to_string().as_bytes());
    body.extend_from_slice(br#","key":""#);
    let start = body.len();
    body.resize(start + HEXLOWER.encode_len(key.len()), 0);
    with_scrubbed_stack(|| HEXLOWER.encode_mut(key.expose(), &mut body[start..]));
    if style == KeyStyle::BadBase64
        && let Some(first) = body.get_mut(start)
    {
        *first = b'*';
    }
    body.push(b'"');
    if style == KeyStyle::ExtraFields {
        body.extend_from_slice(br#","vendor":{"x":1}"#);
    }
    body.push(b'}');
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let get = |path: &str, query: &str| Request::parse(&Method::GET, path, query);
        assert_eq!(get("/capabilities", ""), Some(Ok(Request::Capabilities)));
        assert_eq!(
            get("/key", "remoteSystemID=SITE%20B&size=512"),
            Some(Ok(Request::NewKey { remote: "SITE B".into(), size: 512 }))
        );
        assert_eq!(
            get("/key/ab%20c", "remoteSystemID=A"),
            Some(Ok(Request::KeyById { remote: "A".into(), id: "ab c".into() }))
        );
        assert_eq!(get("/entropy", "minentropy=64"), Some(Ok(Request::Entropy { bits: 64 })));
        for path in ["/", "/key/a/b", "/keys", "/api/v1/keys/B/status"] {
            assert!(get(path, "").is_none(), "{path}");
        }
        for (path, query) in [
            ("/key", ""),
            ("/key/ab", ""),
            ("/key", "remoteSystemID=B&size=x"),
            ("/key", "remoteSystemID=B&number=2"),
            ("/capabilities", "size=256"),
            ("/entropy", "minentropy=7"),
            ("/entropy", "minentropy=80000"),
        ] {
            assert!(matches!(get(path, query), Some(Err(Refusal::BadRequest { .. }))), "{path}?{query}");
        }
        let post = Request::parse(&Method::POST, "/key", "remoteSystemID=B");
        assert!(matches!(post, Some(Err(Refusal::Method("SKIP", "GET")))));
    }
}
