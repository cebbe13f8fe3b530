//! Finds the name of a peer in the comments of a wg-quick file. Different tools write it in different forms.

use std::net::IpAddr;

/// Comment keys that hold a peer's name, such as `# friendly_name = site-b`.
const NAME_KEYS: [&str; 6] = ["friendly_name", "name", "peer", "client", "host", "hostname"];
/// First words of comments that mark a peer's section, as scripts that manage WireGuard write them.
const MARKERS: [&str; 4] = ["begin_peer", "begin", "client", "peer"];
/// First words of comments that end a peer's section.
const END_MARKERS: [&str; 2] = ["end_peer", "end"];
/// Longer comments are sentences, not names.
const MAX_WORDS: usize = 4;
const MAX_CHARS: usize = 32;

/// A name that a comment gives.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum CommentName {
    /// The comment says that it is the peer's name.
    Marked(String),
    /// The comment can be a name.
    Plain(String),
}

impl CommentName {
    pub(super) fn into_name(self) -> String {
        match self {
            Self::Marked(name) | Self::Plain(name) => name,
        }
    }
}

/// Returns the name in the text after `#`, if it is one: `# Site B` is `site-b`.
pub(super) fn comment_name(comment: &str) -> Option<CommentName> {
    let text = comment.trim_matches(|c: char| c == '#' || c.is_whitespace());
    if let Some((key, value)) = text.split_once(['=', ':']) {
        let key = key.trim().to_lowercase();
        // Anything else with a value is a setting that was commented out, such as `#DNS = 1.1.1.1`.
        return NAME_KEYS.contains(&key.as_str()).then(|| as_name(value)).flatten().map(CommentName::Marked);
    }
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let first = first.to_lowercase();
    if END_MARKERS.contains(&first.as_str()) {
        return None;
    }
    if MARKERS.contains(&first.as_str()) && !rest.trim().is_empty() {
        return as_name(rest).map(CommentName::Marked);
    }
    as_name(text).map(CommentName::Plain)
}

/// Converts words to a peer's name.
fn as_name(text: &str) -> Option<String> {
    let text = text.trim().trim_matches(['"', '\'']).to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    let name = words.join("-");
    let plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let fits = (1..=MAX_WORDS).contains(&words.len())
        && (1..=MAX_CHARS).contains(&name.chars().count())
        && name.chars().any(char::is_alphanumeric)
        && !name.starts_with('-')
        && !name.starts_with("qvpn1-")
        && name.parse::<IpAddr>().is_err();
    (plain && fits).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_common_tools_are_names() {
        let marked = |name: &str| Some(CommentName::Marked(name.to_owned()));
        let plain = |name: &str| Some(CommentName::Plain(name.to_owned()));
        let rows = [
            (" Site B", plain("site-b")),
            (" BEGIN_PEER laptop", marked("laptop")),
            ("## begin laptop ###", marked("laptop")),
            ("## Client laptop", marked("laptop")),
            (" friendly_name = Büro Süd", marked("büro-süd")),
            (" Name: \"phone\"", marked("phone")),
            ("-peer", None),
            (" END_PEER laptop", None),
            ("## end laptop ###", None),
            ("DNS = 1.1.1.1", None),
            (" 1.1.1.1", None),
            (" PostUp: iptables -A", None),
            (" friendly_json={\"id\":1}", None),
            (" the gateway in the cellar of Bonn", None),
            ("----", None),
            ("", None),
            (" qvpn1-abc", None),
            (" name with a quote\"s", None),
        ];
        for (comment, name) in rows {
            assert_eq!(comment_name(comment), name, "{comment}");
        }
    }
}
