//! The data formats of ETSI GS QKD 014 clause 6. This module is pure: it parses requests from method, path,
//! query and body, and returns answers as bytes; refusals have the standard's messages.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use hyper::Method;
use percent_encoding::percent_decode_str;
use qvpn_secret::{SecretBuf, with_scrubbed_stack};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::json::{Object, whole_number};
use crate::refusal::Refusal;

/// The three methods of the interface (clause 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Get status.
    Status,
    /// Get key.
    EncKeys,
    /// Get key with key IDs.
    DecKeys,
}

impl Op {
    /// Returns the name in the URL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::EncKeys => "enc_keys",
            Self::DecKeys => "dec_keys",
        }
    }
}

/// The method of a URL, and the SAE in its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The method of clause 5.
    pub op: Op,
    /// The slave SAE ID (status, enc_keys) or the master SAE ID (dec_keys), decoded.
    pub sae: String,
}

impl Route {
    /// Reads a request's method and path (without the query).
    ///
    /// # Errors
    /// [`Refusal::NoSuchUrl`], [`Refusal::Method`], or a 400 if the SAE ID is not UTF-8.
    pub fn parse(method: &Method, path: &str) -> Result<Self, Refusal> {
        let rest = path.strip_prefix("/api/v1/keys/").ok_or(Refusal::NoSuchUrl)?;
        let (sae, op) = rest.split_once('/').ok_or(Refusal::NoSuchUrl)?;
        let op = match op {
            "status" => Op::Status,
            "enc_keys" => Op::EncKeys,
            "dec_keys" => Op::DecKeys,
            _ => return Err(Refusal::NoSuchUrl),
        };
        // HEAD of the other methods would spend keys that don't arrive.
        let (allowed, also) = match op {
            Op::Status => ("GET or HEAD", Method::HEAD),
            Op::EncKeys | Op::DecKeys => ("GET or POST", Method::POST),
        };
        if method != Method::GET && *method != also {
            return Err(Refusal::Method(op.name(), allowed));
        }
        let sae = percent_decode_str(sae)
            .decode_utf8()
            .map_err(|_| Refusal::bad("the SAE ID in the URL is not UTF-8"))?;
        if sae.is_empty() {
            return Err(Refusal::bad("the SAE ID in the URL is empty"));
        }
        Ok(Self { op, sae: sae.into_owned() })
    }
}

/// The key request of clause 6.2. Absent fields are `None` or empty.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct KeyRequest {
    /// The number of keys; 1 if absent.
    #[serde(default, deserialize_with = "whole_number")]
    pub number: Option<u64>,
    /// Their size in bits; the KME's `key_size` if absent.
    #[serde(default, deserialize_with = "whole_number")]
    pub size: Option<u64>,
    /// Slave SAEs besides the one in the URL.
    #[serde(default, rename = "additional_slave_SAE_IDs")]
    pub additional_slave_sae_ids: Vec<String>,
    /// Extensions that the KME must support; each object has one name.
    #[serde(default)]
    pub extension_mandatory: Vec<Map<String, Value>>,
    /// Extensions that may be ignored.
    #[serde(default)]
    pub extension_optional: Vec<Map<String, Value>>,
    /// Whether it came as a GET.
    #[serde(skip)]
    pub by_get: bool,
    /// Whether the IDs are hexadecimal digits only.
    #[serde(skip)]
    pub hex_ids: bool,
}

impl KeyRequest {
    /// Parses the GET form: only `number` and `size`.
    ///
    /// # Errors
    /// A 400 for another parameter, a repeated one, or a value that isn't a whole number.
    pub fn from_query(query: &str) -> Result<Self, Refusal> {
        let mut request = Self { by_get: true, ..Self::default() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "number" => &mut request.number,
                "size" => &mut request.size,
                _ => {
                    return Err(Refusal::bad(
                        "a GET of enc_keys has number and size only; use POST for the rest",
                    ));
                }
            };
            let value = value
                .parse()
                .map_err(|_| Refusal::bad(format!("{name} must be a whole number of at least 0")))?;
            if slot.replace(value).is_some() {
                return Err(Refusal::bad(format!("{name} is given twice")));
            }
        }
        Ok(request)
    }

    /// Parses the POST form; an empty body is a request for one key of the default size.
    ///
    /// # Errors
    /// A 400 if it isn't JSON of this format.
    pub fn from_body(body: &[u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        let Object(request): Object<Self> = serde_json::from_slice(body).map_err(|e| bad_json(&e))?;
        let extensions = request.extension_mandatory.iter().chain(&request.extension_optional);
        if extensions.into_iter().any(|e| e.len() != 1) {
            return Err(Refusal::bad("each extension must be an object of one name and its value"));
        }
        Ok(request)
    }
}

/// The key IDs format of clause 6.4.
#[derive(Deserialize)]
struct KeyIds {
    #[serde(rename = "key_IDs")]
    key_ids: Vec<Object<KeyId>>,
    #[serde(rename = "key_IDs_extension")]
    _extension: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct KeyId {
    #[serde(rename = "key_ID")]
    key_id: String,
    #[serde(rename = "key_ID_extension")]
    _extension: Option<Map<String, Value>>,
}

/// Returns the only key ID of a GET of `dec_keys`.
///
/// # Errors
/// A 400 unless there is exactly one `key_ID` and nothing else.
pub fn key_ids_from_query(query: &str) -> Result<Vec<String>, Refusal> {
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    match (parameters.next(), parameters.next()) {
        (Some((name, id)), None) if name == "key_ID" && !id.is_empty() => Ok(vec![id.into_owned()]),
        _ => Err(Refusal::bad("a GET of dec_keys has exactly one key_ID; use POST for more")),
    }
}

/// Returns the key IDs of a POST of `dec_keys`; extensions are allowed and ignored.
///
/// # Errors
/// A 400 if it isn't JSON of this format or has no ID.
pub fn key_ids_from_body(body: &[u8]) -> Result<Vec<String>, Refusal> {
    let Object(ids): Object<KeyIds> = serde_json::from_slice(body).map_err(|e| bad_json(&e))?;
    if ids.key_ids.is_empty() {
        return Err(Refusal::bad("key_IDs is empty"));
    }
    Ok(ids.key_ids.into_iter().map(|Object(id)| id.key_id).collect())
}

fn bad_json(error: &serde_json::Error) -> Refusal {
    Refusal::bad(format!("bad request format: {error}"))
}

/// The status of clause 6.1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The KME that answers.
    #[serde(rename = "source_KME_ID")]
    pub source_kme_id: String,
    /// The slave SAE's KME.
    #[serde(rename = "target_KME_ID")]
    pub target_kme_id: String,
    /// The caller.
    #[serde(rename = "master_SAE_ID")]
    pub master_sae_id: String,
    /// The SAE that the keys are shared with.
    #[serde(rename = "slave_SAE_ID")]
    pub slave_sae_id: String,
    /// Default size of a key, bits.
    pub key_size: u32,
    /// Whole keys of that size that are available now.
    pub stored_key_count: u64,
    /// The capacity of the store, in keys of that size.
    pub max_key_count: u64,
    /// The maximum number of keys that one request may ask for.
    pub max_key_per_request: u32,
    /// Largest key, bits.
    pub max_key_size: u32,
    /// Smallest key, bits.
    pub min_key_size: u32,
    /// The maximum number of additional slave SAEs of a request.
    #[serde(rename = "max_SAE_ID_count")]
    pub max_sae_id_count: u32,
    /// The link's error rate, key rate and hops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_extension: Option<Value>,
}

/// A key on its way to an SAE.
pub struct DeliveredKey {
    /// Its ID, which is public.
    pub id: String,
    /// Its bytes.
    pub key: SecretBuf,
}

impl DeliveredKey {
    /// Returns another handle to the same key, for another receiver.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let mut key = SecretBuf::zeroed(self.key.len());
        key.expose_mut().copy_from_slice(self.key.expose());
        Self { id: self.id.clone(), key }
    }
}

/// The encoding of the keys of a container. All variants except the first deviate from the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyStyle {
    /// As in the standard.
    #[default]
    Right,
    /// Each key's base64 has an asterisk.
    BadBase64,
    /// Base64 of the URL alphabet (RFC 4648 section 5), without padding.
    UrlBase64,
    /// Each ID is a number.
    NumericIds,
    /// With undefined fields, and the standard's extensions.
    ExtraFields,
}

/// Returns the key container of clause 6.3. The keys are erased here, and the container after it is sent.
#[must_use]
pub fn key_container(keys: Vec<DeliveredKey>, style: KeyStyle) -> Zeroizing<Vec<u8>> {
    const JSON_OVERHEAD: usize = r#"{"key_ID":,"key":""},"#.len() + KEY_EXTRA.len() + CONTAINER_EXTRA.len();
    let base64 = if style == KeyStyle::UrlBase64 { &BASE64URL_NOPAD } else { &BASE64 };
    // Enough for the whole container, since a buffer that grows leaves copies behind. In JSON an ID needs at
    // most six bytes for each byte.
    let size = keys
        .iter()
        .map(|k| JSON_OVERHEAD + 2 + 6 * k.id.len() + BASE64.encode_len(k.key.len()))
        .sum::<usize>();
    let mut body = Zeroizing::new(Vec::with_capacity(size + 16));
    body.extend_from_slice(br#"{"keys":["#);
    for (i, DeliveredKey { id, key }) in keys.into_iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(br#"{"key_ID":"#);
        let id = if style == KeyStyle::NumericIds { Value::from(i + 1) } else { Value::String(id) };
        body.extend_from_slice(id.to_string().as_bytes());
        body.extend_from_slice(br#","key":""#);
        let start = body.len();
        body.resize(start + base64.encode_len(key.len()), 0);
        with_scrubbed_stack(|| base64.encode_mut(key.expose(), &mut body[start..]));
        if style == KeyStyle::BadBase64
            && let Some(first) = body.get_mut(start)
        {
            *first = b'*';
        }
        body.push(b'"');
        if style == KeyStyle::ExtraFields {
            body.extend_from_slice(KEY_EXTRA.as_bytes());
        }
        body.push(b'}');
    }
    body.push(b']');
    if style == KeyStyle::ExtraFields {
        body.extend_from_slice(CONTAINER_EXTRA.as_bytes());
    }
    body.push(b'}');
    body
}

/// Extra fields of a key.
const KEY_EXTRA: &str = r#","key_ID_extension":{"n":[1,{"a":null}]},"key_extension":"x","created":1.5e9"#;
/// Extra fields of a container.
const CONTAINER_EXTRA: &str =
    r#","key_container_extension":{"hops":["a","b"]},"vendor":{"keys":[],"x":true}"#;

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    #[test]
    fn routes_are_read_and_decoded() {
        let route = |m: Method, p: &str| Route::parse(&m, p);
        assert_eq!(
            route(Method::GET, "/api/v1/keys/SITE%20B%2F%C3%BC/status"),
            Ok(Route { op: Op::Status, sae: "SITE B/ü".into() })
        );
        assert_eq!(
            route(Method::POST, "/api/v1/keys/B/enc_keys"),
            Ok(Route { op: Op::EncKeys, sae: "B".into() })
        );
        assert_eq!(
            route(Method::GET, "/api/v1/keys/B/dec_keys"),
            Ok(Route { op: Op::DecKeys, sae: "B".into() })
        );
        for path in
            ["/", "/api/v1/keys/B", "/api/v1/keys/B/keys", "/api/v1/keys/A/B/status", "/api/v2/keys/B/status"]
        {
            assert_eq!(route(Method::GET, path), Err(Refusal::NoSuchUrl), "{path}");
        }
        assert_eq!(
            route(Method::POST, "/api/v1/keys/B/status"),
            Err(Refusal::Method("status", "GET or HEAD"))
        );
        assert_eq!(
            route(Method::PUT, "/api/v1/keys/B/enc_keys"),
            Err(Refusal::Method("enc_keys", "GET or POST"))
        );
        for path in ["/api/v1/keys//status", "/api/v1/keys/%FF/status"] {
            assert_eq!(route(Method::GET, path).unwrap_err().status(), StatusCode::BAD_REQUEST, "{path}");
        }
    }

    #[test]
    fn a_get_of_enc_keys_has_number_and_size_only() {
        let request = KeyRequest::from_query("number=3&size=512").unwrap();
        assert_eq!((request.number, request.size), (Some(3), Some(512)));
        assert_eq!(KeyRequest::from_query("").unwrap(), KeyRequest { by_get: true, ..KeyRequest::default() });
        for query in
            ["number=x", "number=-1", "size=1.5", "number=1&number=2", "extension_mandatory=1", "number"]
        {
            assert_eq!(
                KeyRequest::from_query(query).unwrap_err().status(),
                StatusCode::BAD_REQUEST,
                "{query}"
            );
        }
    }

    #[test]
    fn a_post_of_enc_keys_is_json_of_the_format() {
        let request = KeyRequest::from_body(
            br#"{"number":2,"size":128,"additional_slave_SAE_IDs":["C"],"extension_mandatory":[{"a":1}],
                "extension_optional":[{"b":{"c":2}}],"unknown":true}"#,
        )
        .unwrap();
        assert_eq!((request.number, request.size), (Some(2), Some(128)));
        assert_eq!(request.additional_slave_sae_ids, ["C"]);
        assert_eq!(request.extension_mandatory[0]["a"], 1);
        assert_eq!(KeyRequest::from_body(b"").unwrap(), KeyRequest::default());
        let floats = KeyRequest::from_body(br#"{"number":2.0,"size":2.56e2}"#).unwrap();
        assert_eq!((floats.number, floats.size), (Some(2), Some(256)));
        for body in [
            "[",
            "[]",
            "[1,256]",
            r#"{"number":"2"}"#,
            r#"{"number":-1}"#,
            r#"{"number":1.5}"#,
            r#"{"size":1e300}"#,
            r#"{"extension_mandatory":[{"a":1,"b":2}]}"#,
        ] {
            assert_eq!(
                KeyRequest::from_body(body.as_bytes()).unwrap_err().status(),
                StatusCode::BAD_REQUEST,
                "{body}"
            );
        }
    }

    #[test]
    fn key_ids_come_one_by_query_or_many_by_body() {
        assert_eq!(key_ids_from_query("key_ID=a%2Bb").unwrap(), ["a+b"]);
        for query in ["", "key_ID=", "key_ID=a&key_ID=b", "key_id=a", "key_ID=a&x=1"] {
            assert_eq!(key_ids_from_query(query).unwrap_err().status(), StatusCode::BAD_REQUEST, "{query}");
        }
        let body = br#"{"key_IDs":[{"key_ID":"a","key_ID_extension":{}},{"key_ID":"b"}],
            "key_IDs_extension":{"x":1}}"#;
        assert_eq!(key_ids_from_body(body).unwrap(), ["a", "b"]);
        for body in [
            "",
            "{}",
            r#"{"key_IDs":[]}"#,
            r#"{"key_IDs":["a"]}"#,
            r#"{"key_IDs":[{"key_ID":1}]}"#,
            r#"{"key_IDs":[["a",null]]}"#,
            r#"[[{"key_ID":"a"}]]"#,
        ] {
            assert_eq!(
                key_ids_from_body(body.as_bytes()).unwrap_err().status(),
                StatusCode::BAD_REQUEST,
                "{body}"
            );
        }
    }

    #[test]
    fn a_container_is_json_and_never_grows() {
        let keys = [("id\"\u{1}", 32usize), ("x", 1), ("y", 8192)]
            .map(|(id, n)| DeliveredKey { id: id.into(), key: SecretBuf::take(&mut vec![7; n]) });
        let body = key_container(Vec::from(keys), KeyStyle::Right);
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["keys"][0]["key_ID"], "id\"\u{1}");
        assert_eq!(value["keys"][0]["key"], BASE64.encode(&[7; 32]));
        assert_eq!(value["keys"][2]["key"], BASE64.encode(&[7; 8192]));
        assert_eq!(&**key_container(Vec::new(), KeyStyle::Right), br#"{"keys":[]}"#);
    }
}
