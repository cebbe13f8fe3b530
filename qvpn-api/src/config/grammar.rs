//! The grammar: which keys each section has, their types, limits and defaults. It reads on after an error, so that one
//! run shows them all, and leaves what needs several values at once to `rules.rs`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigErrors, Position, Sink};
use super::model::{
    Dscp, Interface, Kme, KmeApi, KmeMarks, Kms, Marks, Mtu, OnStop, Peer, PeerMarks, QkdPolicy, Role, Suite,
    Table,
};
use super::reader::{Entry, Section};
use super::rules::{Facts, PeerFacts};
use super::values::{self, Fault};
use super::{Config, MAX_SIZE};

/// Most lanes.
const MAX_LANES: u32 = 16;
/// Most QKD keys held ahead for a peer: what one offer of the protocol holds.
const MAX_STOCK: u32 = 20;
const REKEY_MIN: Duration = Duration::from_millis(100);
const REKEY_MAX: Duration = Duration::from_secs(120);
const KEEPALIVE_MIN: Duration = Duration::from_secs(1);
const KEEPALIVE_MAX: Duration = Duration::from_secs(65_535);

/// Keys that are often written into another section than theirs.
const ELSEWHERE: [(&str, &str); 34] = [
    ("private_key_file", "[interface]"),
    ("listen_port", "[interface]"),
    ("address", "[interface]"),
    ("mtu", "[interface]"),
    ("suite", "[interface] or [[peer]]"),
    ("rekey_interval", "[interface] or [[peer]]"),
    ("lanes", "[interface]"),
    ("table", "[interface]"),
    ("fwmark", "[interface]"),
    ("dscp", "[interface]"),
    ("on_stop", "[interface]"),
    ("metrics_listen", "[interface]"),
    ("sae_id", "[kms] or [[peer]]"),
    ("stock", "[kms]"),
    ("kme", "[kms], as [[kms.kme]]"),
    ("api", "[[kms.kme]]"),
    ("server_name", "[[kms.kme]]"),
    ("url", "[[kms.kme]]"),
    ("ca_file", "[[kms.kme]]"),
    ("cert_file", "[[kms.kme]]"),
    ("key_file", "[[kms.kme]]"),
    ("public_key", "[[peer]]"),
    ("endpoint", "[[peer]]"),
    ("allowed_ips", "[[peer]]"),
    ("kmes", "[[peer]]"),
    ("qkd", "[[peer]]"),
    ("role", "[[peer]]"),
    ("preshared_key_file", "[[peer]]"),
    ("persistent_keepalive", "[[peer]]"),
    ("name", "[interface], [[kms.kme]] or [[peer]]"),
    // What hands used to `wg` write.
    ("PrivateKey", "a file that `private_key_file` in [interface] names"),
    ("PublicKey", "[[peer]], as `public_key`"),
    ("PresharedKey", "a file that `preshared_key_file` in [[peer]] names"),
    ("DNS", "the host's resolver: qvpn sets no DNS server"),
];

pub(super) fn parse(path: &Path, text: &str) -> Result<Config, ConfigErrors> {
    if text.len() > MAX_SIZE {
        let what = format!("the file has {} bytes, and a config at most {MAX_SIZE}", text.len());
        return Err(ConfigErrors::of_file(path, what, "check that this is the right file"));
    }
    let mut sink = Sink::new(path, text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        sink.incomplete = true;
        let at = sink.position(text, error.span().map_or(0, |s| s.start));
        let (what, fix) = explain_syntax(error.message());
        sink.add(at, what, fix);
    }
    let mut reader = Reader { path, text, sink, facts: Facts::default(), marks: Marks::default() };
    let (interface, kms, peers) = reader.file(document.get_ref());
    let Reader { mut sink, facts, marks, .. } = reader;
    super::rules::check(&facts, &mut sink);
    sink.finish()?;
    match (interface, peers.into_iter().collect::<Option<Vec<_>>>()) {
        (Some(interface), Some(peers)) => Ok(Config { path: path.to_owned(), interface, kms, peers, marks }),
        // Nothing is left out without an error, so this is our fault, not the file's.
        _ => Err(ConfigErrors::of_file(
            path,
            "the file could not be read, for an unknown reason",
            "please report this with the file",
        )),
    }
}

/// The parser's words, and what to do.
fn explain_syntax(message: &str) -> (String, String) {
    let mut lines = message.lines();
    let first = lines.next().unwrap_or("not TOML").trim_end_matches('.').to_owned();
    let fix = match first.as_str() {
        "duplicate key" => "keep one of the two lines".to_owned(),
        text if text.contains("string") => "put the text between two quotes (\")".to_owned(),
        _ => "write `key = value` with texts in quotes, and sections in brackets, as in the example config"
            .to_owned(),
    };
    (format!("this is not TOML: {first}"), fix)
}

/// What reading collects besides the values.
struct Reader<'t> {
    path: &'t Path,
    text: &'t str,
    sink: Sink<'t>,
    facts: Facts,
    marks: Marks,
}

/// What peers have to know of `[kms]`.
struct KmsFacts {
    sae_id: Option<String>,
    /// The names of the KMEs; absent when not all could be read.
    names: Option<Vec<String>>,
}

impl<'t> Reader<'t> {
    fn file(&mut self, table: &'t DeTable<'t>) -> (Option<Interface>, Option<Kms>, Vec<Option<Peer>>) {
        let start = Position { line: 1, column: 1 };
        let mut file = Section::new("a config", start, self.text, table);
        let interface = match file.take(&self.sink, "interface", "") {
            Some(entry) => self.section(&entry, "[interface]").and_then(|s| self.interface(s)),
            None => {
                self.sink.missing(
                    start,
                    "there is no section [interface]",
                    "write `[interface]` and its keys",
                );
                None
            }
        };
        let kms_entry = file.take(&self.sink, "kms", "");
        let has_kms = kms_entry.is_some();
        let mut kms = None;
        let mut kms_facts = None;
        if let Some(section) = kms_entry.and_then(|entry| self.section(&entry, "[kms]")) {
            let (value, facts) = self.kms(section);
            kms = value;
            kms_facts = Some(facts);
        }
        let defaults = Defaults {
            suite: interface.as_ref().map_or(Suite::Chacha20Poly1305, |i| i.suite),
            rekey_interval: interface.as_ref().map_or(Duration::from_secs(60), |i| i.rekey_interval),
            lanes: interface.as_ref().map_or(1, |i| i.lanes),
        };
        let tables = file.take(&self.sink, "peer", "").and_then(|e| e.tables(&mut self.sink, "[[peer]]"));
        let peers = tables.unwrap_or_default().into_iter();
        let peers = peers.map(|(at, t)| self.peer(at, t, has_kms, kms_facts.as_ref(), &defaults)).collect();
        file.finish(&mut self.sink, &ELSEWHERE);
        (interface, kms, peers)
    }

    fn section(&mut self, entry: &Entry<'t>, title: &str) -> Option<Section<'t>> {
        let table = entry.value.as_table();
        if table.is_none() {
            let what = format!("{title} must be one section");
            entry.wrong(&mut self.sink, what, format!("write `{title}` on a line of its own, once"));
        }
        Some(Section::new(title, entry.at, self.text, table?))
    }

    fn interface(&mut self, mut s: Section<'t>) -> Option<Interface> {
        let name = match s.take(&self.sink, "name", "\"qvpn0\"") {
            Some(entry) => {
                self.marks.name = entry.at;
                self.parsed(&entry, values::interface_name)
            }
            None => {
                self.marks.name = s.at;
                let stem =
                    self.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
                values::interface_name(&stem)
                    .map_err(|(what, _)| {
                        let what = format!("the interface takes its name from the file, and {what}");
                        self.sink.add(s.at, what, "write `name = \"qvpn0\"`, or give the file another name");
                    })
                    .ok()
            }
        };
        self.marks.private_key_file = s.at;
        let private_key_file = match s.take(&self.sink, "private_key_file", "\"/etc/qvpn/qvpn0.key\"") {
            Some(entry) => {
                self.marks.private_key_file = entry.at;
                self.file_name(&entry)
            }
            None => name.as_ref().map(|n| self.beside(&format!("{n}.key"))),
        };
        let lanes = match s.take(&self.sink, "lanes", "1") {
            Some(entry) => entry.number(&mut self.sink, 1, MAX_LANES).and_then(|n| u8::try_from(n).ok()),
            None => Some(1),
        };
        self.marks.listen_port = s.at;
        let listen_port = match s.take(&self.sink, "listen_port", "51820") {
            Some(entry) => {
                self.marks.listen_port = entry.at;
                self.listen_port(&entry, lanes.unwrap_or(1))
            }
            None => Some(51820),
        };
        let address = self.addresses(&mut s);
        let mtu = self.mtu(&mut s);
        let suite = self.word(&mut s, "suite", "\"chacha20poly1305\"", Suite::WORDS, Suite::from_word);
        let rekey_interval = self.duration(&mut s, "rekey_interval", "\"60s\"", REKEY_MIN, REKEY_MAX);
        let table = self.table(&mut s);
        let fwmark = match s.take(&self.sink, "fwmark", "0") {
            Some(entry) => entry.number(&mut self.sink, 0, u32::MAX),
            None => Some(0),
        };
        let dscp = self.dscp(&mut s);
        let on_stop = self.word(&mut s, "on_stop", "\"block\"", OnStop::WORDS, OnStop::from_word);
        let metrics_listen = s.take(&self.sink, "metrics_listen", "\"127.0.0.1:9790\"").map(|entry| {
            self.marks.metrics_listen = entry.at;
            self.parsed(&entry, |text| match text.parse::<SocketAddr>() {
                Ok(at) if at.port() > 0 => Ok(at),
                _ => Err((
                    format!("\"{}\" is not an address and a port", values::shown(text)),
                    "write for example `metrics_listen = \"127.0.0.1:9790\"`".to_owned(),
                )),
            })
        });
        s.finish(&mut self.sink, &ELSEWHERE);
        Some(Interface {
            name: name?,
            private_key_file: private_key_file?,
            listen_port: listen_port?,
            address: address?,
            mtu: mtu?,
            suite: suite?.unwrap_or(Suite::Chacha20Poly1305),
            rekey_interval: rekey_interval?.unwrap_or(Duration::from_secs(60)),
            lanes: lanes?,
            table: table?,
            fwmark: fwmark?,
            dscp: dscp?,
            on_stop: on_stop?.unwrap_or(OnStop::Block),
            metrics_listen: match metrics_listen {
                Some(at) => Some(at?),
                None => None,
            },
        })
    }

    fn listen_port(&mut self, entry: &Entry<'t>, lanes: u8) -> Option<u16> {
        let port = entry.number(&mut self.sink, 1, 65_535)?;
        let last = 65_535 - u32::from(lanes.saturating_sub(1));
        if port > last {
            let what =
                format!("listen_port {port} leaves no room for {lanes} lanes, which use one port each");
            entry.wrong(&mut self.sink, what, format!("write `listen_port = {last}` or less"));
        }
        u16::try_from(port).ok()
    }

    fn addresses(&mut self, s: &mut Section<'t>) -> Option<Vec<ipnet::IpNet>> {
        let Some(entry) = s.take(&self.sink, "address", "[\"10.77.0.1/30\"]") else {
            return Some(Vec::new());
        };
        let mut addresses = Vec::new();
        for (at, text) in entry.strings(&mut self.sink)? {
            match values::address(text) {
                Ok(net) if net.addr().is_unspecified() || net.addr().is_multicast() => {
                    let what = format!("{} is not the address of one machine", net.addr());
                    self.sink.add(at, what, "write this gateway's own address, for example \"10.77.0.1/30\"");
                }
                Ok(net) if addresses.contains(&net) => {
                    self.sink.add(at, format!("{net} stands here twice"), "take one of them out");
                }
                Ok(net) => addresses.push(net),
                Err((what, fix)) => self.sink.add(at, what, fix),
            }
        }
        self.facts.addresses.clone_from(&addresses);
        Some(addresses)
    }

    fn mtu(&mut self, s: &mut Section<'t>) -> Option<Mtu> {
        let Some(entry) = s.take(&self.sink, "mtu", "1420") else { return Some(Mtu::Auto) };
        match entry.value.as_str() {
            Some("auto") => Some(Mtu::Auto),
            Some(_) => {
                entry.wrong(
                    &mut self.sink,
                    "`mtu` is \"auto\" or a number",
                    "write `mtu = \"auto\"` or `mtu = 1420`",
                );
                None
            }
            None => {
                let bytes = entry.number(&mut self.sink, 576, 65_455).and_then(|n| u16::try_from(n).ok())?;
                self.facts.mtu = Some((bytes, entry.at));
                Some(Mtu::Bytes(bytes))
            }
        }
    }

    fn table(&mut self, s: &mut Section<'t>) -> Option<Table> {
        let Some(entry) = s.take(&self.sink, "table", "\"auto\"") else { return Some(Table::Auto) };
        match entry.value {
            DeValue::String(word) => match word.as_ref() {
                "auto" => Some(Table::Auto),
                "off" => {
                    self.facts.no_routes = true;
                    Some(Table::Off)
                }
                other => {
                    entry.unknown_word(&mut self.sink, other, &["auto", "off", "a number without quotes"]);
                    None
                }
            },
            _ => {
                let id = entry.number(&mut self.sink, 1, u32::MAX)?;
                if matches!(id, 253 | 255) {
                    let what = format!("routing table {id} belongs to the kernel");
                    entry.wrong(
                        &mut self.sink,
                        what,
                        "write \"auto\", \"off\", 254 for the main table, or another number",
                    );
                    return None;
                }
                Some(Table::Id(id))
            }
        }
    }

    fn dscp(&mut self, s: &mut Section<'t>) -> Option<Dscp> {
        let Some(entry) = s.take(&self.sink, "dscp", "0") else { return Some(Dscp::Value(0)) };
        match entry.value.as_str() {
            Some("inherit") => Some(Dscp::Inherit),
            Some(_) => {
                let fix = "write `dscp = \"inherit\"` or a number such as `dscp = 46`";
                entry.wrong(&mut self.sink, "`dscp` is \"inherit\" or a number from 0 to 63", fix);
                None
            }
            None => entry.number(&mut self.sink, 0, 63).and_then(|n| u8::try_from(n).ok()).map(Dscp::Value),
        }
    }

    fn kms(&mut self, mut s: Section<'t>) -> (Option<Kms>, KmsFacts) {
        let sae_id =
            s.need(&mut self.sink, "sae_id", "\"SITE-A\"").and_then(|e| self.parsed(&e, values::sae_id));
        let stock = match s.take(&self.sink, "stock", "5") {
            Some(entry) => entry.number(&mut self.sink, 1, MAX_STOCK),
            None => Some(5),
        };
        let entry = s.take(&self.sink, "kme", "");
        let mut names = Some(Vec::new());
        let mut kmes = Some(Vec::new());
        match entry {
            Some(entry) => match entry.tables(&mut self.sink, "[[kms.kme]]") {
                Some(tables) => {
                    for (at, table) in tables {
                        let (name, kme) = self.kme(at, table, sae_id.as_deref());
                        names = names.zip(name).map(|(mut all, n)| {
                            all.push(n);
                            all
                        });
                        kmes = kmes.zip(kme).map(|(mut all, k)| {
                            all.push(k);
                            all
                        });
                    }
                }
                None => names = None,
            },
            None => names = None,
        }
        if kmes.as_ref().is_some_and(Vec::is_empty) && names.as_ref().is_none_or(Vec::is_empty) {
            self.sink.missing(
                s.at,
                "[kms] names no KME",
                "write a section `[[kms.kme]]` with name, url, ca_file, cert_file and key_file, or take [kms] out",
            );
        }
        s.finish(&mut self.sink, &ELSEWHERE);
        let facts = KmsFacts { sae_id: sae_id.clone(), names };
        let kms = sae_id.zip(stock).zip(kmes).map(|((sae_id, stock), kmes)| Kms { sae_id, stock, kmes });
        (kms, facts)
    }

    fn kme(
        &mut self,
        at: Position,
        table: &'t DeTable<'t>,
        our_sae_id: Option<&str>,
    ) -> (Option<String>, Option<Kme>) {
        let mut s = Section::new("[[kms.kme]]", at, self.text, table);
        let mut marks = KmeMarks { url: at, ca_file: at, cert_file: at, key_file: at };
        let name = s.need(&mut self.sink, "name", "\"kme-a1\"").and_then(|entry| {
            let name = self.parsed(&entry, |t| values::name(t, "kme-a1"))?;
            s.title = format!("[[kms.kme]] \"{name}\"");
            self.facts.kme_names.push((name.clone(), entry.at));
            Some(name)
        });
        let api = self.word(&mut s, "api", "\"etsi014\"", KmeApi::WORDS, KmeApi::from_word);
        let api = match api {
            Some(None | Some(KmeApi::Etsi014)) => Some(KmeApi::Etsi014),
            Some(Some(other)) => {
                let at = self.value_at(table, "api", at);
                self.sink.add(
                    at,
                    format!("api \"{other}\" is not built yet in this version"),
                    "write `api = \"etsi014\"`",
                );
                None
            }
            None => None,
        };
        let sae_id = match s.take(&self.sink, "sae_id", "\"SITE-A\"") {
            Some(entry) => self.parsed(&entry, values::sae_id),
            None => our_sae_id.map(str::to_owned),
        };
        let server_name = s.take(&self.sink, "server_name", "\"kme-a1\"").map(|entry| {
            self.parsed(&entry, |text| {
                match text.parse::<std::net::IpAddr>().is_ok() || values::is_host_name(text) {
                    true => Ok(text.to_owned()),
                    false => Err((
                        format!("\"{}\" can't be the name in a certificate", values::shown(text)),
                        "write a host name or an address, without scheme and port".to_owned(),
                    )),
                }
            })
        });
        let url = s.need(&mut self.sink, "url", "\"https://kme-a1.site-a.example:8443\"").and_then(|entry| {
            marks.url = entry.at;
            let (url, ip) = self.parsed(&entry, values::kme_url)?;
            if let (Some(name), Some(ip)) = (&name, ip) {
                self.facts.kme_ips.push((name.clone(), ip, entry.at));
            }
            Some(url)
        });
        let mut path = |key, example, mark: &mut Position| {
            let entry = s.need(&mut self.sink, key, example)?;
            *mark = entry.at;
            self.file_name(&entry)
        };
        let ca_file = path("ca_file", "\"/etc/qvpn/kms/ca.pem\"", &mut marks.ca_file);
        let cert_file = path("cert_file", "\"/etc/qvpn/kms/site-a.pem\"", &mut marks.cert_file);
        let key_file = path("key_file", "\"/etc/qvpn/kms/site-a.key\"", &mut marks.key_file);
        s.finish(&mut self.sink, &ELSEWHERE);
        self.marks.kmes.push(marks);
        let value = || {
            Some(Kme {
                name: name.clone()?,
                api: api?,
                sae_id: sae_id?,
                server_name: match server_name {
                    Some(name) => Some(name?),
                    None => None,
                },
                url: url?,
                ca_file: ca_file?,
                cert_file: cert_file?,
                key_file: key_file?,
            })
        };
        let kme = value();
        (name, kme)
    }

    fn peer(
        &mut self,
        at: Position,
        table: &'t DeTable<'t>,
        has_kms: bool,
        kms: Option<&KmsFacts>,
        defaults: &Defaults,
    ) -> Option<Peer> {
        let mut s = Section::new("[[peer]]", at, self.text, table);
        let mut marks = PeerMarks { public_key: at, endpoint: at, preshared_key_file: at };
        let mut facts = PeerFacts { at, ..PeerFacts::default() };
        let name = s.need(&mut self.sink, "name", "\"site-b\"").and_then(|entry| {
            let name = self.parsed(&entry, |t| values::name(t, "site-b"))?;
            s.title = format!("[[peer]] \"{name}\"");
            facts.name = Some((name.clone(), entry.at));
            Some(name)
        });
        let public_key = s.need(&mut self.sink, "public_key", "\"qvpn1-…\"").and_then(|entry| {
            marks.public_key = entry.at;
            let key = self.parsed(&entry, |text| {
                text.parse().map_err(|e: qvpn_identity::IdentityError| {
                    split_advice(&e.to_string(), "write the line that `qvpn-ctl pubkey` prints at the peer")
                })
            })?;
            facts.public_key = Some((key, entry.at));
            Some(key)
        });
        let endpoint = s.take(&self.sink, "endpoint", "\"203.0.113.9:51820\"").map(|entry| {
            marks.endpoint = entry.at;
            let endpoint = self.parsed(&entry, |t| values::endpoint(t, defaults.lanes))?;
            facts.endpoint = endpoint.ip().map(|ip| (ip, entry.at));
            Some(endpoint)
        });
        let allowed_ips = s.need(&mut self.sink, "allowed_ips", "[\"10.20.0.0/16\"]").and_then(|entry| {
            for (at, text) in entry.strings(&mut self.sink)? {
                match values::prefix(text) {
                    Ok(prefix) => facts.allowed_ips.push((prefix, at)),
                    Err((what, fix)) => self.sink.add(at, what, fix),
                }
            }
            Some(facts.allowed_ips.iter().map(|(p, _)| *p).collect::<Vec<_>>())
        });
        let qkd_at = self.value_at(table, "qkd", at);
        let qkd = self.word(&mut s, "qkd", "\"required\"", QkdPolicy::WORDS, QkdPolicy::from_word);
        let qkd_written = table.contains_key("qkd");
        let qkd = qkd.map(|q| q.unwrap_or(QkdPolicy::Required));
        let wants_qkd = qkd.is_some_and(|q| q != QkdPolicy::Off);
        if wants_qkd && !has_kms {
            let why = match qkd_written {
                true => "wants QKD keys",
                false => "wants QKD keys (qkd = \"required\" is the default)",
            };
            self.sink.missing(
                qkd_at,
                format!("{} {why}, and there is no section [kms]", s.title),
                "write a section [kms] with this site's KMEs, or `qkd = \"off\"` for a peer without QKD",
            );
        }
        let sae_id = self.peer_sae_id(&mut s, kms, wants_qkd && has_kms);
        let kmes = self.peer_kmes(&mut s, kms, wants_qkd, has_kms);
        facts.kmes = kmes.clone().unwrap_or_default();
        let role = self.word(&mut s, "role", "\"auto\"", Role::WORDS, Role::from_word);
        let psk = s.take(&self.sink, "preshared_key_file", "\"/etc/qvpn/site-b.psk\"").map(|entry| {
            marks.preshared_key_file = entry.at;
            self.file_name(&entry)
        });
        let keepalive =
            self.duration(&mut s, "persistent_keepalive", "\"25s\"", KEEPALIVE_MIN, KEEPALIVE_MAX);
        let suite = self.word(&mut s, "suite", "\"chacha20poly1305\"", Suite::WORDS, Suite::from_word);
        let rekey = self.duration(&mut s, "rekey_interval", "\"60s\"", REKEY_MIN, REKEY_MAX);
        s.finish(&mut self.sink, &ELSEWHERE);
        self.marks.peers.push(marks);
        self.facts.peers.push(facts);
        Some(Peer {
            name: name?,
            public_key: public_key?,
            endpoint: match endpoint {
                Some(endpoint) => Some(endpoint?),
                None => None,
            },
            allowed_ips: allowed_ips?,
            sae_id: sae_id?,
            kmes: kmes?,
            qkd: qkd?,
            role: role?.unwrap_or(Role::Auto),
            preshared_key_file: match psk {
                Some(path) => Some(path?),
                None => None,
            },
            persistent_keepalive: keepalive?,
            suite: suite?.unwrap_or(defaults.suite),
            rekey_interval: rekey?.unwrap_or(defaults.rekey_interval),
        })
    }

    fn peer_sae_id(
        &mut self,
        s: &mut Section<'t>,
        kms: Option<&KmsFacts>,
        needed: bool,
    ) -> Option<Option<String>> {
        let entry = match needed {
            true => s.need(&mut self.sink, "sae_id", "\"SITE-B\"")?,
            false => match s.take(&self.sink, "sae_id", "\"SITE-B\"") {
                Some(entry) => entry,
                None => return Some(None),
            },
        };
        let id = self.parsed(&entry, values::sae_id)?;
        if kms.is_some_and(|k| k.sae_id.as_ref() == Some(&id)) {
            entry.wrong(
                &mut self.sink,
                format!("the peer's sae_id \"{id}\" is our own, from [kms]"),
                "write the SAE ID of the other site",
            );
            return None;
        }
        Some(Some(id))
    }

    fn peer_kmes(
        &mut self,
        s: &mut Section<'t>,
        kms: Option<&KmsFacts>,
        wants_qkd: bool,
        has_kms: bool,
    ) -> Option<Vec<String>> {
        let names = kms.and_then(|k| k.names.as_ref());
        let Some(entry) = s.take(&self.sink, "kmes", "[\"kme-a1\"]") else {
            // A section [kms] that can't be read has its own error.
            return Some(if wants_qkd { names.cloned().unwrap_or_default() } else { Vec::new() });
        };
        let mut kmes: Vec<String> = Vec::new();
        for (at, name) in entry.strings(&mut self.sink)? {
            if kmes.iter().any(|k| k == name) {
                self.sink.add(at, format!("KME \"{name}\" stands here twice"), "take one of them out");
            } else if let Some(names) = names.filter(|names| !names.iter().any(|n| n == name)) {
                let what = format!("there is no KME \"{}\" in [kms]", values::shown(name));
                let known: Vec<&str> = names.iter().map(String::as_str).collect();
                let fix = match super::reader::nearest(name, &known) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => {
                        let quoted: Vec<String> = names.iter().take(8).map(|n| format!("\"{n}\"")).collect();
                        format!("write {}", super::reader::alternatives(&quoted))
                    }
                };
                self.sink.add(at, what, fix);
            } else if !has_kms {
                let what =
                    format!("there is no KME \"{}\", since there is no section [kms]", values::shown(name));
                self.sink.missing(
                    at,
                    what,
                    "write a section [kms] with this site's KMEs, or take `kmes` out",
                );
            } else {
                kmes.push(name.to_owned());
            }
        }
        if kmes.is_empty() && wants_qkd && entry.value.as_array().is_some_and(|a| a.is_empty()) {
            entry.wrong(
                &mut self.sink,
                "`kmes` is empty, so no QKD key could come",
                "name a KME, take the line out for all of them, or write `qkd = \"off\"`",
            );
        }
        Some(if wants_qkd { kmes } else { Vec::new() })
    }

    /// The string of `entry`, through `parse`.
    fn parsed<T>(&mut self, entry: &Entry<'t>, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        parse(entry.string(&mut self.sink)?)
            .map_err(|(what, fix)| entry.wrong(&mut self.sink, what, fix))
            .ok()
    }

    /// `None`: wrong; `Some(None)`: absent.
    fn word<T>(
        &mut self,
        s: &mut Section<'t>,
        key: &'static str,
        example: &'static str,
        words: &'static [&'static str],
        from_word: impl Fn(&str) -> Option<T>,
    ) -> Option<Option<T>> {
        match s.take(&self.sink, key, example) {
            Some(entry) => entry.word(&mut self.sink, words, from_word).map(Some),
            None => Some(None),
        }
    }

    /// `None`: wrong; `Some(None)`: absent.
    fn duration(
        &mut self,
        s: &mut Section<'t>,
        key: &'static str,
        example: &'static str,
        min: Duration,
        max: Duration,
    ) -> Option<Option<Duration>> {
        let Some(entry) = s.take(&self.sink, key, example) else { return Some(None) };
        if let Some(number) = entry.value.as_integer() {
            let what = format!("the duration `{key}` has no unit");
            entry.wrong(&mut self.sink, what, format!("write `{key} = \"{number}s\"` for seconds"));
            return None;
        }
        self.parsed(&entry, |text| values::duration(text, min, max)).map(Some)
    }

    /// A path; a relative one starts from the config's folder.
    fn file_name(&mut self, entry: &Entry<'t>) -> Option<PathBuf> {
        let name = entry.string(&mut self.sink)?;
        if name.is_empty() || name.contains('\0') {
            entry.wrong(
                &mut self.sink,
                format!("`{}` is not a file name", entry.key),
                "write a path such as \"/etc/qvpn/…\"",
            );
            return None;
        }
        Some(self.beside(name))
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }

    /// Where the value of `key` stands, or `otherwise`.
    fn value_at(&self, table: &DeTable<'_>, key: &str, otherwise: Position) -> Position {
        table.get(key).map_or(otherwise, |v| self.sink.position(self.text, v.span().start))
    }
}

/// What `[interface]` gives to peers.
struct Defaults {
    suite: Suite,
    rekey_interval: Duration,
    lanes: u8,
}

/// Splits "what; fix" of another crate's message, which may have no fix.
pub(super) fn split_advice(message: &str, otherwise: &str) -> Fault {
    match message.split_once("; ") {
        Some((what, fix)) => (what.to_owned(), fix.to_owned()),
        None => (message.to_owned(), otherwise.to_owned()),
    }
}
