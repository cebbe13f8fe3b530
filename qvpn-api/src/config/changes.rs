//! What differs between two configs, key by key: for a dry run, for events and for the record of changes; and
//! which of these keys a running daemon can't change.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::access::Access;
use super::model::{
    ClientKey, Config, Dscp, Interface, Kme, KmeAccess, KmeServer, Kms, Mtu, Peer, StreamOptions, Table,
};

/// One key of a config whose value changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// The peer's name; absent for a key of another section.
    pub peer: Option<String>,
    /// The key of `[[peer]]`; in other sections with the section, as `interface.mtu` or `kms.kme.kme-a1.url`.
    pub key: String,
    /// The former value as text; absent where the key was not written, or the section is new.
    pub from: Option<String>,
    /// The new value.
    pub to: Option<String>,
}

/// `peer site-b: qkd: required -> off`.
impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(peer) = &self.peer {
            write!(f, "peer {peer}: ")?;
        }
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        write!(f, "{}: {} -> {}", self.key, value(&self.from), value(&self.to))
    }
}

impl KeyChange {
    /// What other public keys of a peer do.
    fn effect_of_public_key(&self) -> Option<&'static str> {
        let (from, to) = (self.from.as_ref()?, self.to.as_ref());
        let stays = |key: &str| values(to).any(|new| new == key);
        match (values(Some(from)).all(stays), values(Some(from)).any(stays)) {
            (true, _) => Some("this peer may use either key; traffic goes on"),
            (_, true) => {
                Some("traffic goes on if the key that stays is in use; otherwise it ends until it is")
            }
            _ => Some("traffic with this peer ends until it uses the new key"),
        }
    }

    /// What the change does to traffic, in words; `None` if traffic doesn't notice it.
    #[must_use]
    pub fn effect(&self) -> Option<&'static str> {
        let effect = match (self.peer.is_some(), self.key.as_str()) {
            (true, "public_key") if self.to.is_none() => {
                "traffic with this peer ends at once; its networks stay blocked"
            }
            (true, "public_key") => self.effect_of_public_key()?,
            (true, "disabled") if self.to.is_some() => {
                "traffic with this peer ends at once; its networks stay blocked"
            }
            (true, "allowed_ips") => {
                "networks that leave the list stay blocked; new ones go through the tunnel"
            }
            (true, "tunnel_address") => "kernel routes lead to this peer by the new next hops",
            (true, "endpoint") => "packets to this peer go to the new endpoint at once",
            (true, "qkd") if self.to.as_deref() == Some("required") => {
                "traffic with this peer stops at once if its key has no QKD part"
            }
            (true, "qkd") if self.to.as_deref() == Some("off") => {
                "the next key with this peer has no QKD part"
            }
            (true, "qkd") => "traffic with this peer goes on without QKD when keys are missing",
            (true, "preshared_key") | (true, "preshared_key_file") => {
                "the peer must have the same pre-shared key before the key in use expires"
            }
            (true, "sae_id" | "kmes" | "role" | "suite") => {
                "the next key is made with it; the key in use serves until then"
            }
            (false, "interface.private_key_file" | "interface.private_key") => {
                "peers are called with the new key; traffic goes on with those that have it in their configs"
            }
            (false, "interface.table" | "interface.fwmark") => "routes and rules of all peers are made again",
            (false, "interface.mtu") => "the device's MTU changes; open connections adapt to it",
            (false, "interface.address") => "connections from a removed address break",
            (false, "interface.protect" | "interface.local") => "the block changes: see docs/fail-closed.md",
            (false, "interface.on_stop") => "decides whether traffic may leave in clear after a stop",
            (false, key) if key.starts_with("kms.") => "keys are fetched with it from now on",
            _ => return None,
        };
        Some(effect)
    }
}

/// The values of a list as a change has it.
fn values(list: Option<&String>) -> impl Iterator<Item = &str> {
    list.into_iter().flat_map(|list| list.split(", "))
}

/// Each key whose value differs, in the order of the sections. A peer is the same if it has the same name or,
/// where no peer has its name, the same public key. Secrets in files are not compared.
#[must_use]
pub fn changes(old: &Config, new: &Config) -> Vec<KeyChange> {
    compare_all(old, new).into_iter().map(|(change, _)| change).collect()
}

/// Those of [`changes`] that take effect only when the daemon is restarted.
#[must_use]
pub fn changes_at_restart(old: &Config, new: &Config) -> Vec<KeyChange> {
    let all = compare_all(old, new).into_iter();
    all.filter(|(_, effective)| *effective == Effective::AtRestart).map(|(change, _)| change).collect()
}

fn compare_all(old: &Config, new: &Config) -> Vec<(KeyChange, Effective)> {
    let mut found = Vec::new();
    compare(None, "interface.", &interface_rows(&old.interface), &interface_rows(&new.interface), &mut found);
    let kms = |config: &Config| config.kms.as_ref().map_or_else(Vec::new, kms_rows);
    compare(None, "kms.", &kms(old), &kms(new), &mut found);
    compare(None, "access.", &access_rows(old), &access_rows(new), &mut found);
    let audit = |config: &Config| Rows::default().add("epochs", config.audit_epochs).0;
    compare(None, "audit.", &audit(old), &audit(new), &mut found);
    let mut known = BTreeSet::new();
    for peer in &new.peers {
        let former = old.peers.iter().find(|p| p.name == peer.name).or_else(|| {
            let taken = |name: &str| new.peers.iter().any(|p| p.name == name);
            old.peers.iter().find(|p| p.shares_key(peer) && !taken(&p.name))
        });
        known.extend(former.map(|former| former.name.as_str()));
        let rows = former.map_or_else(Vec::new, peer_rows);
        compare(Some(&peer.name), "", &rows, &peer_rows(peer), &mut found);
    }
    for gone in old.peers.iter().filter(|peer| !known.contains(peer.name.as_str())) {
        compare(Some(&gone.name), "", &peer_rows(gone), &[], &mut found);
    }
    found
}

/// When a new value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effective {
    AtReload,
    AtRestart,
}

/// A key and its value as text. A key with an unremarkable default has no row.
struct Row {
    key: String,
    value: String,
    effective: Effective,
}

fn compare(
    peer: Option<&str>,
    section: &str,
    old: &[Row],
    new: &[Row],
    found: &mut Vec<(KeyChange, Effective)>,
) {
    let value = |rows: &[Row], key: &str| rows.iter().find(|row| row.key == key).map(|row| row.value.clone());
    let added = new.iter().filter(|row| value(old, &row.key).is_none());
    for row in old.iter().chain(added) {
        let (from, to) = (value(old, &row.key), value(new, &row.key));
        if from != to {
            let (peer, key) = (peer.map(str::to_owned), format!("{section}{}", row.key));
            found.push((KeyChange { peer, key, from, to }, row.effective));
        }
    }
}

/// Collects rows.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn add(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        let (key, value) = (key.into(), value.to_string());
        self.0.push(Row { key, value, effective: Effective::AtReload });
        self
    }

    /// A key that a running daemon can't change.
    fn at_restart(mut self, key: &str, value: Option<impl ToString>) -> Self {
        let row = |value: String| Row { key: key.to_owned(), value, effective: Effective::AtRestart };
        self.0.extend(value.map(|value| row(value.to_string())));
        self
    }

    fn opt(self, key: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.add(key, value),
            None => self,
        }
    }

    /// A list; an empty one is left out.
    fn list(self, key: &str, values: impl IntoIterator<Item = impl ToString>) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        self.opt(key, (!values.is_empty()).then(|| values.join(", ")))
    }
}

/// The keys of `[interface]`. The struct is taken apart, so that a new key does not compile before it has a
/// row, and with the row a decision about when a new value takes effect.
fn interface_rows(interface: &Interface) -> Vec<Row> {
    let Interface {
        name,
        private_key_file,
        listen_port,
        address,
        mtu,
        suite,
        rekey_interval,
        min_rekey_interval,
        liveness,
        lanes,
        table,
        fwmark,
        dscp,
        on_stop,
        protect,
        local,
        routes,
        routes_table,
        local_connected,
        metrics_listen,
        log_level,
        include,
    } = interface;
    let mtu = match mtu {
        Mtu::Auto => "auto".to_owned(),
        Mtu::Bytes(bytes) => bytes.to_string(),
    };
    let table = match table {
        Table::Auto => "auto".to_owned(),
        Table::Off => "off".to_owned(),
        Table::Id(id) => id.to_string(),
    };
    let dscp = match dscp {
        Dscp::Inherit => "inherit".to_owned(),
        Dscp::Value(value) => value.to_string(),
    };
    let connected = local_connected.then(|| "connected".to_owned()).into_iter();
    Rows::default()
        .at_restart("name", Some(name))
        .add("private_key_file", private_key_file.display())
        .at_restart("listen_port", Some(listen_port))
        .list("address", address)
        .add("mtu", mtu)
        .add("suite", suite.name())
        .add("rekey_interval", time(*rekey_interval))
        .opt("min_rekey_interval", min_rekey_interval.map(time))
        .add("liveness", liveness.map_or_else(|| "off".to_owned(), |span| time(span).to_string()))
        .at_restart("lanes", Some(lanes))
        .add("table", table)
        .opt("fwmark", (*fwmark != 0).then(|| format!("{fwmark:#x}")))
        .at_restart("dscp", Some(dscp))
        .add("on_stop", on_stop)
        .list("protect", protect)
        .list("local", connected.chain(local.iter().map(|l| format!("{} {}", l.prefix, l.device))))
        .at_restart("routes", Some(routes))
        .at_restart("routes_table", (*routes_table != Interface::MAIN_TABLE).then_some(*routes_table))
        .opt("metrics_listen", *metrics_listen)
        .add("log_level", log_level)
        .opt("include", include.as_ref())
        .0
}

fn kms_rows(kms: &Kms) -> Vec<Row> {
    let Kms { sae_id, stock, kmes } = kms;
    let mut rows = Rows::default().add("sae_id", sae_id).add("stock", stock).0;
    // The order is the order of preference.
    rows.extend(Rows::default().list("kme", kmes.iter().map(|kme| &kme.name)).0);
    for kme in kmes {
        let named = |row: Row| Row { key: format!("kme.{}.{}", kme.name, row.key), ..row };
        rows.extend(kme_rows(kme).into_iter().map(named));
    }
    rows
}

fn access_rows(config: &Config) -> Vec<Row> {
    let Some(Access { observe, operate, admin }) = &config.access else { return Vec::new() };
    Rows::default().list("observe", observe).list("operate", operate).list("admin", admin).0
}

fn kme_rows(kme: &Kme) -> Vec<Row> {
    let Kme { name: _, sae_id, access } = kme;
    let rows = Rows::default().add("api", kme.api()).add("sae_id", sae_id);
    match access {
        KmeAccess::Etsi004(server, StreamOptions { dialect, link }) => {
            server_rows(rows, server).add("dialect", dialect).opt("link", link.as_ref()).0
        }
        KmeAccess::Etsi014(server) | KmeAccess::Skip(server) => server_rows(rows, server).0,
        KmeAccess::File(path) => rows.add("keys_file", path.display()).0,
    }
}

fn server_rows(rows: Rows, server: &KmeServer) -> Rows {
    let KmeServer { url, server_name, ca_file, cert_file, key } = server;
    let key = match key {
        ClientKey::File(path) => path.display().to_string(),
        ClientKey::Token(token) => token.uri.clone(),
    };
    rows.add("url", url)
        .opt("server_name", server_name.as_ref())
        .add("ca_file", ca_file.display())
        .add("cert_file", cert_file.display())
        .add("key_file", key)
}

fn peer_rows(peer: &Peer) -> Vec<Row> {
    let Peer {
        name,
        public_key: _,
        second_key: _,
        endpoint,
        allowed_ips,
        tunnel_address,
        sae_id,
        kmes,
        qkd,
        role,
        preshared_key_file,
        persistent_keepalive,
        suite,
        rekey_interval,
        disabled,
    } = peer;
    Rows::default()
        .add("name", name)
        .list("public_key", peer.public_keys())
        .opt("endpoint", endpoint.as_ref())
        .list("allowed_ips", allowed_ips)
        .list("tunnel_address", tunnel_address)
        .opt("sae_id", sae_id.as_ref())
        .list("kmes", kmes)
        .add("qkd", qkd.name())
        .add("role", role)
        .opt("preshared_key_file", preshared_key_file.as_ref().map(|path| path.display()))
        .opt("persistent_keepalive", persistent_keepalive.map(time))
        .add("suite", suite.name())
        .add("rekey_interval", time(*rekey_interval))
        .opt("disabled", disabled.then_some("true"))
        .0
}

fn time(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(time)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qvpn_identity::SecretIdentity;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    fn config(interface: &str, peers: &[(&str, u64, &str)]) -> Config {
        let mut text = format!("[interface]\nlisten_port = 51820\nprivate_key_file = \"k\"\n{interface}\n");
        for (name, seed, lines) in peers {
            let mut rng = ChaCha20Rng::seed_from_u64(*seed);
            let key = SecretIdentity::generate(&mut rng);
            let key = key.public();
            text += &format!(
                "[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nqkd = \"off\"\nallowed_ips = \
                 []\n{lines}\n"
            );
        }
        Config::parse(Path::new("/etc/qvpn/qvpn0.toml"), &text).unwrap()
    }

    fn lines(old: &Config, new: &Config) -> Vec<String> {
        changes(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_key_has_its_former_and_its_new_value() {
        let old = config("mtu = 1400", &[("b", 1, "persistent_keepalive = \"25s\""), ("c", 2, "")]);
        assert!(changes(&old, &old).is_empty());
        let new = config(
            "protect = [\"10.0.0.0/8\"]",
            &[("b", 1, "endpoint = \"192.0.2.1:51820\""), ("cc", 2, "suite = \"aes256gcm\"")],
        );
        assert_eq!(
            lines(&old, &new),
            [
                "interface.mtu: 1400 -> auto",
                "interface.protect: (none) -> 10.0.0.0/8",
                "peer b: persistent_keepalive: 25s -> (none)",
                "peer b: endpoint: (none) -> 192.0.2.1:51820",
                "peer cc: name: c -> cc",
                "peer cc: suite: chacha20poly1305 -> aes256gcm",
            ]
        );
    }

    #[test]
    fn a_new_peer_and_a_removed_one_are_named_with_all_their_keys() {
        let (old, new) = (config("", &[("b", 1, "")]), config("", &[("d", 3, "")]));
        let lines = lines(&old, &new);
        assert!(
            lines[0] == "peer d: name: (none) -> d"
                && lines[1].starts_with("peer d: public_key: (none) -> qvpn1-")
        );
        assert!(lines.iter().any(|line| line == "peer b: qkd: off -> (none)"), "{lines:#?}");
        let all = changes(&old, &new);
        let effect = |peer: &str, key: &str| {
            all.iter().find(|c| c.peer.as_deref() == Some(peer) && c.key == key).unwrap().effect()
        };
        assert!(effect("b", "public_key").unwrap().contains("stay blocked"));
        assert_eq!(effect("d", "public_key"), None);
        // Another key under the same name is another site.
        let other = changes(&old, &config("", &[("b", 4, "")]));
        assert_eq!(other.len(), 1, "{other:?}");
        assert!(other[0].effect().unwrap().contains("until it uses the new key"));
    }
}
