//! Recognises an error answer that a proxy in front of the KME wrote itself.

/// The proxies that are recognised by their own error pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intermediary {
    Nginx,
    HaProxy,
    Envoy,
    Apache,
    /// A web page with an error status, which a KME with a JSON interface has no reason to send.
    Unknown,
}

impl Intermediary {
    /// Returns the subject of the sentence "… answers".
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::Apache => "Apache",
            Self::Unknown => "a web server",
        }
    }
}

/// HAProxy's own pages name no product; they contain only these sentences.
const HAPROXY: &[&str] = &[
    "no server is available to handle this request",
    "the server returned an invalid or incomplete response",
    "the server didn't respond in time",
    "request forbidden by administrative rules",
    "your browser sent an invalid request",
    "your browser didn't send a complete request in time",
];

const ENVOY: &[&str] = &[
    "upstream connect error or disconnect/reset before headers",
    "upstream request timeout",
    "no healthy upstream",
    "rbac: access denied",
    "no cluster match for",
];

/// Identifies the proxy that wrote an error answer, by its text in lower case. `is_page` says that the body
/// is HTML.
pub(crate) fn identify(text: &str, is_page: bool) -> Option<Intermediary> {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(ENVOY) {
        return Some(Intermediary::Envoy);
    }
    if !is_page {
        return None;
    }
    Some(if has(HAPROXY) {
        Intermediary::HaProxy
    } else if has(&["nginx", "openresty"]) {
        Intermediary::Nginx
    } else if has(&["apache/", "the proxy server received", "the proxy server could not"]) {
        Intermediary::Apache
    } else {
        Intermediary::Unknown
    })
}

/// Whether the KME may have carried out a request to which a proxy gave this answer. The text is in lower
/// case.
pub(crate) fn request_may_be_done(status: u16, text: &str) -> bool {
    match status {
        502 | 504 => true,
        503 => text.contains("disconnect/reset before headers") && !text.contains("connection failure"),
        _ => false,
    }
}
