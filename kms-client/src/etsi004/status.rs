//! The status codes of ETSI GS QKD 004 V2.1.1 (table 4) in words, and what each means for a call.

use crate::error::KmsErrorKind;
use crate::etsi004::wire::Service;

/// A status other than success, by what it means for the caller.
pub(super) struct Meaning {
    pub(super) kind: KmsErrorKind,
    /// What the document says.
    pub(super) text: &'static str,
    /// What to do, where the kind's own advice doesn't fit.
    pub(super) advice: Option<&'static str>,
}

/// Which side of a stream asks: the site that opened it, or the one that learned its ID from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    First,
    Second,
}

/// The meaning of `status` in the answer to `service`.
pub(super) fn meaning(status: u32, service: Service, side: Side) -> Meaning {
    use KmsErrorKind as K;
    let missing = match side {
        Side::First => K::Exhausted,
        Side::Second => K::KeyNotFound,
    };
    let (kind, text, advice) = match (status, service) {
        (1, _) => (missing, "the peer isn't connected", Some(PEER_FIRST)),
        (2, _) => (missing, "insufficient key available", None),
        (3, _) => (
            missing,
            "the peer application isn't connected yet",
            Some(match side {
                Side::First => PEER_FIRST,
                Side::Second => STREAM_UNKNOWN,
            }),
        ),
        (4, Service::OpenConnect) if side == Side::Second => {
            (K::KeyNotFound, "no QKD connection available", Some(STREAM_UNKNOWN))
        }
        (4, _) => (K::BadRequest, "no QKD connection available", Some(NO_CONNECTION)),
        (5, _) => (K::ServerFault, "the Key_stream_ID is in use already", Some(IN_USE)),
        (6, _) => (K::ServerFault, "the KME's own time limit passed", Some(TIMEOUT)),
        (7, _) => (K::BadRequest, "the requested QoS can't be met", Some(QOS)),
        (8, _) => (K::ServerFault, "the metadata needs more room than is asked for", Some(METADATA)),
        _ => (K::ServerFault, "a status that edition 2 of the document doesn't have", None),
    };
    Meaning { kind, text, advice }
}

const PEER_FIRST: &str = "this KME gives keys only once both sites have opened the stream, and the \
                          other site opens it with the first key that it is offered: ask the KME's \
                          operator to let the first site take keys before the second is connected, \
                          or use ETSI GS QKD 014";
const STREAM_UNKNOWN: &str = "our KME doesn't know the key stream, which is so for a while after a KME was \
                              restarted; if this stays, check that both KMEs belong to the same link, \
                              and that both sites' sae_id are the names by which the KMEs \
                              know the applications";
const NO_CONNECTION: &str = "check that sae_id in [kms] and the peer's sae_id are the names by which the KME \
                             knows the two applications, and ask its operator about the link between them";
const IN_USE: &str = "ask the KME's operator which application holds the stream";
const TIMEOUT: &str = "check the KME's load, and ask its operator about the link";
const QOS: &str = "have the KME's operator allow a Key_chunk_size of 32 bytes for this link";
const METADATA: &str =
    "ask the KME's vendor how much metadata it sends with a key; qvpn has room for 8,192 bytes";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_is_not_the_fault_of_the_kme() {
        for (status, side, kind) in [
            (2, Side::First, KmsErrorKind::Exhausted),
            (2, Side::Second, KmsErrorKind::KeyNotFound),
            (3, Side::First, KmsErrorKind::Exhausted),
            (3, Side::Second, KmsErrorKind::KeyNotFound),
            (4, Side::First, KmsErrorKind::BadRequest),
            (6, Side::Second, KmsErrorKind::ServerFault),
            (99, Side::First, KmsErrorKind::ServerFault),
        ] {
            assert_eq!(meaning(status, Service::GetKey, side).kind, kind, "{status} {side:?}");
        }
    }
}
