//! Finds the peer that an operator names: by name, public key or fingerprint, or by the beginning of one of
//! these if only one peer matches. An exact name always wins, so that `site-1` stays usable beside `site-10`.

/// Why no peer is selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No peer matches.
    #[error("no peer has the name or public key `{0}`; see `qvpn-ctl peer list`")]
    None(String),
    /// Several peers match.
    #[error("`{text}` matches {}; write more of the name or public key", some(.names))]
    Several {
        /// The text that the operator wrote.
        text: String,
        /// The names of the peers that match.
        names: Vec<String>,
    },
}

/// Returns the item that `text` names. `names` returns an item's name, public key (`qvpn1-…`) and
/// fingerprint.
///
/// # Errors
/// If no item or several items match.
pub fn find<T>(
    items: impl Iterator<Item = T>,
    text: &str,
    names: impl Fn(&T) -> (String, String, String),
) -> Result<T, LookupError> {
    let mut matching = Vec::new();
    for item in items {
        let (name, key, fingerprint) = names(&item);
        if name == text || key == text {
            return Ok(item);
        }
        // Each key begins with `qvpn1-`, so people copy the part after it.
        let bare_key = key.strip_prefix("qvpn1-").unwrap_or(&key);
        let begins = [name.as_str(), &key, bare_key, &fingerprint].iter().any(|of| of.starts_with(text));
        if begins && !text.is_empty() {
            matching.push((item, name));
        }
    }
    match matching.len() {
        0 => Err(LookupError::None(text.to_owned())),
        1 => Ok(matching.remove(0).0),
        _ => {
            let names = matching.into_iter().map(|(_, name)| name).collect();
            Err(LookupError::Several { text: text.to_owned(), names })
        }
    }
}

/// Lists the first names, and how many more there are.
fn some(names: &[String]) -> String {
    const MAX_SHOWN_NAMES: usize = 4;
    let shown = names.iter().take(MAX_SHOWN_NAMES).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_SHOWN_NAMES) {
        0 => shown,
        more => format!("{shown} or {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEERS: [(&str, &str, &str); 4] = [
        ("site-1", "qvpn1-AAbb", "abcd-1"),
        ("site-10", "qvpn1-AAcc", "abce-2"),
        ("büro", "qvpn1-Zz", "wxyz-3"),
        ("qv", "qvpn1-Yy", "wxya-4"),
    ];

    fn found(text: &str) -> Result<&'static str, String> {
        let names = |p: &(&str, &str, &str)| (p.0.to_owned(), p.1.to_owned(), p.2.to_owned());
        find(PEERS.into_iter(), text, names).map(|p| p.0).map_err(|e| e.to_string())
    }

    #[test]
    fn a_prefix_of_a_name_key_or_fingerprint_selects_the_only_peer_that_has_it() {
        let rows = [
            ("site-1", "site-1"),
            ("site-10", "site-10"),
            ("b", "büro"),
            ("bü", "büro"),
            ("qvpn1-AAb", "site-1"),
            ("AAc", "site-10"),
            ("qvpn1-Zz", "büro"),
            ("abcd", "site-1"),
            ("qv", "qv"),
        ];
        for (text, name) in rows {
            assert_eq!(found(text), Ok(name), "{text}");
        }
    }

    #[test]
    fn an_ambiguous_name_is_asked_for() {
        assert_eq!(
            found("site").unwrap_err(),
            "`site` matches site-1, site-10; write more of the name or public key"
        );
        assert!(found("qvpn1-").unwrap_err().contains("site-1, site-10, büro, qv;"));
        for text in ["", "site-2", "Site-1", "qvpn1-AAbbb"] {
            assert!(found(text).unwrap_err().starts_with("no peer has the name or public key"), "{text}");
        }
    }
}
