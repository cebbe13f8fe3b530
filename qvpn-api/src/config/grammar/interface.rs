//! The section `[interface]`.

use std::net::SocketAddr;
use std::time::Duration;

use qvpn_types::Suite;
use toml::de::DeValue;

use super::context::{HOME_SECTIONS, MAX_REKEY_INTERVAL, MIN_REKEY_INTERVAL, Reader};
use crate::config::fault::shown;
use crate::config::model::{Dscp, Interface, Local, LogLevel, Mtu, OnStop, Routes, Table};
use crate::config::reader::{Entry, Section};
use crate::config::rules::LocalFacts;
use crate::config::shared_words::Word;
use crate::config::values;

const MAX_LANES: u32 = 16;
const DEFAULT_LIVENESS: Duration = Duration::from_secs(2);
const MIN_LIVENESS: Duration = Duration::from_millis(100);
const MAX_LIVENESS: Duration = Duration::from_secs(60);

impl<'t> Reader<'t> {
    pub(super) fn interface(&mut self, mut s: Section<'t>) -> Option<Interface> {
        let name = self.name(&mut s);
        self.positions.private_key_file = s.at;
        let private_key_file = match s.take(&self.sink, "private_key_file", "\"/etc/qvpn/qvpn0.key\"") {
            Some(entry) => {
                self.positions.private_key_file = entry.at;
                self.file_name(&entry)
            }
            None => name.as_ref().map(|n| self.beside(&format!("{n}.key"))),
        };
        let lanes = match s.take(&self.sink, "lanes", "1") {
            Some(entry) => entry.number(&mut self.sink, 1, MAX_LANES).and_then(|n| u8::try_from(n).ok()),
            None => Some(1),
        };
        self.positions.listen_port = s.at;
        let listen_port = match s.take(&self.sink, "listen_port", "51820") {
            Some(entry) => {
                self.positions.listen_port = entry.at;
                self.listen_port(&entry, lanes.unwrap_or(1))
            }
            None => Some(51820),
        };
        let address = self.addresses(&mut s);
        let mtu = self.mtu(&mut s);
        let suite = self.word(&mut s, "suite", "\"chacha20poly1305\"", Suite::WORDS, Suite::from_word);
        let rekey_interval =
            self.duration(&mut s, "rekey_interval", "\"60s\"", MIN_REKEY_INTERVAL, MAX_REKEY_INTERVAL);
        let min_rekey_interval =
            self.duration(&mut s, "min_rekey_interval", "\"6s\"", MIN_REKEY_INTERVAL, MAX_REKEY_INTERVAL);
        let liveness = self.liveness(&mut s);
        let table = self.table(&mut s);
        let fwmark = match s.take(&self.sink, "fwmark", "0") {
            Some(entry) => entry.number(&mut self.sink, 0, u32::MAX),
            None => Some(0),
        };
        let dscp = self.dscp(&mut s);
        let on_stop = self.word(&mut s, "on_stop", "\"block\"", OnStop::WORDS, OnStop::from_word);
        let protect = self.protect(&mut s);
        let (local, local_connected) = self.local(&mut s).map_or((None, false), |(all, c)| (Some(all), c));
        let routes = self.word(&mut s, "routes", "\"config\"", Routes::WORDS, Routes::from_word);
        self.facts.kernel_routes = routes == Some(Some(Routes::Kernel));
        let routes_table = self.routes_table(&mut s);
        let metrics_listen = self.metrics_listen(&mut s);
        let log_level = self.word(&mut s, "log_level", "\"info\"", LogLevel::WORDS, LogLevel::from_word);
        let include = self.include(&mut s);
        s.finish(&mut self.sink, HOME_SECTIONS);
        Some(Interface {
            name: name?,
            private_key_file: private_key_file?,
            listen_port: listen_port?,
            address: address?,
            mtu: mtu?,
            suite: suite?.unwrap_or(Suite::ChaCha20Poly1305),
            rekey_interval: rekey_interval?.unwrap_or(Duration::from_secs(60)),
            min_rekey_interval: min_rekey_interval?,
            liveness: liveness?,
            lanes: lanes?,
            table: table?,
            fwmark: fwmark?,
            dscp: dscp?,
            on_stop: on_stop?.unwrap_or(OnStop::Block),
            protect: protect?,
            local: local?,
            routes: routes?.unwrap_or(Routes::Config),
            routes_table: routes_table?,
            local_connected,
            metrics_listen: metrics_listen?,
            log_level: log_level?.unwrap_or(LogLevel::Info),
            include: include?,
        })
    }

    /// Returns the interface's name: that of the config, or else that of its file.
    fn name(&mut self, s: &mut Section<'t>) -> Option<String> {
        match s.take(&self.sink, "name", "\"qvpn0\"") {
            Some(entry) => {
                self.positions.name = entry.at;
                self.parsed(&entry, values::interface_name)
            }
            None => {
                self.positions.name = s.at;
                let stem =
                    self.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
                values::interface_name(&stem)
                    .map_err(|(what, _)| {
                        let what = format!("the interface takes its name from the file, and {what}");
                        self.sink.add(s.at, what, "write `name = \"qvpn0\"`, or give the file another name");
                    })
                    .ok()
            }
        }
    }

    /// Returns `None` after an error, and `Some(None)` if the key is absent.
    fn metrics_listen(&mut self, s: &mut Section<'t>) -> Option<Option<SocketAddr>> {
        let Some(entry) = s.take(&self.sink, "metrics_listen", "\"127.0.0.1:9790\"") else {
            return Some(None);
        };
        self.positions.metrics_listen = entry.at;
        let parse = |text: &str| match text.parse::<SocketAddr>() {
            Ok(at) if at.port() > 0 => Ok(at),
            _ => Err((
                format!("\"{}\" is not an address and a port", shown(text)),
                "write for example `metrics_listen = \"127.0.0.1:9790\"`".to_owned(),
            )),
        };
        self.parsed(&entry, parse).map(Some)
    }

    /// `None`: wrong; `Some(None)`: off.
    fn liveness(&mut self, s: &mut Section<'t>) -> Option<Option<Duration>> {
        let Some(entry) = s.take(&self.sink, "liveness", "\"2s\"") else {
            return Some(Some(DEFAULT_LIVENESS));
        };
        if entry.value.as_str() == Some("off") {
            return Some(None);
        }
        if let Some(number) = entry.value.as_integer() {
            let fix = format!("write `liveness = \"{number}s\"` for seconds, or `liveness = \"off\"`");
            entry.wrong(&mut self.sink, "the duration `liveness` has no unit", fix);
            return None;
        }
        self.parsed(&entry, |text| values::duration(text, MIN_LIVENESS, MAX_LIVENESS)).map(Some)
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
                    let what = format!("{} is not the address of one host", net.addr());
                    self.sink.add(
                        at,
                        what,
                        "write this gateway's own address, for example \
                     \"10.77.0.1/30\"",
                    );
                }
                Ok(net) if addresses.contains(&net) => {
                    self.sink.add(at, format!("{net} is here twice"), "remove one of them");
                }
                Ok(net) => addresses.push(net),
                Err((what, fix)) => self.sink.add(at, what, fix),
            }
        }
        self.facts.addresses.clone_from(&addresses);
        Some(addresses)
    }

    fn protect(&mut self, s: &mut Section<'t>) -> Option<Vec<ipnet::IpNet>> {
        let Some(entry) = s.take(&self.sink, "protect", "[\"10.64.0.0/10\"]") else {
            return Some(Vec::new());
        };
        for (at, text) in entry.strings(&mut self.sink)? {
            self.facts.readable_prefixes.extend(values::address(text).map(|net| net.trunc()));
            match values::prefix(text) {
                Ok(prefix) if self.facts.protect.iter().any(|(known, _)| *known == prefix) => {
                    self.sink.add(at, format!("{prefix} stands here twice"), "take one of them out");
                }
                Ok(prefix) => self.facts.protect.push((prefix, at)),
                Err((what, fix)) => self.sink.add(at, what, fix),
            }
        }
        Some(self.facts.protect.iter().map(|(prefix, _)| *prefix).collect())
    }

    /// Returns the list, and whether it is `"connected"`.
    fn local(&mut self, s: &mut Section<'t>) -> Option<(Vec<Local>, bool)> {
        let example = "[{ prefix = \"10.10.0.0/16\", device = \"eth1\" }]";
        self.positions.local = s.at;
        let Some(entry) = s.take(&self.sink, "local", example) else {
            return Some((Vec::new(), false));
        };
        self.positions.local = entry.at;
        self.positions.local_written = true;
        if entry.value.as_str() == Some("connected") {
            return Some((Vec::new(), true));
        }
        let mut all = Vec::new();
        for (at, table) in entry.inline_tables(&mut self.sink)? {
            let mut one = Section::new("an entry of `local`", at, self.text, table);
            let prefix = one.need(&mut self.sink, "prefix", "\"10.10.0.0/16\"");
            let prefix = prefix.and_then(|entry| {
                let prefix = self.parsed(&entry, values::prefix)?;
                self.facts.local.push(LocalFacts { prefix, at: entry.at });
                Some(prefix)
            });
            let device = one.need(&mut self.sink, "device", "\"eth1\"");
            let device = device.and_then(|entry| self.parsed(&entry, values::interface_name));
            one.finish(&mut self.sink, &[]);
            all.extend(prefix.zip(device).map(|(prefix, device)| Local { prefix, device }));
        }
        Some((all, false))
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

    fn routes_table(&mut self, s: &mut Section<'t>) -> Option<u32> {
        /// The table that qvpn itself uses.
        const OURS: u32 = 29_046;
        let Some(entry) = s.take(&self.sink, "routes_table", "\"main\"") else {
            return Some(Interface::MAIN_TABLE);
        };
        self.facts.routes_table = Some(entry.at);
        if let DeValue::String(word) = entry.value {
            if word != "main" {
                entry.unknown_word(&mut self.sink, word, &["main", "a number without quotes"]);
                return None;
            }
            return Some(Interface::MAIN_TABLE);
        }
        let id = entry.number(&mut self.sink, 1, u32::MAX)?;
        if matches!(id, 255 | OURS) {
            let owner = if id == OURS { "qvpn, for the block" } else { "the kernel" };
            let what = format!("routing table {id} belongs to {owner}");
            entry.wrong(&mut self.sink, what, "write the table that your routing daemon fills, or \"main\"");
            return None;
        }
        Some(id)
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

    /// `None`: wrong; `Some(None)`: absent.
    fn include(&mut self, s: &mut Section<'t>) -> Option<Option<String>> {
        let Some(entry) = s.take(&self.sink, "include", "\"qvpn0.d/*.toml\"") else { return Some(None) };
        let pattern = entry.string(&mut self.sink)?;
        if values::include_dir(self.path, pattern).is_none() {
            entry.wrong(
                &mut self.sink,
                format!("`include` is \"{pattern}\", which names no directory of files"),
                "write a directory and `/*.toml`, such as \"qvpn0.d/*.toml\"",
            );
            return None;
        }
        Some(Some(pattern.to_owned()))
    }
}
