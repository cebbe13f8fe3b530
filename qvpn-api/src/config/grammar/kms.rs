//! The sections `[kms]` and `[[kms.kme]]`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::context::{HOME_SECTIONS, KmsFacts, Reader};
use crate::config::error::Position;
use crate::config::fault::{Fault, shown};
use crate::config::model::{ClientKey, Dialect, Kme, KmeAccess, KmeApi, KmeServer, Kms, StreamOptions};
use crate::config::positions::KmePositions;
use crate::config::reader::Section;
use crate::config::token;
use crate::config::values;
use qvpn_types::SaeId;

/// The maximum number of QKD keys held ahead for a peer; an offer has room for no more.
const MAX_STOCK: u32 = 100;

impl<'t> Reader<'t> {
    pub(super) fn kms(&mut self, mut s: Section<'t>) -> (Option<Kms>, KmsFacts) {
        let sae_id =
            s.need(&mut self.sink, "sae_id", "\"SITE-A\"").and_then(|e| self.parsed(&e, values::sae_id));
        let stock = match s.take(&self.sink, "stock", "5") {
            Some(entry) => entry.number(&mut self.sink, 1, MAX_STOCK),
            None => Some(5),
        };
        let tables = match s.take(&self.sink, "kme", "") {
            Some(entry) => entry.tables(&mut self.sink, "[[kms.kme]]"),
            None => Some(Vec::new()),
        };
        if tables.as_ref().is_some_and(Vec::is_empty) {
            self.sink.missing(
                s.at,
                "[kms] names no KME",
                "write a section `[[kms.kme]]` with name, url, ca_file, cert_file and key_file, or remove \
                 [kms]",
            );
        }
        let read = tables.map(|tables| {
            let kmes = tables.into_iter().map(|(at, table)| self.kme(at, table, sae_id.as_ref()));
            kmes.unzip::<_, _, Vec<Option<String>>, Vec<Option<Kme>>>()
        });
        let (names, kmes) = match read {
            Some((names, kmes)) => (names.into_iter().collect(), kmes.into_iter().collect()),
            None => (None, None),
        };
        s.finish(&mut self.sink, HOME_SECTIONS);
        let facts = KmsFacts { sae_id: sae_id.clone(), names };
        let kms = sae_id.zip(stock).zip(kmes).map(|((sae_id, stock), kmes)| Kms { sae_id, stock, kmes });
        (kms, facts)
    }

    fn kme(
        &mut self,
        at: Position,
        table: &'t DeTable<'t>,
        our_sae_id: Option<&SaeId>,
    ) -> (Option<String>, Option<Kme>) {
        let mut s = Section::new("[[kms.kme]]", at, self.text, table);
        let mut positions = KmePositions { url: at, ca_file: at, cert_file: at, key_file: at, keys_file: at };
        let name = s.need(&mut self.sink, "name", "\"kme-a1\"").and_then(|entry| {
            let name = self.parsed(&entry, |t| values::name(t, "kme-a1"))?;
            s.title = format!("[[kms.kme]] \"{name}\"");
            self.facts.kme_names.push((name.clone(), entry.at));
            Some(name)
        });
        let api = self.word(&mut s, "api", "\"etsi014\"", KmeApi::WORDS, KmeApi::from_word);
        let sae_id = match s.take(&self.sink, "sae_id", "\"SITE-A\"") {
            Some(entry) => self.parsed(&entry, values::sae_id),
            None => our_sae_id.cloned(),
        };
        let api = api.map(|api| api.unwrap_or(KmeApi::Etsi014));
        let options = match api {
            Some(KmeApi::Etsi004) => self.stream_options(&mut s, name.as_deref()),
            Some(_) => {
                self.no_stream_options(&mut s);
                None
            }
            None => None,
        };
        let access = match api {
            Some(KmeApi::Etsi014) => {
                self.kme_server(&mut s, name.as_deref(), &mut positions, &HTTPS).map(KmeAccess::Etsi014)
            }
            Some(KmeApi::Etsi004) => {
                let server = self.kme_server(&mut s, name.as_deref(), &mut positions, &STREAMS);
                server.zip(options).map(|(server, options)| KmeAccess::Etsi004(server, options))
            }
            Some(KmeApi::Skip) => {
                self.kme_server(&mut s, name.as_deref(), &mut positions, &HTTPS).map(KmeAccess::Skip)
            }
            Some(KmeApi::File) => {
                self.keys_file(&mut s, name.as_deref(), &mut positions).map(KmeAccess::File)
            }
            None => {
                // The kind of the KME is unknown, so each of these keys may be right.
                for key in KEYS_OF_SERVER.into_iter().chain(KEYS_OF_STREAMS).chain(["keys_file"]) {
                    let _ = s.take(&self.sink, key, "");
                }
                None
            }
        };
        s.finish(&mut self.sink, HOME_SECTIONS);
        self.positions.kmes.push(positions);
        let kme = name.clone().zip(sae_id).zip(access);
        (name, kme.map(|((name, sae_id), access)| Kme { name, sae_id, access }))
    }

    /// The keys that only `api = "etsi004"` has.
    fn stream_options(&mut self, s: &mut Section<'t>, name: Option<&str>) -> Option<StreamOptions> {
        let dialect = self.word(s, "dialect", "\"auto\"", Dialect::WORDS, Dialect::from_word);
        let mut at = s.at;
        let link = match s.take(&self.sink, "link", "\"fibre-1\"") {
            Some(entry) => {
                at = entry.at;
                self.parsed(&entry, |text| values::name(text, "fibre-1")).map(Some)
            }
            None => Some(None),
        };
        let (dialect, link) = (dialect?.unwrap_or(Dialect::Auto), link?);
        if let Some(name) = name {
            self.facts.streams.push((name.to_owned(), link.clone(), at));
        }
        Some(StreamOptions { dialect, link })
    }

    fn no_stream_options(&mut self, s: &mut Section<'t>) {
        for key in KEYS_OF_STREAMS {
            if let Some(entry) = s.take(&self.sink, key, "") {
                entry.wrong(
                    &mut self.sink,
                    format!("`{key}` is for `api = \"etsi004\"`"),
                    "write that, or remove the line",
                );
            }
        }
    }

    fn kme_server(
        &mut self,
        s: &mut Section<'t>,
        name: Option<&str>,
        positions: &mut KmePositions,
        form: &UrlForm,
    ) -> Option<KmeServer> {
        if let Some(entry) = s.take(&self.sink, "keys_file", "") {
            entry.wrong(
                &mut self.sink,
                "`keys_file` is for `api = \"file\"`",
                "write that, or remove the line; the key of our certificate is `key_file`",
            );
        }
        let server_name = s.take(&self.sink, "server_name", "\"kme-a1\"").map(|entry| {
            self.parsed(&entry, |text| match text.parse::<IpAddr>().is_ok() || values::is_host_name(text) {
                true => Ok(text.to_owned()),
                false => Err((
                    format!("\"{}\" can't be the name in a certificate", shown(text)),
                    "write a host name or an address, without scheme and port".to_owned(),
                )),
            })
        });
        let url = s.need(&mut self.sink, "url", form.example).and_then(|entry| {
            positions.url = entry.at;
            let (url, ip) = self.parsed(&entry, form.read)?;
            if let (Some(name), Some(ip)) = (name, ip) {
                self.facts.kme_ips.push((name.to_owned(), ip, entry.at));
            }
            Some(url)
        });
        let mut path = |key, example, mark: &mut Position| {
            let entry = s.need(&mut self.sink, key, example)?;
            *mark = entry.at;
            self.file_name(&entry)
        };
        let ca_file = path("ca_file", "\"/etc/qvpn/kms/ca.pem\"", &mut positions.ca_file);
        let cert_file = path("cert_file", "\"/etc/qvpn/kms/site-a.pem\"", &mut positions.cert_file);
        let key = s.need(&mut self.sink, "key_file", "\"/etc/qvpn/kms/site-a.key\"").and_then(|entry| {
            positions.key_file = entry.at;
            if !token::is_token(entry.value.as_str().unwrap_or_default()) {
                return self.file_name(&entry).map(ClientKey::File);
            }
            let directory = self.path.parent().unwrap_or(Path::new(""));
            self.parsed(&entry, |text| token::token_key(text, directory))
                .map(|key| ClientKey::Token(Box::new(key)))
        });
        Some(KmeServer {
            url: url?,
            server_name: match server_name {
                Some(name) => Some(name?),
                None => None,
            },
            ca_file: ca_file?,
            cert_file: cert_file?,
            key: key?,
        })
    }

    /// Reads the file name of `api = "file"`.
    fn keys_file(
        &mut self,
        s: &mut Section<'t>,
        name: Option<&str>,
        positions: &mut KmePositions,
    ) -> Option<PathBuf> {
        for key in KEYS_OF_SERVER {
            if let Some(entry) = s.take(&self.sink, key, "") {
                entry.wrong(
                    &mut self.sink,
                    format!("a file of keys has no `{key}`"),
                    "remove the line, or write another `api`",
                );
            }
        }
        let entry = s.need(&mut self.sink, "keys_file", "\"/srv/qvpn/site-b.keys\"")?;
        positions.keys_file = entry.at;
        let path = self.file_name(&entry)?;
        if let Some(name) = name {
            self.facts.key_files.push((name.to_owned(), path.clone(), entry.at));
        }
        Some(path)
    }
}

/// A URL as it is kept, and its host if that is an address.
type ServerUrl = (String, Option<IpAddr>);

/// The form of a server's URL.
struct UrlForm {
    example: &'static str,
    read: fn(&str) -> Result<ServerUrl, Fault>,
}

const HTTPS: UrlForm = UrlForm { example: "\"https://kme-a1.site-a.example:8443\"", read: values::kme_url };
const STREAMS: UrlForm =
    UrlForm { example: "\"tls://kme-a1.site-a.example:25575\"", read: values::stream_url };

/// The keys that only an ETSI GS QKD 004 server has.
const KEYS_OF_STREAMS: [&str; 2] = ["dialect", "link"];

/// The keys that only a KME server has.
const KEYS_OF_SERVER: [&str; 5] = ["url", "server_name", "ca_file", "cert_file", "key_file"];
