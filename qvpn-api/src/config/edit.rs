//! Edits one peer in the text of a config and keeps everything else: comments, order, blank lines. The daemon
//! applies the same edit to the running config, and `qvpn-ctl … --save` to the file.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table};

use super::edit_array::merge_array;
use super::reference::REFERENCE;

/// A change of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "edit", rename_all = "snake_case")]
pub enum PeerEdit {
    /// Adds a section `[[peer]]` after the others.
    Add {
        /// The section's lines, as TOML.
        settings: String,
    },
    /// Changes some keys of a peer.
    Set {
        /// The peer's whole name.
        peer: String,
        /// The new values, as lines of TOML.
        settings: String,
        /// Keys to remove, so that their defaults apply.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unset: Vec<String>,
    },
    /// Removes the section and the comments right above it.
    Remove {
        /// The peer's whole name.
        peer: String,
    },
}

impl PeerEdit {
    /// Whether the change only disables or enables a peer, as `peer disable` and `peer enable` do.
    #[must_use]
    pub fn only_disables_or_enables(&self) -> bool {
        match self {
            Self::Set { settings, unset, .. } => match settings.trim() {
                "disabled = true" => unset.is_empty(),
                "" => matches!(&unset[..], [key] if key == "disabled"),
                _ => false,
            },
            Self::Add { .. } | Self::Remove { .. } => false,
        }
    }
}

/// Why a config's text can't be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// `[interface]` is not a section, or `protect` is not a list.
    #[error("`protect` of [interface] is not a list; write `protect = [\"10.64.0.0/10\"]`")]
    NoProtect,
    /// The config isn't TOML.
    #[error("the config is not TOML ({0}); fix it first, `qvpn-ctl check` names each place")]
    Config(String),
    /// The settings aren't TOML.
    #[error("the settings are not TOML ({0}); write them as in the config")]
    Settings(String),
    /// The peers are written as `peer = [{…}]`.
    #[error("the config's peers are not sections; write each as `[[peer]]` and its lines")]
    NotSections,
    /// The peer doesn't exist.
    #[error("there is no peer \"{0}\" to change; see `qvpn-ctl peer list`, and whether it was saved")]
    NoPeer(String),
    /// The key to remove is not a key of `[[peer]]`.
    #[error("[[peer]] has no key `{0}`; its keys are \
     {keys}", keys = peer_keys().collect::<Vec<_>>().join(", "))]
    NoKey(String),
    /// The peer exists already.
    #[error("there is a peer \"{0}\" already; change it with `qvpn-ctl peer set`")]
    Exists(String),
}

/// Returns `text` with the change. [`Config::parse`](super::Config::parse) must still check the result.
///
/// # Errors
/// If the text isn't TOML, or the peer to change doesn't exist, or the peer to add does.
pub fn edit_peer(text: &str, edit: &PeerEdit) -> Result<String, EditError> {
    let mut document: DocumentMut =
        text.parse().map_err(|e: toml_edit::TomlError| EditError::Config(first_line(e.message())))?;
    let item = document.entry("peer").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let peers = item.as_array_of_tables_mut().ok_or(EditError::NotSections)?;
    let place = |peers: &ArrayOfTables, name: &str| peers.iter().position(|peer| name_of(peer) == Some(name));
    match edit {
        PeerEdit::Add { settings } => {
            let mut table = read(settings)?;
            if let Some(name) = name_of(&table).filter(|name| place(peers, name).is_some()) {
                return Err(EditError::Exists(name.to_owned()));
            }
            // A blank line before the section, unless the file is empty.
            table.decor_mut().set_prefix(if text.trim().is_empty() { "" } else { "\n" });
            peers.push(table);
        }
        PeerEdit::Set { peer, settings, unset } => {
            let at = place(peers, peer).ok_or_else(|| EditError::NoPeer(peer.clone()))?;
            if let Some(unknown) = unset.iter().find(|key| !peer_keys().any(|known| known == key.as_str())) {
                return Err(EditError::NoKey(unknown.clone()));
            }
            let new = read(settings)?;
            if let Some(table) = peers.get_mut(at) {
                unset.iter().for_each(|key| drop(table.remove(key)));
                new.into_iter().for_each(|(key, item)| set(table, &key, item));
            }
        }
        PeerEdit::Remove { peer } => {
            let at = place(peers, peer).ok_or_else(|| EditError::NoPeer(peer.clone()))?;
            peers.remove(at);
        }
    }
    let mut new = document.to_string();
    if !new.is_empty() && !new.ends_with('\n') {
        new.push('\n');
    }
    Ok(with_line_ends_of(text, new))
}

/// Returns `new` with the line ending that most lines of `text` have.
fn with_line_ends_of(text: &str, new: String) -> String {
    let (all, crlf) = (text.matches('\n').count(), text.matches("\r\n").count());
    match 2 * crlf > all {
        true => new.replace("\r\n", "\n").replace('\n', "\r\n"),
        false => new,
    }
}

/// Returns `text` with `prefixes` added to `protect` of `[interface]`.
///
/// # Errors
/// If the text isn't TOML, `[interface]` is not a section, or `protect` is not a list.
pub fn protect(text: &str, prefixes: &[IpNet]) -> Result<String, EditError> {
    let mut document: DocumentMut =
        text.parse().map_err(|e: toml_edit::TomlError| EditError::Config(first_line(e.message())))?;
    let interface = document.entry("interface").or_insert(Item::Table(Table::new()));
    let interface = interface.as_table_mut().ok_or(EditError::NoProtect)?;
    let list = interface.entry("protect").or_insert(Item::Value(Array::new().into()));
    let list = list.as_array_mut().ok_or(EditError::NoProtect)?;
    for prefix in prefixes.iter().map(ToString::to_string) {
        if !list.iter().any(|known| known.as_str() == Some(&prefix)) {
            list.push(prefix);
        }
    }
    Ok(document.to_string())
}

/// The keys that a section `[[peer]]` can have.
fn peer_keys() -> impl Iterator<Item = &'static str> {
    let sections = REFERENCE.iter().filter(|section| section.title == "[[peer]]");
    sections.flat_map(|section| section.keys).map(|key| key.name)
}

fn name_of(table: &Table) -> Option<&str> {
    table.get("name")?.as_str()
}

fn read(settings: &str) -> Result<Table, EditError> {
    let document: DocumentMut =
        settings.parse().map_err(|e: toml_edit::TomlError| EditError::Settings(first_line(e.message())))?;
    Ok(document.as_table().clone())
}

/// Replaces a value and keeps the text around it: a comment at the end of the line, and those in a list.
fn set(table: &mut Table, key: &str, mut item: Item) {
    if let (Some(old), Some(new)) = (table.get(key).and_then(Item::as_value), item.as_value_mut()) {
        *new.decor_mut() = old.decor().clone();
        if let (Some(old), Some(new)) = (old.as_array(), new.as_array_mut()) {
            merge_array(old, new);
        }
    }
    match table.get_mut(key) {
        Some(there) => *there = item,
        None => {
            table.insert(key, item);
        }
    }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# The gateway of Berlin.
[interface]
listen_port = 51820   # as agreed

# Our main partner.
[[peer]]
name = \"site-b\"  # in Bonn
endpoint = \"203.0.113.9:51820\"  # their firewall
allowed_ips = [
  \"10.20.0.0/16\",  # offices
]

# To be removed in May.
[[peer]]
name = \"site-c\"
allowed_ips = []

[kms]
sae_id = \"A\"
# The end.
";

    fn add(settings: &str) -> PeerEdit {
        PeerEdit::Add { settings: settings.to_owned() }
    }

    #[test]
    fn a_new_peer_stands_after_the_others_and_all_else_stays() {
        let new = edit_peer(TEXT, &add("name = \"site-d\"\nallowed_ips = [\"10.40.0.0/16\"]\n")).unwrap();
        let expected = TEXT.replace(
            "allowed_ips = []\n",
            "allowed_ips = []\n\n[[peer]]\nname = \"site-d\"\nallowed_ips = [\"10.40.0.0/16\"]\n",
        );
        assert_eq!(new, expected);
        assert_eq!(edit_peer(TEXT, &add("name = \"site-c\"")), Err(EditError::Exists("site-c".into())));
        assert_eq!(edit_peer("", &add("name = \"x\"\n")).unwrap(), "[[peer]]\nname = \"x\"\n");
        assert_eq!(
            edit_peer("[interface]", &add("name = \"x\"\n")).unwrap(),
            "[interface]\n\n[[peer]]\nname = \"x\"\n"
        );
    }

    #[test]
    fn a_value_changes_in_its_place_and_keeps_its_comment() {
        let set = |settings: &str, unset: &[&str]| PeerEdit::Set {
            peer: "site-b".into(),
            settings: settings.into(),
            unset: unset.iter().map(|s| (*s).to_owned()).collect(),
        };
        let new = edit_peer(TEXT, &set("endpoint = \"192.0.2.1:1\"\nqkd = \"off\"\n", &["suite"])).unwrap();
        let expected = TEXT
            .replace("203.0.113.9:51820", "192.0.2.1:1")
            .replace("# offices\n]\n", "# offices\n]\nqkd = \"off\"\n");
        assert_eq!(new, expected);
        let new = edit_peer(TEXT, &set("", &["endpoint"])).unwrap();
        assert_eq!(new, TEXT.replace("endpoint = \"203.0.113.9:51820\"  # their firewall\n", ""));
        let unknown = edit_peer(TEXT, &set("", &["endpoint", "endpiont"])).unwrap_err();
        assert_eq!(unknown, EditError::NoKey("endpiont".into()));
        assert!(
            unknown
                .to_string()
                .starts_with("[[peer]] has no key `endpiont`; its keys are name, public_key, ")
        );
    }

    #[test]
    fn a_peer_goes_with_the_comment_above_it() {
        let new = edit_peer(TEXT, &PeerEdit::Remove { peer: "site-c".into() }).unwrap();
        let gone = "\n# To be removed in May.\n[[peer]]\nname = \"site-c\"\nallowed_ips = []\n";
        assert_eq!(new, TEXT.replace(gone, ""));
        let missing = EditError::NoPeer("site-x".into());
        assert_eq!(edit_peer(TEXT, &PeerEdit::Remove { peer: "site-x".into() }), Err(missing));
    }

    #[test]
    fn a_list_keeps_the_comments_of_what_stays_in_it() {
        let set = |settings: &str| {
            let edit = PeerEdit::Set { peer: "site-b".into(), settings: settings.into(), unset: Vec::new() };
            edit_peer(TEXT, &edit).unwrap()
        };
        let two = set("allowed_ips = [\"10.20.0.0/16\", \"10.21.0.0/16\"]\n");
        assert_eq!(two, TEXT.replace("# offices\n]", "# offices\n  \"10.21.0.0/16\",\n]"));
        let other = set("allowed_ips = [\"10.21.0.0/16\"]\n");
        assert_eq!(other, TEXT.replace("\"10.20.0.0/16\",  # offices\n", "\"10.21.0.0/16\",\n"));
    }

    #[test]
    fn the_line_ends_of_the_file_stay() {
        let text = TEXT.replace('\n', "\r\n");
        let edit = PeerEdit::Set {
            peer: "site-b".into(),
            settings: "qkd = \"off\"\nallowed_ips = [\"10.20.0.0/16\", \"10.9.0.0/16\"]\n".into(),
            unset: Vec::new(),
        };
        let new = edit_peer(&text, &edit).unwrap();
        assert_eq!(new.replace("\r\n", "\n"), edit_peer(TEXT, &edit).unwrap());
        assert_eq!(new.matches('\n').count(), new.matches("\r\n").count(), "{new:?}");
    }

    #[test]
    fn an_edit_that_only_disables_or_enables_is_known() {
        let set = |settings: &str, unset: &[&str]| {
            let unset = unset.iter().map(|key| (*key).to_owned()).collect();
            PeerEdit::Set { peer: "b".into(), settings: settings.into(), unset }.only_disables_or_enables()
        };
        assert!(set("disabled = true\n", &[]) && set("", &["disabled"]));
        assert!(!set("disabled = true\nqkd = \"off\"\n", &[]) && !set("", &["disabled", "qkd"]));
        assert!(!set("disabled = true\n", &["qkd"]) && !set("", &[]));
        assert!(!PeerEdit::Remove { peer: "b".into() }.only_disables_or_enables());
    }

    #[test]
    fn kept_prefixes_go_to_protect_once() {
        let nets: Vec<IpNet> = ["10.20.0.0/16", "fd20::/64"].iter().map(|s| s.parse().unwrap()).collect();
        let new = protect(TEXT, &nets).unwrap();
        let line = "listen_port = 51820   # as agreed\n";
        let expected = TEXT.replace(line, &format!("{line}protect = [\"10.20.0.0/16\", \"fd20::/64\"]\n"));
        assert_eq!(new, expected);
        assert_eq!(protect(&new, &nets).unwrap(), new);
        let more = protect(&new, &["10.30.0.0/16".parse().unwrap()]).unwrap();
        assert!(more.contains("protect = [\"10.20.0.0/16\", \"fd20::/64\", \"10.30.0.0/16\"]"), "{more}");
        assert_eq!(protect("[interface]\nprotect = 1\n", &nets), Err(EditError::NoProtect));
    }

    #[test]
    fn what_cannot_be_edited_is_said() {
        assert!(matches!(edit_peer("x = ", &add("")), Err(EditError::Config(_))));
        assert!(matches!(edit_peer("", &add("x = ")), Err(EditError::Settings(_))));
        assert_eq!(edit_peer("peer = [{name = \"a\"}]\n", &add("name = \"b\"")), Err(EditError::NotSections));
    }
}
