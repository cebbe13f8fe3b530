//! Refused requests: the status codes and the error format of ETSI GS QKD 014 (clause 6.5), with its
//! messages.

use hyper::StatusCode;
use serde_json::{Value, json};

/// The message for a size that isn't a whole number of bytes (Table 6).
pub const SIZE_MULTIPLE_OF_8: &str = "size shall be a multiple of 8";
/// The message for a mandatory extension that the KME doesn't know.
pub const MANDATORY_UNSUPPORTED: &str = "not all extension_mandatory parameters are supported";
/// The message for a mandatory extension that the KME knows but whose value it does not support.
pub const MANDATORY_UNMET: &str = "not all extension_mandatory request options could be met";
/// The message for an optional extension that the KME does not support, from a KME that does not ignore it.
pub const OPTIONAL_UNHANDLED: &str = "not all extension_optional request options handled";
/// The message for a key ID that is unknown, already fetched, or not yet there (Table 8).
pub const KEY_NOT_FOUND: &str = "one or more keys specified are not found on KME";

const MAX_MESSAGE_CHARS: usize = 300;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// 401, without a body: the certificate is not that of an SAE of this KME, or the keys belong to another
    /// SAE.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// 400 with a message and details.
    #[error("{message}")]
    BadRequest {
        /// One of the standard's messages, or our own if it has none.
        message: String,
        /// The `details` array: objects of one name each.
        details: Vec<Value>,
    },
    /// 503 with a message.
    #[error("{0}")]
    Unavailable(String),
    /// 404: no such URL.
    #[error("no such URL; there are status, enc_keys and dec_keys under /api/v1/keys/{{SAE ID}}/")]
    NoSuchUrl,
    /// 405: the URL is right but the method is not.
    #[error("the method of {0} is {1}")]
    Method(&'static str, &'static str),
    /// 413: the body is larger than any request that could be served.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// 408: the body didn't come in time.
    #[error("the body did not arrive in time")]
    TooSlow,
}

impl Refusal {
    /// Returns a 400 with `message`, cut to a bounded length, and no details.
    pub fn bad(message: impl Into<String>) -> Self {
        let message = message.into().chars().take(MAX_MESSAGE_CHARS).collect();
        Self::BadRequest { message, details: Vec::new() }
    }

    /// Returns the status code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoSuchUrl => StatusCode::NOT_FOUND,
            Self::Method(..) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// Returns the error data format of clause 6.5, or nothing for 401.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        match self {
            Self::Unauthorized(_) => Vec::new(),
            Self::BadRequest { message, details } if !details.is_empty() => {
                json!({ "message": message, "details": details }).to_string().into_bytes()
            }
            other => json!({ "message": other.to_string() }).to_string().into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_has_details_only_where_there_are_some() {
        assert_eq!(Refusal::bad("m").body(), br#"{"message":"m"}"#);
        let refusal = Refusal::BadRequest { message: "m".into(), details: vec![json!({ "a": 1 })] };
        assert_eq!(
            serde_json::from_slice::<Value>(&refusal.body()).unwrap(),
            json!({"message":"m","details":[{"a":1}]})
        );
        assert!(Refusal::Unauthorized("no").body().is_empty());
        assert!(Refusal::bad("x".repeat(100_000)).body().len() < 400);
    }
}
