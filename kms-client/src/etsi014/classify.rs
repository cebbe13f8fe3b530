//! The meaning of an HTTP error status, which depends on the request and on the words of the answer: servers
//! use 400, 401, 404 and 503 for different things, and a proxy may answer in place of the KME. The functions
//! are pure, so that tests can cover the whole table.

use crate::error::{KmsErrorKind, Operation, Violation};
use crate::https::intermediary::{self, Intermediary};
use crate::wording;

/// An answer that isn't 200.
#[derive(Debug, Clone, Copy)]
pub struct ErrorAnswer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The server's message, or an excerpt of its body.
    pub message: &'a str,
    /// Whether the body is a web page.
    pub is_page: bool,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// The kind of failure.
    pub kind: KmsErrorKind,
    /// Whether the answer has no other possible meaning.
    pub certain: bool,
    /// Whether `enc_keys` may have been carried out, so that its keys are spent.
    pub may_be_done: bool,
    pub(crate) answered_by: Option<Intermediary>,
}

impl Meaning {
    fn of(kind: KmsErrorKind, certain: bool) -> Self {
        Self { kind, certain, may_be_done: false, answered_by: None }
    }
}

/// Returns the meaning of `answer` to a request for `operation`.
#[must_use]
pub fn classify(operation: Operation, answer: ErrorAnswer<'_>) -> Meaning {
    let message = answer.message.to_lowercase();
    if let 400..600 = answer.status
        && let Some(by) = intermediary::identify(&message, answer.is_page)
    {
        return by_intermediary(operation, by, answer.status, &message);
    }
    let meaning = by_kme(operation, answer.status, &message);
    // Other 2xx may deliver keys that aren't read. A proxy that is not recognised may be the origin of 502
    // and 504.
    let may_be_done =
        matches!(answer.status, 201..=299 | 502 | 504) && meaning.kind != KmsErrorKind::PeerKmeDown;
    Meaning { may_be_done, ..meaning }
}

/// A proxy's own answer: the KME didn't see the request, or its answer got lost.
fn by_intermediary(operation: Operation, by: Intermediary, status: u16, message: &str) -> Meaning {
    use KmsErrorKind as K;
    // Some KMEs also send their messages as HTML.
    let unknown = by == Intermediary::Unknown;
    if unknown && operation == Operation::EncKeys && wording::no_key_now(message) && status != 404 {
        return Meaning::of(K::Exhausted, true);
    }
    if unknown && operation == Operation::DecKeys && wording::no_such_key(message) {
        return Meaning::of(K::KeyNotFound, true);
    }
    // A framework's page about an error of the program.
    if unknown && status == 500 {
        return Meaning::of(K::ServerFault, true);
    }
    let kind = match status {
        400..500 if wording::certificate_refused(message) => K::IdentityRefused,
        401 | 403 | 495 | 496 => K::IdentityRefused,
        408 | 429 | 499 | 500.. => K::Proxy,
        _ => K::BadRequest,
    };
    let may_be_done = intermediary::request_may_be_done(status, message);
    Meaning { kind, certain: !unknown, may_be_done, answered_by: Some(by) }
}

fn by_kme(operation: Operation, status: u16, message: &str) -> Meaning {
    use KmsErrorKind as K;
    use Operation::{DecKeys, EncKeys};

    let sure = |kind| Meaning::of(kind, true);
    let likely = |kind| Meaning::of(kind, false);
    // The messages of ETSI GS QKD 014 for requests that no KME can meet, and those for requests for too many
    // keys.
    let request_is_wrong = ["multiple of 8", "extension_mandatory", "extension_optional"]
        .iter()
        .any(|words| message.contains(words))
        // If too many IDs were requested, they are requested one by one, like IDs that are not found.
        || (operation == EncKeys && wording::too_many_requested(message));
    let no_key_now = wording::no_key_now(message);
    let no_such_key = wording::no_such_key(message);

    match (operation, status) {
        (_, 300..400) => sure(K::ProtocolViolation(Violation::Redirect)),
        (_, 0..300 | 600..) => sure(K::ProtocolViolation(Violation::Status)),
        (_, 424 | 500..) if wording::peer_kme_down(message) => {
            Meaning::of(K::PeerKmeDown, !wording::supposes(message))
        }
        (_, 400..) if wording::out_of_sync(message) => Meaning::of(K::OutOfSync, !wording::supposes(message)),
        (_, 400..500) if wording::certificate_refused(message) => sure(K::IdentityRefused),
        // In the standard, 401 means that the caller is not a slave SAE of the key; some servers use it for
        // an unknown ID.
        (DecKeys, 401) if !wording::not_authenticated(message) => likely(K::KeyNotFound),
        (_, 401 | 403) => sure(K::IdentityRefused),
        (_, 405 | 406 | 411 | 413..=417 | 421 | 426 | 431 | 501 | 505) => sure(K::BadRequest),
        (_, 400..500) if request_is_wrong => sure(K::BadRequest),
        (_, 400..500) if wording::other_sae(message) => sure(K::BadRequest),
        (EncKeys, 404) if wording::no_such_sae(message) => sure(K::BadRequest),
        (EncKeys, 412) if message.contains("configuration is missing") => likely(K::BadRequest),
        (EncKeys, 400 | 422) if no_key_now => sure(K::Exhausted),
        (EncKeys, 404 | 409 | 410 | 412 | 429 | 503) => Meaning::of(K::Exhausted, no_key_now),
        (EncKeys, 500) if no_key_now => sure(K::Exhausted),
        (DecKeys, 400 | 404 | 409 | 410 | 412) => Meaning::of(K::KeyNotFound, no_such_key),
        (DecKeys, 422 | 500 | 503) if no_such_key => sure(K::KeyNotFound),
        (_, 408 | 429) => sure(K::ServerFault),
        (_, 400) => Meaning::of(K::BadRequest, !message.is_empty()),
        (_, 400..500) => sure(K::BadRequest),
        (_, 500..600) => sure(K::ServerFault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use KmsErrorKind as K;
    use Operation::{DecKeys, EncKeys, Status};

    fn kind(operation: Operation, status: u16, message: &str) -> K {
        classify(operation, ErrorAnswer { status, message, is_page: false }).kind
    }

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
            assert_eq!(kind(Status, *code, message), *status, "status {code} {message}");
            assert_eq!(kind(EncKeys, *code, message), *enc, "enc_keys {code} {message}");
            assert_eq!(kind(DecKeys, *code, message), *dec, "dec_keys {code} {message}");
        }
    }

    #[test]
    fn every_status_has_a_meaning() {
        for code in 0..=1000 {
            for op in [Status, EncKeys, DecKeys] {
                let kind = kind(op, code, "");
                assert!(!kind.as_str().is_empty());
                assert!(op != DecKeys || kind != K::Exhausted, "{code}");
                assert!(op != EncKeys || kind != K::KeyNotFound, "{code}");
            }
        }
    }
}
