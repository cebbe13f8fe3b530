//! The sections `[[peer]]`.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use qvpn_identity::{IdentityError, PublicIdentity};
use toml::de::DeTable;

use super::context::{Defaults, HOME_SECTIONS, KmsFacts, MAX_REKEY_INTERVAL, MIN_REKEY_INTERVAL, Reader};
use crate::config::error::Position;
use crate::config::fault::{shown, split_advice};
use crate::config::model::{Peer, Role};
use crate::config::positions::PeerPositions;
use crate::config::reader::{Section, alternatives, nearest};
use crate::config::rules::PeerFacts;
use crate::config::shared_words::Word;
use crate::config::values;
use qvpn_types::{QkdPolicy, SaeId, Suite};

const KEEPALIVE_MIN: Duration = Duration::from_secs(1);
const KEEPALIVE_MAX: Duration = Duration::from_secs(65_535);

impl<'t> Reader<'t> {
    pub(super) fn peer(
        &mut self,
        at: Position,
        table: &'t DeTable<'t>,
        has_kms: bool,
        kms: Option<&KmsFacts>,
        defaults: &Defaults,
    ) -> Option<Peer> {
        let mut s = Section::new("[[peer]]", at, self.text, table);
        let mut positions =
            PeerPositions { endpoint: at, preshared_key_file: at, ..PeerPositions::default() };
        let mut facts = PeerFacts { at, ..PeerFacts::default() };
        let name = s.need(&mut self.sink, "name", "\"site-b\"").and_then(|entry| {
            let name = self.parsed(&entry, |t| values::name(t, "site-b"))?;
            s.title = format!("[[peer]] \"{name}\"");
            facts.name = Some((name.clone(), entry.at));
            Some(name)
        });
        let public_keys = self.public_keys(&mut s, &mut facts);
        let endpoint = s.take(&self.sink, "endpoint", "\"203.0.113.9:51820\"").map(|entry| {
            positions.endpoint = entry.at;
            let endpoint = self.parsed(&entry, |t| values::endpoint(t, defaults.lanes))?;
            facts.endpoint = endpoint.ip().map(|ip| (ip, entry.at));
            Some(endpoint)
        });
        let allowed_ips = self.allowed_ips(&mut s, &mut facts);
        let tunnel_address = self.tunnel_address(&mut s, &mut facts);
        let qkd = self.qkd(&mut s, at, table, has_kms);
        let wants_qkd = qkd.is_some_and(|qkd| qkd != QkdPolicy::Off);
        let sae_id = self.peer_sae_id(&mut s, kms, wants_qkd && has_kms);
        let kmes = self.peer_kmes(&mut s, kms, wants_qkd, has_kms);
        facts.kmes = kmes.clone().unwrap_or_default();
        let role = self.word(&mut s, "role", "\"auto\"", Role::WORDS, Role::from_word);
        let psk = s.take(&self.sink, "preshared_key_file", "\"/etc/qvpn/site-b.psk\"").map(|entry| {
            positions.preshared_key_file = entry.at;
            self.file_name(&entry)
        });
        let keepalive =
            self.duration(&mut s, "persistent_keepalive", "\"25s\"", KEEPALIVE_MIN, KEEPALIVE_MAX);
        let suite = self.word(&mut s, "suite", "\"chacha20poly1305\"", Suite::WORDS, Suite::from_word);
        let rekey =
            self.duration(&mut s, "rekey_interval", "\"60s\"", MIN_REKEY_INTERVAL, MAX_REKEY_INTERVAL);
        let disabled = match s.take(&self.sink, "disabled", "true") {
            Some(entry) => entry.boolean(&mut self.sink),
            None => Some(false),
        };
        s.finish(&mut self.sink, HOME_SECTIONS);
        positions.public_keys = facts.public_keys.iter().map(|(_, at)| *at).collect();
        positions.allowed_ips = facts.allowed_ips.iter().map(|(_, at)| *at).collect();
        self.positions.peers.push(positions);
        self.facts.peers.push(facts);
        let (public_key, second_key) = public_keys?;
        Some(Peer {
            name: name?,
            public_key,
            second_key,
            endpoint: match endpoint {
                Some(endpoint) => Some(endpoint?),
                None => None,
            },
            allowed_ips: allowed_ips?,
            tunnel_address: tunnel_address?,
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
            disabled: disabled?,
        })
    }

    /// The key `qkd`, which needs a section `[kms]` unless it is `off`.
    fn qkd(
        &mut self,
        s: &mut Section<'t>,
        at: Position,
        table: &'t DeTable<'t>,
        has_kms: bool,
    ) -> Option<QkdPolicy> {
        let qkd_at = self.value_at(table, "qkd", at);
        let written = self.word(s, "qkd", "\"required\"", QkdPolicy::WORDS, QkdPolicy::from_word)?;
        let qkd = written.unwrap_or(QkdPolicy::Required);
        if qkd != QkdPolicy::Off && !has_kms {
            let why = match written {
                Some(_) => "wants QKD keys",
                None => "wants QKD keys (qkd = \"required\" is the default)",
            };
            self.sink.missing(
                qkd_at,
                format!("{} {why}, and there is no section [kms]", s.title),
                "write a section [kms] with this site's KMEs, or `qkd = \"off\"` for a peer without QKD",
            );
        }
        Some(qkd)
    }

    /// One key, or a list of two while the site changes its key.
    fn public_keys(
        &mut self,
        s: &mut Section<'t>,
        facts: &mut PeerFacts,
    ) -> Option<(PublicIdentity, Option<PublicIdentity>)> {
        let entry = s.need(&mut self.sink, "public_key", "\"qvpn1-…\"")?;
        let texts = match entry.value.is_array() {
            true => entry.strings(&mut self.sink)?,
            false => vec![(entry.at, entry.string(&mut self.sink)?)],
        };
        for (at, text) in &texts {
            match text.parse() {
                Ok(key) => facts.public_keys.push((key, *at)),
                Err(error) => {
                    let error: IdentityError = error;
                    let advice = "write the line that `qvpn-ctl pubkey` prints at the peer";
                    let (what, fix) = split_advice(&error.to_string(), advice);
                    self.sink.add(*at, what, fix);
                }
            }
        }
        if !(1..=2).contains(&texts.len()) {
            let what = format!("`public_key` has {} keys", texts.len());
            entry.wrong(&mut self.sink, what, "write one key, or two while the site changes its key");
        }
        match (texts.len(), facts.public_keys.as_slice()) {
            (1, [(key, _)]) => Some((*key, None)),
            (2, [(key, _), (second, _)]) => Some((*key, Some(*second))),
            _ => None,
        }
    }

    fn allowed_ips(&mut self, s: &mut Section<'t>, facts: &mut PeerFacts) -> Option<Vec<IpNet>> {
        let entry = s.need(&mut self.sink, "allowed_ips", "[\"10.20.0.0/16\"]")?;
        for (at, text) in entry.strings(&mut self.sink)? {
            self.facts.readable_prefixes.extend(values::address(text).map(|net| net.trunc()));
            match values::prefix(text) {
                Ok(prefix) => facts.allowed_ips.push((prefix, at)),
                Err((what, fix)) => self.sink.add(at, what, fix),
            }
        }
        Some(facts.allowed_ips.iter().map(|(p, _)| *p).collect())
    }

    fn tunnel_address(&mut self, s: &mut Section<'t>, facts: &mut PeerFacts) -> Option<Vec<IpAddr>> {
        let Some(entry) = s.take(&self.sink, "tunnel_address", "[\"10.77.0.2\"]") else {
            return Some(Vec::new());
        };
        for (at, text) in entry.strings(&mut self.sink)? {
            facts.has_tunnel_address = true;
            match values::host(text) {
                Ok(address) => facts.tunnel_address.push((address, at)),
                Err((what, fix)) => self.sink.add(at, what, fix),
            }
        }
        Some(facts.tunnel_address.iter().map(|(address, _)| *address).collect())
    }

    fn peer_sae_id(
        &mut self,
        s: &mut Section<'t>,
        kms: Option<&KmsFacts>,
        needed: bool,
    ) -> Option<Option<SaeId>> {
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
            // An unreadable section [kms] has its own error.
            return Some(if wants_qkd { names.cloned().unwrap_or_default() } else { Vec::new() });
        };
        let mut kmes: Vec<String> = Vec::new();
        for (at, name) in entry.strings(&mut self.sink)? {
            if kmes.iter().any(|k| k == name) {
                self.sink.add(at, format!("KME \"{name}\" is here twice"), "remove one of them");
            } else if let Some(names) = names.filter(|names| !names.iter().any(|n| n == name)) {
                let what = format!("there is no KME \"{}\" in [kms]", shown(name));
                let known: Vec<&str> = names.iter().map(String::as_str).collect();
                let fix = match nearest(name, &known) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => {
                        let quoted: Vec<String> = names.iter().take(8).map(|n| format!("\"{n}\"")).collect();
                        format!("write {}", alternatives(&quoted))
                    }
                };
                self.sink.add(at, what, fix);
            } else if !has_kms {
                let what = format!("there is no KME \"{}\", since there is no section [kms]", shown(name));
                self.sink.missing(at, what, "write a section [kms] with this site's KMEs, or remove `kmes`");
            } else {
                kmes.push(name.to_owned());
            }
        }
        if kmes.is_empty() && wants_qkd && entry.value.as_array().is_some_and(|a| a.is_empty()) {
            entry.wrong(
                &mut self.sink,
                "`kmes` is empty, so the peer could get no QKD key",
                "name a KME, remove the line to use all of them, or write `qkd = \"off\"`",
            );
        }
        Some(if wants_qkd { kmes } else { Vec::new() })
    }
}
