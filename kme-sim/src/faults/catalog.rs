//! The catalogue of faults, and the operations for which each can be set. Real servers or networks show each
//! fault, and a client must survive it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::api::Op;

/// A fault, or none. "Not carried out" means that the request spends no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Misbehaviour {
    /// No fault.
    #[default]
    None,

    /// The port is closed and open connections are cut.
    RefuseTcp,
    /// TCP is accepted, and the TLS handshake never continues.
    StallTls,
    /// The port answers in HTTP without TLS.
    NoTls,
    /// Only TLS 1.2 is accepted.
    #[serde(rename = "tls12_only")]
    #[value(name = "tls12_only")]
    Tls12Only,
    /// No hybrid group is offered: key exchange by elliptic curves only.
    NoMlkem,
    /// A certificate of X.509 version 1.
    CertV1,
    /// A certificate without a subject alternative name.
    CertNoSan,
    /// A certificate for another KME.
    CertOtherName,
    /// A certificate that has expired.
    CertExpired,
    /// A certificate that isn't valid yet.
    CertNotYetValid,
    /// A certificate of an unknown CA.
    CertUnknownCa,
    /// A CA's own certificate as the server's.
    CertIsCa,
    /// Every client's certificate is refused as revoked.
    ClientRevoked,
    /// Every client's certificate is refused as one of an unknown CA.
    ClientUnknownCa,
    /// Every client's certificate is refused as expired.
    ClientExpired,

    /// TLS and the request are accepted, and no answer ever comes; not carried out.
    Hang,
    /// The answer comes after three seconds.
    Slow,
    /// The connection is closed without an answer; not carried out.
    Close,
    /// Carried out, then the connection is closed without an answer.
    LoseAnswer,
    /// Carried out, and the connection is closed in the middle of the answer.
    CutBody,
    /// 200 and a body of one byte a second that never ends; not carried out.
    SlowBody,
    /// 200 and a body that never ends, as fast as the client reads; not carried out.
    EndlessBody,
    /// 200 and 10 MB of valid JSON; not carried out.
    HugeBody,
    /// 200 with an HTML page; not carried out.
    Html,
    /// 200 with incomplete JSON; not carried out.
    RubbishJson,
    /// 200 with an empty body; not carried out.
    EmptyBody,
    /// A redirect to another address; not carried out.
    Redirect,
    /// A correct answer with the content type text/plain.
    WrongType,
    /// The answer has fields that the standard doesn't define.
    ExtraFields,
    /// 405 for GET.
    NoGet,
    /// 405 for POST.
    NoPost,
    /// 400 with an error body; not carried out.
    #[serde(rename = "http_400")]
    #[value(name = "http_400")]
    Http400,
    /// 401 without a body; not carried out.
    #[serde(rename = "http_401")]
    #[value(name = "http_401")]
    Http401,
    /// 403 with an error body; not carried out.
    #[serde(rename = "http_403")]
    #[value(name = "http_403")]
    Http403,
    /// 404 with an error body; not carried out.
    #[serde(rename = "http_404")]
    #[value(name = "http_404")]
    Http404,
    /// 409 with an error body; not carried out.
    #[serde(rename = "http_409")]
    #[value(name = "http_409")]
    Http409,
    /// 412 with an error body; not carried out.
    #[serde(rename = "http_412")]
    #[value(name = "http_412")]
    Http412,
    /// 422 with an error body; not carried out.
    #[serde(rename = "http_422")]
    #[value(name = "http_422")]
    Http422,
    /// 429 with an error body; not carried out.
    #[serde(rename = "http_429")]
    #[value(name = "http_429")]
    Http429,
    /// 500 with an error body; not carried out.
    #[serde(rename = "http_500")]
    #[value(name = "http_500")]
    Http500,
    /// 502 with an error body; not carried out.
    #[serde(rename = "http_502")]
    #[value(name = "http_502")]
    Http502,
    /// 503 with an error body; not carried out.
    #[serde(rename = "http_503")]
    #[value(name = "http_503")]
    Http503,
    /// 504 with an error body; not carried out.
    #[serde(rename = "http_504")]
    #[value(name = "http_504")]
    Http504,
    /// 503 with an HTML page; not carried out.
    ErrorHtml,
    /// 503 without a body; not carried out.
    ErrorEmpty,
    /// 504 that says that the other KME is down; not carried out.
    PeerKmeDown,
    /// 502 from nginx in place of the KME; not carried out.
    ProxyNginx,
    /// 503 from HAProxy in place of the KME; not carried out.
    ProxyHaproxy,
    /// 503 from Envoy in place of the KME; not carried out.
    ProxyEnvoy,
    /// 400 from nginx for a client certificate that it refuses; not carried out.
    ProxyCertificate,
    /// 422 with FastAPI's `{"detail":[…]}`; not carried out.
    ErrorDetail,
    /// 500 with 10 MB of text; not carried out.
    ErrorHuge,

    /// Carried out, but each key in the answer is one byte short.
    WrongSize,
    /// 200 with no keys; not carried out.
    EmptyList,
    /// Half of the requested keys, at least one. At the master the rest is not taken, at the slave it is
    /// spent.
    FewerKeys,
    /// 200 with 10,000 keys; not carried out.
    TooManyKeys,
    /// Carried out, but the first key comes twice with its ID: in place of the second, or added to a single
    /// key.
    Duplicate,
    /// Carried out, but the first key's bytes come again under the second ID, or under an unknown ID if
    /// there was one key.
    SameKey,
    /// Carried out, but the first ID comes again with the second key, or with a random key if there was one
    /// key.
    SameId,
    /// Carried out, but the first two keys of the answer have each other's IDs; a single key is not changed.
    SwapKeys,
    /// Carried out, but the answer has unknown IDs.
    UnknownId,
    /// Carried out, but each key's bytes differ from the peer's.
    WrongBytes,
    /// Carried out, but each key has only zero bytes.
    ZeroKeys,
    /// Carried out, but the keys aren't valid base64.
    BadBase64,
    /// Carried out, but the keys are base64 of the URL alphabet, without padding.
    UrlBase64,
    /// Carried out, but each ID is a JSON number.
    NumericIds,
    /// A request for more than one key is refused, and the status says so.
    OneKeyPerRequest,

    /// One key; `number` is ignored.
    IgnoreNumber,
    /// One key, and `number` is ignored, but only in a GET.
    IgnoreNumberGet,
    /// Keys of 128 bits; `size` is ignored.
    IgnoreSize,
    /// Sizes are bytes: `size` 256 gives 2,048 bits, and status has its sizes in bytes.
    SizeInBytes,
    /// Keys of 32 bits if the request specifies no size, and the status says so.
    #[serde(rename = "default_32_bits")]
    #[value(name = "default_32_bits")]
    Default32Bits,
    /// IDs that aren't UUIDs: long, of mixed case, with characters that URLs and JSON escape.
    OddIds,
    /// The first key of each request never reaches the slave.
    LoseFirst,
    /// Keys of the same master and slaves that were taken before and not fetched yet are forgotten.
    ForgetPrevious,
    /// Each request gets the key and the ID of the first one.
    RepeatKeys,
    /// Each request gets the ID of the first one, with another key.
    RepeatId,

    /// A key is "not found" until three seconds after the master took it.
    LateSync,
    /// The requested keys are forgotten, and "not found".
    ForgetKeys,
    /// A key that was fetched by its ID stays in store and is delivered again.
    DeliverTwice,

    /// `stored_key_count` is always 0.
    CountZero,
    /// `stored_key_count` is always `max_key_count`.
    CountMax,
    /// `stored_key_count` is random.
    CountRandom,
    /// `stored_key_count` counts the keys that the slave has not fetched yet instead of the available ones.
    CountWaiting,
    /// The limits and the SAE IDs are missing.
    MissingFields,
    /// Numbers are strings.
    NumbersAsText,

    // Of ETSI GS QKD 004 alone, where `status` is OPEN_CONNECT and CLOSE, and the others are GET_KEY.
    /// As ETSI's C reference: one request a connection, and a padded mimetype is read as a string.
    CReference,
    /// OPEN_CONNECT gives status 7 and proposes chunks of 64 bytes.
    CounterProposal,
    /// OPEN_CONNECT is answered with another stream's ID.
    OtherKsid,
    /// OPEN_CONNECT gives status 1, and GET_KEY status 3; not carried out.
    PeerMissing,
    /// Status 4; not carried out.
    NoLink,
    /// Status 6; not carried out.
    StreamTimeout,
    /// Carried out, and the connection is closed after half a header.
    HalfHeader,
    /// Carried out, and the answer announces 4 GB.
    HugeLength,
    /// Carried out, and the answer has the code of another service.
    WrongService,
    /// Carried out, and the answer has the index before the one asked for.
    IndexBackwards,
    /// Carried out, and the metadata is announced with 4 GB.
    HugeMetadata,
    /// Status 8: the metadata needs 4,096 bytes.
    MoreMetadata,
}

/// The operations for which a fault is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Ops {
    /// Get status.
    Status,
    /// Get key.
    EncKeys,
    /// Get key with key IDs.
    DecKeys,
    /// All operations for which the fault can be set.
    #[default]
    All,
}

/// The fault can't be set for the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotApplicable {
    /// It is a fault of the port, before any operation.
    #[error("this is a fault of the whole port; set it for op \"all\"")]
    WholePort,
    /// It is for other operations.
    #[error("{0} doesn't support this fault; set it for {1} or all")]
    OtherOps(&'static str, &'static str),
}

/// One KME's faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Faults {
    /// The fault of TCP and TLS.
    pub port: Misbehaviour,
    pub status: Misbehaviour,
    pub enc_keys: Misbehaviour,
    pub dec_keys: Misbehaviour,
}

impl Faults {
    /// Returns these faults with `how` set for `ops`. A fault of operations that is set for all clears the
    /// others.
    ///
    /// # Errors
    /// [`NotApplicable`] if `how` can't be set for `ops`.
    pub fn with(mut self, ops: Ops, how: Misbehaviour) -> Result<Self, NotApplicable> {
        if how.is_of_port() {
            return match ops {
                Ops::All => Ok(Self { port: how, ..self }),
                _ => Err(NotApplicable::WholePort),
            };
        }
        let if_it_can = |op| if how.is_for(op) { how } else { Misbehaviour::None };
        let (slot, op) = match ops {
            Ops::All => {
                return Ok(Self {
                    port: Misbehaviour::None,
                    status: if_it_can(Op::Status),
                    enc_keys: if_it_can(Op::EncKeys),
                    dec_keys: if_it_can(Op::DecKeys),
                });
            }
            Ops::Status => (&mut self.status, Op::Status),
            Ops::EncKeys => (&mut self.enc_keys, Op::EncKeys),
            Ops::DecKeys => (&mut self.dec_keys, Op::DecKeys),
        };
        if !how.is_for(op) {
            return Err(NotApplicable::OtherOps(op.name(), how.places()));
        }
        *slot = how;
        Ok(self)
    }

    /// Returns the fault of `op`.
    #[must_use]
    pub fn of(&self, op: Op) -> Misbehaviour {
        match op {
            Op::Status => self.status,
            Op::EncKeys => self.enc_keys,
            Op::DecKeys => self.dec_keys,
        }
    }
}

impl Misbehaviour {
    /// Whether it is a fault of TCP or TLS, before any operation.
    #[must_use]
    pub fn is_of_port(self) -> bool {
        use Misbehaviour as M;
        matches!(
            self,
            M::RefuseTcp
                | M::StallTls
                | M::NoTls
                | M::Tls12Only
                | M::NoMlkem
                | M::CertV1
                | M::CertNoSan
                | M::CertOtherName
                | M::CertExpired
                | M::CertNotYetValid
                | M::CertUnknownCa
                | M::CertIsCa
                | M::ClientRevoked
                | M::ClientUnknownCa
                | M::ClientExpired
        )
    }

    /// Whether it can be set for `op`.
    #[must_use]
    pub fn is_for(self, op: Op) -> bool {
        match self.places() {
            "" => false,
            "each" => true,
            places => places.split(", ").any(|place| place == op.name()),
        }
    }

    /// Returns the operations for which it can be set; empty for a fault of the port.
    #[must_use]
    pub fn places(self) -> &'static str {
        use Misbehaviour as M;
        match self {
            port if port.is_of_port() => "",
            M::WrongSize
            | M::EmptyList
            | M::FewerKeys
            | M::TooManyKeys
            | M::Duplicate
            | M::SameKey
            | M::SameId
            | M::SwapKeys
            | M::UnknownId
            | M::WrongBytes
            | M::ZeroKeys
            | M::BadBase64
            | M::UrlBase64
            | M::NumericIds
            | M::NoPost => "enc_keys, dec_keys",
            M::IgnoreNumber
            | M::IgnoreNumberGet
            | M::IgnoreSize
            | M::OddIds
            | M::LoseFirst
            | M::ForgetPrevious
            | M::RepeatKeys
            | M::RepeatId => "enc_keys",
            M::SizeInBytes | M::Default32Bits => "status, enc_keys",
            M::LateSync | M::ForgetKeys | M::DeliverTwice => "dec_keys",
            M::CountZero
            | M::CountMax
            | M::CountRandom
            | M::CountWaiting
            | M::MissingFields
            | M::NumbersAsText
            | M::CReference
            | M::CounterProposal
            | M::OtherKsid => "status",
            M::IndexBackwards | M::HugeMetadata | M::MoreMetadata => "enc_keys, dec_keys",
            _ => "each",
        }
    }

    /// Whether only ETSI GS QKD 004 can show it.
    #[must_use]
    pub fn is_of_streams(self) -> bool {
        use Misbehaviour as M;
        matches!(
            self,
            M::CReference
                | M::CounterProposal
                | M::OtherKsid
                | M::PeerMissing
                | M::NoLink
                | M::StreamTimeout
                | M::HalfHeader
                | M::HugeLength
                | M::WrongService
                | M::IndexBackwards
                | M::HugeMetadata
                | M::MoreMetadata
        )
    }

    /// Returns the status code of a fault that consists of a status code with an error body.
    #[must_use]
    pub fn http_status(self) -> Option<u16> {
        use Misbehaviour as M;
        Some(match self {
            M::Http400 => 400,
            M::Http401 => 401,
            M::Http403 => 403,
            M::Http404 => 404,
            M::Http409 => 409,
            M::Http412 => 412,
            M::Http422 => 422,
            M::Http429 => 429,
            M::Http500 => 500,
            M::Http502 => 502,
            M::Http503 => 503,
            M::Http504 => 504,
            _ => return None,
        })
    }

    /// Returns the name in commands.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_one_name_and_a_place() {
        for how in Misbehaviour::value_variants() {
            let json = serde_json::to_string(how).unwrap();
            assert_eq!(json, format!("{:?}", how.name()), "the socket and the command line agree");
            let somewhere = how.is_of_port()
                || [Op::Status, Op::EncKeys, Op::DecKeys].into_iter().any(|op| how.is_for(op));
            assert!(somewhere, "{how:?}");
        }
    }

    #[test]
    fn a_fault_is_set_where_it_can_be() {
        use Misbehaviour as M;
        let faults = Faults::default().with(Ops::All, M::CertExpired).unwrap();
        assert_eq!(faults, Faults { port: M::CertExpired, ..Faults::default() });
        let faults = faults.with(Ops::EncKeys, M::OddIds).unwrap();
        assert_eq!((faults.port, faults.enc_keys, faults.dec_keys), (M::CertExpired, M::OddIds, M::None));
        let faults = faults.with(Ops::All, M::SizeInBytes).unwrap();
        assert_eq!(faults.with(Ops::All, M::None), Ok(Faults::default()));
        assert_eq!(faults, Faults { status: M::SizeInBytes, enc_keys: M::SizeInBytes, ..Faults::default() });
        assert_eq!(faults.with(Ops::Status, M::StallTls), Err(NotApplicable::WholePort));
        assert_eq!(
            faults.with(Ops::DecKeys, M::OddIds),
            Err(NotApplicable::OtherOps("dec_keys", "enc_keys"))
        );
    }
}
