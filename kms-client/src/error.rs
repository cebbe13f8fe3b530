//! The failures of operations at a KME: their kind, what was asked, what came back and what to do about it.

/// An operation at a KME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reading the config, before any request.
    Configure,
    /// Get status (ETSI GS QKD 014 clause 5.2).
    Status,
    /// Get key (clause 5.3): new keys, for the master SAE.
    EncKeys,
    /// Get key with key IDs (clause 5.4): the same keys, for the slave SAE.
    DecKeys,
}

impl Operation {
    /// Returns the name as in ETSI GS QKD 014, for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Status => "status",
            Self::EncKeys => "enc_keys",
            Self::DecKeys => "dec_keys",
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The step of an operation at which it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Looking up the host name.
    Resolve,
    /// Opening the TCP connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// Waiting for the head of the answer; the request may have been carried out.
    Answer,
    /// Reading the body of the answer.
    Body,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resolve => "while looking up the host name",
            Self::Connect => "while connecting",
            Self::Tls => "in the TLS handshake",
            Self::Answer => "while waiting for the answer",
            Self::Body => "while reading the answer",
        })
    }
}

/// What is wrong with TLS to the KME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFault {
    /// The KME's certificate is X.509 version 1, which can't carry a subject alternative name.
    Version1,
    /// The KME's certificate has no subject alternative name.
    NoSubjectAltName,
    /// The KME's certificate is for another name.
    WrongName,
    /// The KME's certificate has expired.
    Expired,
    /// The KME's certificate isn't valid yet.
    NotYetValid,
    /// No CA of `ca_file` issued the KME's certificate.
    UnknownCa,
    /// The KME presents a CA certificate as its own.
    CaAsServer,
    /// Another fault of the KME's certificate.
    BadCertificate,
    /// No TLS version, cipher suite or group is supported by both.
    NothingInCommon,
    /// The server at this address doesn't speak TLS.
    NotTls,
    /// Any other failure of the handshake.
    Other,
}

/// How an answer that claims success breaks the rules of its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Violation {
    /// The body isn't the JSON that the standard defines.
    Json,
    /// The body is a web page: another service answers, or another part of the KME.
    Page,
    /// The body is larger than [`MAX_BODY`](crate::MAX_BODY).
    TooLarge,
    /// More keys than requested.
    TooManyKeys,
    /// A key of another length than requested, or below 256 bits.
    KeySize,
    /// A key isn't base64.
    Base64,
    /// A key of zeros only.
    ZeroKey,
    /// A key ID that is empty or too long.
    KeyId,
    /// The same key ID twice.
    DuplicateId,
    /// The same key twice.
    DuplicateKey,
    /// A key ID that was not requested.
    OtherKeyId,
    /// A redirect, which is never followed.
    Redirect,
    /// An HTTP status that the interface doesn't use.
    Status,
    /// The answer isn't HTTP/1.
    Http,
    /// The answer isn't a message of ETSI GS QKD 004, or an incomplete one.
    Framing,
}

/// The kind of a failure, on which programs decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KmsErrorKind {
    /// Our own config or files.
    Config,
    /// No connection could be made, or it broke.
    Unreachable,
    /// TLS failed: usually the KME's certificate.
    Tls(TlsFault),
    /// The KME doesn't accept our certificate or SAE ID.
    IdentityRefused,
    /// The KME says that the request is wrong, or it doesn't know the other SAE.
    BadRequest,
    /// No keys at the moment.
    Exhausted,
    /// The KME doesn't know the key ID, or not yet: a slave KME may lag behind by seconds.
    KeyNotFound,
    /// The KME failed.
    ServerFault,
    /// A proxy in front of the KME answered; the KME behind it doesn't.
    Proxy,
    /// The other site's KME is down. Ours works, and no key was taken.
    PeerKmeDown,
    /// The two KMEs no longer have the same keys.
    OutOfSync,
    /// The KME's answer breaks the rules of the interface; no key of it is used.
    ProtocolViolation(Violation),
    /// The deadline passed, and no key is lost.
    Timeout(Phase),
    /// The deadline passed or the connection broke after `enc_keys` was sent: the keys may be spent.
    LostKeys(Phase),
    /// None of the KMEs can know the key ID, because another pair of KMEs issued it.
    NoSuchKme,
}

impl KmsErrorKind {
    /// Returns a fixed word for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Unreachable => "unreachable",
            Self::Tls(_) => "tls",
            Self::IdentityRefused => "identity_refused",
            Self::BadRequest => "bad_request",
            Self::Exhausted => "exhausted",
            Self::KeyNotFound => "key_not_found",
            Self::ServerFault => "server_fault",
            Self::Proxy => "proxy",
            Self::PeerKmeDown => "peer_kme_down",
            Self::OutOfSync => "out_of_sync",
            Self::ProtocolViolation(_) => "protocol_violation",
            Self::Timeout(_) => "timeout",
            Self::LostKeys(_) => "lost_keys",
            Self::NoSuchKme => "no_such_kme",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Config => "the config can't be used",
            Self::Unreachable => "not reachable",
            Self::Tls(_) => "TLS failed",
            Self::IdentityRefused => "the KME refuses our identity",
            Self::BadRequest => "the KME refuses the request",
            Self::Exhausted => "the KME has no key at the moment",
            Self::KeyNotFound => "the KME doesn't know the key (yet)",
            Self::ServerFault => "the KME failed",
            Self::Proxy => "a proxy answers in place of the KME",
            Self::PeerKmeDown => "the other site's KME is down",
            Self::OutOfSync => "the two KMEs are out of step",
            Self::ProtocolViolation(_) => "the answer breaks the rules of the interface",
            Self::Timeout(_) => "no answer in time",
            Self::LostKeys(_) => "the answer was lost, and with it perhaps keys",
            Self::NoSuchKme => "no KME of this site can know the key",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Config => "correct the KME's section of the config",
            Self::Unreachable => {
                "check that the KME runs, its url, and the firewall and routes between here and there"
            }
            Self::Tls(_) => "compare the TLS settings of both sides",
            Self::IdentityRefused => {
                "check that cert_file is the certificate that the KME's operator registered for our SAE \
                 ID, that it hasn't expired or been revoked, and that the KME trusts its CA"
            }
            Self::BadRequest => {
                "check the url's path, and that the KME's operator registered both SAE IDs and the link \
                 between them"
            }
            Self::Exhausted => {
                "wait for the link to make keys; if this stays, ask the KME's operator about the link's \
                 key rate, or raise rekey_interval"
            }
            Self::KeyNotFound => {
                "it is asked again for a while, since a KME may lag behind; if this stays, check that both \
                 KMEs belong to the same link, that their clocks and stores are in step, and that the \
                 other site names our SAE ID as its slave"
            }
            Self::ServerFault => "look into the KME's log, or ask its operator",
            Self::Proxy => {
                "check that the KME behind the proxy runs, and the upstream address in the proxy's config; \
                 the proxy's error log has the reason"
            }
            Self::PeerKmeDown => {
                "your own KME works: have the other site check its KME, and both operators the connection \
                 between the two KMEs; no key is lost, and the request is repeated each second"
            }
            Self::OutOfSync => {
                "one of the two KMEs probably lost its keys in a restart: ask both operators to \
                 synchronise them"
            }
            Self::ProtocolViolation(Violation::Page) => {
                "check the url's port and path: a page for browsers answers there, perhaps the KME's own \
                 or a sign-in; if they are right, ask the KME's vendor"
            }
            Self::ProtocolViolation(_) => {
                "nothing of this answer is used; report it to the KME's vendor, with this line"
            }
            Self::Timeout(_) => "check the KME's load and the path to it: a whole operation may take 5 s",
            Self::LostKeys(_) => {
                "the request isn't repeated by itself, since that would spend more keys; check the KME's \
                 load and the path to it: a whole operation may take 5 s"
            }
            Self::NoSuchKme => {
                "configure the KME that is linked with the other site's KME, or let both sites list the \
                 same links for this peer"
            }
        }
    }
}

/// What a failure is attributed to, which decides which breaker it trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Nothing: the KME works.
    Nothing,
    /// The KME's link to one peer. A wrongly configured peer must not cost the others their keys.
    Link,
    /// The KME of the other site. Ours works.
    PeerKme,
    /// The whole KME.
    Kme,
}

/// A failure of one operation at one KME. Holds no key material; `Display` is one line that names the KME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsError(Box<Details>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Details {
    kind: KmsErrorKind,
    kme: String,
    operation: Operation,
    peer_sae: String,
    status: Option<u16>,
    detail: String,
    excerpt: Option<String>,
    advice: Option<String>,
    keys_lost: u32,
    certain: bool,
    retry_in_s: Option<u64>,
}

impl KmsError {
    /// Makes a failure at `kme`; `peer_sae` is the other SAE that the operation was about, or empty.
    #[must_use]
    pub fn new(kind: KmsErrorKind, kme: &str, operation: Operation, peer_sae: &str) -> Self {
        Self(Box::new(Details {
            kind,
            kme: kme.to_owned(),
            operation,
            peer_sae: peer_sae.to_owned(),
            status: None,
            detail: String::new(),
            excerpt: None,
            advice: None,
            keys_lost: 0,
            certain: true,
            retry_in_s: None,
        }))
    }

    /// Adds our description of what happened.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// Replaces the kind's default advice.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Adds the HTTP status, and an excerpt of an error body.
    #[must_use]
    pub(crate) fn with_status(mut self, status: u16, excerpt: Option<String>) -> Self {
        self.0.status = Some(status);
        self.0.excerpt = excerpt;
        self
    }

    /// Adds the number of keys that may be spent without having arrived here.
    #[must_use]
    pub(crate) fn with_keys_lost(mut self, keys: u32) -> Self {
        self.0.keys_lost = keys;
        self
    }

    /// Marks the kind as certain or as the most likely one.
    #[must_use]
    pub(crate) fn with_certainty(mut self, certain: bool) -> Self {
        self.0.certain = certain;
        self
    }

    /// Returns this failure as the reason why no request is sent for the next seconds.
    #[must_use]
    pub(crate) fn not_asked_now(&self, retry_in_s: u64) -> Self {
        let mut error = self.clone();
        error.0.retry_in_s = Some(retry_in_s);
        error.0.keys_lost = 0;
        error
    }

    /// Whether the answer has no other possible meaning than [`kind`](Self::kind).
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.0.certain
    }

    #[must_use]
    pub fn kind(&self) -> KmsErrorKind {
        self.0.kind
    }

    /// Returns the KME's name in the config.
    #[must_use]
    pub fn kme(&self) -> &str {
        &self.0.kme
    }

    #[must_use]
    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    /// Returns the peer's SAE ID; empty if the operation concerned no peer.
    #[must_use]
    pub fn peer_sae(&self) -> &str {
        &self.0.peer_sae
    }

    /// Returns the HTTP status, if there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// Returns the KME's message, in at most 200 characters; never from an answer that could hold keys.
    #[must_use]
    pub fn excerpt(&self) -> Option<&str> {
        self.0.excerpt.as_deref()
    }

    /// Returns what this failure is attributed to.
    #[must_use]
    pub fn blame(&self) -> Blame {
        use KmsErrorKind as K;
        match self.0.kind {
            K::BadRequest | K::Exhausted | K::KeyNotFound | K::NoSuchKme => Blame::Nothing,
            // An HTTP status may concern one pair of SAEs; TLS concerns us.
            K::IdentityRefused if self.0.status.is_some() => Blame::Link,
            K::ProtocolViolation(Violation::Http | Violation::Framing) => Blame::Kme,
            K::PeerKmeDown => Blame::PeerKme,
            K::Config | K::ServerFault | K::OutOfSync | K::ProtocolViolation(_) => Blame::Link,
            K::Unreachable | K::Proxy | K::Tls(_) | K::IdentityRefused | K::Timeout(_) | K::LostKeys(_) => {
                Blame::Kme
            }
        }
    }

    /// Returns how many keys may have left the KME's store without being used.
    #[must_use]
    pub fn keys_lost(&self) -> u32 {
        self.0.keys_lost
    }

    /// Returns what to do about it, for the operator.
    #[must_use]
    pub fn advice(&self) -> &str {
        self.0.advice.as_deref().unwrap_or(self.0.kind.advice())
    }
}

impl std::fmt::Display for KmsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let e = &*self.0;
        write!(f, "KME {}: {}", e.kme, e.operation)?;
        if !e.peer_sae.is_empty() {
            write!(f, " for SAE {}", e.peer_sae)?;
        }
        write!(f, ": {}{}", if e.certain { "" } else { "probably " }, e.kind.in_words())?;
        if let KmsErrorKind::Timeout(phase) | KmsErrorKind::LostKeys(phase) = e.kind {
            write!(f, ", {phase}")?;
        }
        if let Some(status) = e.status {
            write!(f, ", HTTP {status}")?;
        }
        if !e.detail.is_empty() {
            write!(f, ": {}", e.detail)?;
        }
        if let Some(excerpt) = &e.excerpt {
            write!(f, ": it says \"{excerpt}\"")?;
        }
        if let Some(seconds) = e.retry_in_s {
            write!(f, " (not asked now, again in {seconds} s)")?;
        }
        match e.keys_lost {
            0 => Ok(()),
            1 => f.write_str(" (1 key may be lost)"),
            n => write!(f, " (up to {n} keys may be lost)"),
        }
    }
}

impl std::error::Error for KmsError {}
