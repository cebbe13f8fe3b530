//! The meaning of an HTTP status, which depends on the request: servers use 400, 401, 404 and 503 for
//! different things. Pure, so that tests cover the whole table.

use crate::error::{KmsErrorKind, Operation, Violation};

/// The kind of failure that HTTP `status` means as the answer to `operation`. The server's `message` decides
/// where the status alone is ambiguous. Not for 200.
#[must_use]
pub fn classify(operation: Operation, status: u16, message: &str) -> KmsErrorKind {
    use KmsErrorKind as K;
    use Operation::{DecKeys, EncKeys};

    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    // The messages of ETSI GS QKD 014 for requests that no KME can meet.
    let request_is_wrong = says(&["multiple of 8", "extension_mandatory", "extension_optional"]);
    let no_such_sae =
        says(&["sae"]) && says(&["unknown", "not found", "not registered", "does not exist", "invalid"]);
    let no_key_now = no_key_now(&message);
    let no_such_key =
        says(&["key"]) && says(&["not found", "unknown", "no such", "does not exist", "doesn't exist"]);

    match (operation, status) {
        (_, 300..400) => K::ProtocolViolation(Violation::Redirect),
        (_, 0..300 | 600..) => K::ProtocolViolation(Violation::Status),
        // The standard has 401 for a caller that is no slave SAE of the key; some servers use it for an
        // unknown ID too.
        (DecKeys, 401) => K::KeyNotFound,
        (_, 401 | 403) => K::IdentityRefused,
        (_, 405 | 406 | 411 | 413..=417 | 421 | 426 | 431 | 501 | 505) => K::BadRequest,
        (_, 400..500) if request_is_wrong => K::BadRequest,
        (EncKeys, 404) if no_such_sae => K::BadRequest,
        (EncKeys, 400 | 422) if no_key_now => K::Exhausted,
        (EncKeys, 404 | 409 | 410 | 412 | 429) => K::Exhausted,
        (EncKeys, 503) => K::Exhausted,
        (EncKeys, 500) if no_key_now => K::Exhausted,
        (DecKeys, 400 | 404 | 409 | 410 | 412) => K::KeyNotFound,
        (DecKeys, 422 | 500 | 503) if no_such_key => K::KeyNotFound,
        (_, 408 | 429) => K::ServerFault,
        (_, 400..500) => K::BadRequest,
        (_, 500..600) => K::ServerFault,
    }
}

/// Whether a message in lower case says that there is no key at the moment.
pub(crate) fn no_key_now(message: &str) -> bool {
    const WORDS: &[&str] = &[
        "exhaust",
        "insufficient",
        "not enough",
        "no key",
        "no more key",
        "no available",
        "not available",
        "unavailable",
        "empty",
        "depleted",
        "out of keys",
        "generated key count",
        "maximum key count",
        "try again later",
    ];
    WORDS.iter().any(|word| message.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use KmsErrorKind as K;
    use Operation::{DecKeys, EncKeys, Status};

    #[test]
    fn the_table() {
        let violation = K::ProtocolViolation(Violation::Status);
        let redirect = K::ProtocolViolation(Violation::Redirect);
        let rows: &[(u16, &str, K, K, K)] = &[
            // status, message, status, enc_keys, dec_keys
            (100, "", violation, violation, violation),
            (201, "", violation, violation, violation),
            (204, "", violation, violation, violation),
            (206, "", violation, violation, violation),
            (301, "", redirect, redirect, redirect),
            (307, "", redirect, redirect, redirect),
            (400, "", K::BadRequest, K::BadRequest, K::KeyNotFound),
            (400, "size shall be a multiple of 8", K::BadRequest, K::BadRequest, K::BadRequest),
            (
                400,
                "not all extension_mandatory parameters are supported",
                K::BadRequest,
                K::BadRequest,
                K::BadRequest,
            ),
            (
                400,
                "not all extension_optional request options handled",
                K::BadRequest,
                K::BadRequest,
                K::BadRequest,
            ),
            (
                400,
                "one or more keys specified are not found on KME",
                K::BadRequest,
                K::BadRequest,
                K::KeyNotFound,
            ),
            (400, "Insufficient keys", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (
                400,
                "The requested key amount exceeds the generated key count. Try again later.",
                K::BadRequest,
                K::Exhausted,
                K::KeyNotFound,
            ),
            (400, "Key pool exhausted", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (401, "", K::IdentityRefused, K::IdentityRefused, K::KeyNotFound),
            (403, "", K::IdentityRefused, K::IdentityRefused, K::IdentityRefused),
            (404, "", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (404, "Unknown SAE SITE-B", K::BadRequest, K::BadRequest, K::KeyNotFound),
            (405, "", K::BadRequest, K::BadRequest, K::BadRequest),
            (408, "", K::ServerFault, K::ServerFault, K::ServerFault),
            (409, "", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (410, "", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (412, "", K::BadRequest, K::Exhausted, K::KeyNotFound),
            (413, "", K::BadRequest, K::BadRequest, K::BadRequest),
            (418, "", K::BadRequest, K::BadRequest, K::BadRequest),
            (421, "", K::BadRequest, K::BadRequest, K::BadRequest),
            (422, "field required", K::BadRequest, K::BadRequest, K::BadRequest),
            (422, "not enough keys", K::BadRequest, K::Exhausted, K::BadRequest),
            (422, "one or more keys are not found", K::BadRequest, K::BadRequest, K::KeyNotFound),
            (429, "", K::ServerFault, K::Exhausted, K::ServerFault),
            (500, "", K::ServerFault, K::ServerFault, K::ServerFault),
            (500, "no keys left", K::ServerFault, K::Exhausted, K::ServerFault),
            (500, "key not found", K::ServerFault, K::ServerFault, K::KeyNotFound),
            (501, "", K::BadRequest, K::BadRequest, K::BadRequest),
            (502, "", K::ServerFault, K::ServerFault, K::ServerFault),
            (503, "", K::ServerFault, K::Exhausted, K::ServerFault),
            (503, "key ID does not exist", K::ServerFault, K::Exhausted, K::KeyNotFound),
            (504, "", K::ServerFault, K::ServerFault, K::ServerFault),
            (599, "", K::ServerFault, K::ServerFault, K::ServerFault),
            (600, "", violation, violation, violation),
            (999, "", violation, violation, violation),
        ];
        for (code, message, status, enc, dec) in rows {
            assert_eq!(classify(Status, *code, message), *status, "status {code} {message}");
            assert_eq!(classify(EncKeys, *code, message), *enc, "enc_keys {code} {message}");
            assert_eq!(classify(DecKeys, *code, message), *dec, "dec_keys {code} {message}");
        }
    }

    #[test]
    fn every_status_has_a_meaning() {
        for code in 0..=1000 {
            for op in [Status, EncKeys, DecKeys] {
                let kind = classify(op, code, "");
                assert!(!kind.as_str().is_empty());
                assert!(op != DecKeys || kind != K::Exhausted, "{code}");
                assert!(op != EncKeys || kind != K::KeyNotFound, "{code}");
            }
        }
    }
}
