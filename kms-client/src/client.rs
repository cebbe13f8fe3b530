//! The ETSI GS QKD 014 client for one KME: builds requests, holds answers against what was asked, and turns each failure
//! into a [`KmsError`] that names the KME and the way out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use qvpn_secret::{SecretBuf, with_scrubbed_stack};
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use crate::classify::classify;
use crate::config::KmeConfig;
use crate::error::{KmsError, KmsErrorKind, Operation, Phase, Violation};
use crate::excerpt::excerpt;
use crate::http::{self, Answer, Cause, Failure, MAX_BODY, Request, Target};
use crate::key::{KeyId, QkdKey};
use crate::source::{Api, BoxFuture, Certificates, KeySource, Link};
use crate::tls::TlsFiles;
use crate::tls_explain::{self, Explanation};
use crate::wire::{self, Asked, Broken, Status};

/// The smallest key that is accepted, in bits.
pub const MIN_KEY_BITS: u32 = 256;
/// The largest key that is accepted, in bits.
pub const MAX_KEY_BITS: u32 = 8192;
/// The most keys that one call asks for.
pub const MAX_KEYS_PER_CALL: u32 = 128;
/// The longest SAE ID, in bytes.
const MAX_SAE_ID_LEN: usize = 256;

/// Everything but RFC 3986's unreserved characters is encoded in a path or a query.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One KME that speaks ETSI GS QKD 014. Each operation has a connection of its own and one deadline.
pub struct KmsClient {
    config: KmeConfig,
    target: Target,
    /// The URL's path, without a slash at its end.
    prefix: String,
    tls: TlsFiles,
    known: Mutex<Known>,
}

/// What earlier answers told.
#[derive(Default)]
struct Known {
    /// Names of the KMEs of each link, by the other SAE.
    links: HashMap<String, (String, String)>,
    kme_not_after: Option<i64>,
    /// `dec_keys` by POST has worked, so a 404 to it is about the key.
    post_works: bool,
}

/// One operation under way, for the text of its errors.
#[derive(Clone, Copy)]
struct Call<'a> {
    operation: Operation,
    peer: &'a str,
    /// Keys that are spent if the answer gets lost.
    at_stake: u32,
}

impl KmsClient {
    /// Checks the config and loads the certificates; connects to nothing.
    ///
    /// # Errors
    /// [`KmsErrorKind::Config`], which names the setting or the file and what to write instead.
    pub fn new(config: KmeConfig) -> Result<Self, KmsError> {
        let wrong = |detail: String, advice: &str| {
            KmsError::new(KmsErrorKind::Config, &config.name, Operation::Configure, "")
                .with_detail(detail)
                .with_advice(advice)
        };
        let form = "write it as https://host:port";
        let url =
            url::Url::parse(&config.url).map_err(|e| wrong(format!("url {:?}: {e}", config.url), form))?;
        if url.scheme() != "https" {
            return Err(wrong(
                format!("url {:?} isn't https", config.url),
                "a KME is asked over TLS only: https://host:port",
            ));
        }
        if url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
            || url.password().is_some()
        {
            return Err(wrong(format!("url {:?} has a user, a query or a fragment", config.url), form));
        }
        let Some(url_host) = url.host() else {
            return Err(wrong(format!("url {:?} has no host", config.url), form));
        };
        let host = match url_host {
            url::Host::Domain(name) => name.to_owned(),
            url::Host::Ipv4(ip) => ip.to_string(),
            url::Host::Ipv6(ip) => ip.to_string(),
        };
        let name = config.server_name.clone().unwrap_or_else(|| host.clone());
        let server_name = ServerName::try_from(name.clone()).map_err(|_| {
            wrong(format!("server_name {name:?} is no host name"), "write a host name or an address")
        })?;
        if config.timeout.is_zero() {
            return Err(wrong("the timeout is zero".to_owned(), "set a timeout of some seconds"));
        }
        let port = url.port_or_known_default().unwrap_or(443);
        let bracketed = if name.contains(':') { format!("[{name}]") } else { name };
        let authority = url.port().map_or(bracketed.clone(), |port| format!("{bracketed}:{port}"));
        let tls = TlsFiles::load(&config).map_err(|e| wrong(e.what, &e.advice))?;
        Ok(Self {
            target: Target { host, port, server_name, authority, fwmark: config.fwmark },
            prefix: url.path().trim_end_matches('/').to_owned(),
            tls,
            known: Mutex::default(),
            config,
        })
    }

    /// Asks for the state of the link to SAE `slave` (ETSI GS QKD 014 section 5.1). Takes no key.
    ///
    /// # Errors
    /// [`KmsError`] of any kind but [`Exhausted`](KmsErrorKind::Exhausted) and [`KeyNotFound`](KmsErrorKind::KeyNotFound).
    pub async fn status(&self, slave: &str) -> Result<Status, KmsError> {
        let call = Call { operation: Operation::Status, peer: slave, at_stake: 0 };
        let deadline = self.deadline();
        let answer = self.ask(call, Method::GET, "status", None, deadline).await?;
        self.accept(call, &answer)?;
        let status = wire::parse_status(answer.body.bytes()).map_err(|broken| self.broken(call, broken))?;
        if !status.master_sae_id.is_empty()
            && status.master_sae_id != self.config.sae_id
            && status.master_sae_id != slave
        {
            tracing::debug!(kme = %self.config.name, ours = %self.config.sae_id, "the KME knows us by another SAE ID");
        }
        let names = (status.source_kme_id.clone(), status.target_kme_id.clone());
        self.known().links.insert(slave.to_owned(), names);
        Ok(status)
    }

    /// Takes up to `number` new keys of `size_bits` bits, shared with SAE `slave` (section 5.2). One call, never repeated:
    /// keys of a lost answer are spent, and the error says how many.
    ///
    /// # Errors
    /// [`KmsErrorKind::Exhausted`] if none came; [`KmsErrorKind::LostKeys`] if the answer was lost; and the other kinds.
    pub async fn enc_keys(&self, slave: &str, number: u32, size_bits: u32) -> Result<Vec<QkdKey>, KmsError> {
        let call = Call { operation: Operation::EncKeys, peer: slave, at_stake: number };
        if !(1..=MAX_KEYS_PER_CALL).contains(&number) {
            return Err(
                self.misuse(call, format!("{number} keys asked, and 1 to {MAX_KEYS_PER_CALL} are possible"))
            );
        }
        if !size_bits.is_multiple_of(8) || !(MIN_KEY_BITS..=MAX_KEY_BITS).contains(&size_bits) {
            let range = format!("a multiple of 8 from {MIN_KEY_BITS} to {MAX_KEY_BITS} is possible");
            return Err(self.misuse(call, format!("keys of {size_bits} bits asked, and {range}")));
        }
        let deadline = self.deadline();
        let body = wire::enc_keys_body(number, size_bits);
        let mut answer = self.ask(call, Method::POST, "enc_keys", Some(body), deadline).await?;
        if answer.status == 405 {
            // It refused the method, so no key is spent. Section 5.2 allows GET for this request too.
            let query = format!("enc_keys?number={number}&size={size_bits}");
            answer = self.ask(call, Method::GET, &query, None, deadline).await?;
        }
        self.accept(call, &answer)?;
        let keys = self.keys(call, answer, &Asked::New { number, size_bits })?;
        if keys.is_empty() {
            return Err(self
                .error(KmsErrorKind::Exhausted, call)
                .with_status(200, None)
                .with_detail("an empty list came"));
        }
        let (source, target) = self.link_names(slave);
        Ok(self.owned(keys, &source, &target))
    }

    /// Takes the keys that SAE `master` took before, by their IDs (section 5.3). A KME may send fewer.
    ///
    /// # Errors
    /// [`KmsErrorKind::KeyNotFound`] if the KME doesn't know them or not yet, which the caller may ask again for a bounded
    /// time; and the other kinds.
    pub async fn dec_keys(&self, master: &str, ids: &[KeyId]) -> Result<Vec<QkdKey>, KmsError> {
        let call = Call { operation: Operation::DecKeys, peer: master, at_stake: 0 };
        let most = usize::try_from(MAX_KEYS_PER_CALL).unwrap_or(usize::MAX);
        if !(1..=most).contains(&ids.len()) {
            return Err(self.misuse(call, format!("{} keys asked, and 1 to {most} are possible", ids.len())));
        }
        let deadline = self.deadline();
        let mut answer =
            self.ask(call, Method::POST, "dec_keys", Some(wire::dec_keys_body(ids)), deadline).await?;
        let maybe_no_post = matches!(answer.status, 404 | 405 | 501) && !self.known().post_works;
        if let ([id], true) = (ids, maybe_no_post) {
            // Some servers have only the GET form. Nothing was delivered, so asking again spends nothing.
            let query = format!("dec_keys?key_ID={}", utf8_percent_encode(id.as_str(), ENCODED));
            answer = self.ask(call, Method::GET, &query, None, deadline).await?;
        } else if answer.status == 200 {
            self.known().post_works = true;
        }
        self.accept(call, &answer)?;
        let keys = self.keys(call, answer, &Asked::ByIds(ids))?;
        if keys.is_empty() {
            return Err(self
                .error(KmsErrorKind::KeyNotFound, call)
                .with_status(200, None)
                .with_detail("an empty list came"));
        }
        // The master's KME is the source of these keys, and it is the other end of our link.
        let (ours, theirs) = self.link_names(master);
        Ok(self.owned(keys, &theirs, &ours))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link_names(&self, peer: &str) -> (String, String) {
        self.known().links.get(peer).cloned().unwrap_or_default()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.timeout
    }

    fn error(&self, kind: KmsErrorKind, call: Call<'_>) -> KmsError {
        KmsError::new(kind, &self.config.name, call.operation, call.peer)
    }

    fn misuse(&self, call: Call<'_>, detail: String) -> KmsError {
        self.error(KmsErrorKind::Config, call).with_detail(detail)
    }

    /// One request and its answer of any status.
    async fn ask(
        &self,
        call: Call<'_>,
        method: Method,
        what: &str,
        body: Option<Vec<u8>>,
        deadline: Instant,
    ) -> Result<Answer, KmsError> {
        if call.peer.is_empty() || call.peer.len() > MAX_SAE_ID_LEN || matches!(call.peer, "." | "..") {
            let detail = format!("the other site's SAE ID has {} bytes", call.peer.len());
            return Err(self
                .misuse(call, detail)
                .with_advice(format!("set the peer's sae_id to its SAE ID of 1 to {MAX_SAE_ID_LEN} bytes")));
        }
        let path = format!("{}/api/v1/keys/{}/{what}", self.prefix, utf8_percent_encode(call.peer, ENCODED));
        let credentials = self.tls.current();
        let (tls, verifier) = self.tls.connection(&credentials).map_err(|e| {
            self.error(KmsErrorKind::Config, call).with_detail(format!("TLS can't be set up: {e}"))
        })?;
        let result = http::perform(&self.target, tls, Request { method, path, body }, deadline).await;
        let shown = verifier.shown();
        if let Some(cert) = &shown {
            self.known().kme_not_after = Some(cert.not_after);
        }
        result.map_err(|failure| {
            let context = tls_explain::Context {
                expected: &self.target.server_name.to_str(),
                shown,
                own: credentials.own.as_ref(),
                sae_id: &self.config.sae_id,
                ca_file: &self.config.ca_file.display().to_string(),
                cert_file: &self.config.cert_file.display().to_string(),
            };
            self.failed(call, failure, &context)
        })
    }

    /// Turns an answer that isn't 200 into an error.
    fn accept(&self, call: Call<'_>, answer: &Answer) -> Result<(), KmsError> {
        if answer.status == 200 {
            return Ok(());
        }
        // Only a client or server error can't hold keys by the document.
        let excerpt = (400..600).contains(&answer.status).then(|| excerpt(answer.body.bytes())).flatten();
        let kind = classify(call.operation, answer.status, excerpt.as_deref().unwrap_or_default());
        // A gateway in between gives up on a KME that may go on; other 2xx may have delivered what isn't read.
        let at_stake = if matches!(answer.status, 201..=299 | 502 | 504) { call.at_stake } else { 0 };
        let mut error = self.error(kind, call).with_status(answer.status, excerpt).with_keys_lost(at_stake);
        match (kind, &answer.location) {
            (KmsErrorKind::ProtocolViolation(Violation::Redirect), location) => {
                let to = location.as_deref().unwrap_or("nowhere");
                error = error
                    .with_detail(format!("a redirect to {to}, which is never followed"))
                    .with_advice("if that is where the KME is, write its address as url");
            }
            (KmsErrorKind::IdentityRefused, _) => {
                let own = self.tls.current();
                let own = own.own.as_ref().map_or("?", |cert| cert.subject.as_str());
                error = error.with_detail(format!(
                    "our certificate has the common name {own}, our SAE ID is {}",
                    self.config.sae_id
                ));
            }
            (KmsErrorKind::KeyNotFound, _) if answer.status == 401 => {
                error = error.with_detail("by the document this means that we aren't a slave SAE of the key");
            }
            _ => {}
        }
        Err(error)
    }

    /// Reads the keys of an answer, which is erased.
    fn keys(
        &self,
        call: Call<'_>,
        answer: Answer,
        asked: &Asked<'_>,
    ) -> Result<Vec<(KeyId, SecretBuf)>, KmsError> {
        let parsed = with_scrubbed_stack(|| wire::parse_keys(answer.body.bytes(), asked));
        drop(answer);
        parsed.map_err(|broken| self.broken(call, broken))
    }

    fn owned(&self, keys: Vec<(KeyId, SecretBuf)>, source: &str, target: &str) -> Vec<QkdKey> {
        keys.into_iter()
            .map(|(id, secret)| QkdKey {
                id,
                secret,
                source_kme: source.to_owned(),
                target_kme: target.to_owned(),
                kme: self.config.name.clone(),
            })
            .collect()
    }

    fn broken(&self, call: Call<'_>, Broken(violation, detail): Broken) -> KmsError {
        self.error(KmsErrorKind::ProtocolViolation(violation), call)
            .with_status(200, None)
            .with_detail(detail)
            .with_keys_lost(call.at_stake)
    }

    fn failed(&self, call: Call<'_>, failure: Failure, context: &tls_explain::Context<'_>) -> KmsError {
        let Failure { phase, cause, status } = failure;
        let sent = matches!(phase, Phase::Answer | Phase::Body);
        // An error status means that no key was delivered, so nothing is lost with the rest of that answer.
        let spent = sent && call.at_stake > 0 && status.is_none_or(|status| status == 200);
        let lost = if spent { call.at_stake } else { 0 };
        let with_status = |error: KmsError| match status {
            Some(status) => error.with_status(status, None),
            None => error,
        };
        let place = format!("{}:{}", self.target.host, self.target.port);
        let refused = match phase {
            Phase::Answer => "; some servers do so when they refuse a client certificate",
            _ => "",
        };
        let broke_off = |detail: String| {
            let kind = if spent { KmsErrorKind::LostKeys(phase) } else { KmsErrorKind::Unreachable };
            with_status(self.error(kind, call)).with_detail(detail).with_keys_lost(lost)
        };
        match cause {
            Cause::Deadline => {
                let kind = if spent { KmsErrorKind::LostKeys(phase) } else { KmsErrorKind::Timeout(phase) };
                with_status(self.error(kind, call))
                    .with_detail(format!("{place}, after {:?}", self.config.timeout))
                    .with_keys_lost(lost)
            }
            Cause::NoAddress => {
                self.error(KmsErrorKind::Unreachable, call).with_detail(format!("{place} has no address"))
            }
            Cause::Mark(e) => self
                .error(KmsErrorKind::Config, call)
                .with_detail(format!("the socket can't get fwmark {:?}: {e}", self.target.fwmark))
                .with_advice("give the program CAP_NET_ADMIN, or remove fwmark"),
            Cause::Tls(e) => {
                let Explanation { kind, detail, advice } = tls_explain::explain(&e, context);
                // TLS 1.3 tells of a refused certificate only after the request has gone out, but before it was looked at.
                let lost = if kind == KmsErrorKind::IdentityRefused { 0 } else { lost };
                self.error(kind, call).with_detail(detail).with_advice(advice).with_keys_lost(lost)
            }
            Cause::Io(e) if sent => {
                broke_off(format!("the connection to {place} broke {phase}: {e}{refused}"))
            }
            Cause::Closed if sent => broke_off(format!("{place} closed the connection {phase}{refused}")),
            Cause::Io(e) => {
                self.error(KmsErrorKind::Unreachable, call).with_detail(format!("{place}, {phase}: {e}"))
            }
            Cause::Closed => self
                .error(KmsErrorKind::Unreachable, call)
                .with_detail(format!("{place} closed the connection {phase}")),
            Cause::TooLarge => {
                with_status(self.error(KmsErrorKind::ProtocolViolation(Violation::TooLarge), call))
                    .with_detail(format!("the answer is larger than {MAX_BODY} bytes"))
                    .with_keys_lost(lost)
            }
            Cause::Http(text) => {
                with_status(self.error(KmsErrorKind::ProtocolViolation(Violation::Http), call))
                    .with_detail(format!("{place} doesn't answer in HTTP/1: {text}"))
                    .with_advice("check that url is the KME's, and not another service's")
                    .with_keys_lost(lost)
            }
        }
    }
}

impl KeySource for KmsClient {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn api(&self) -> Api {
        Api::Etsi014
    }

    fn url(&self) -> &str {
        &self.config.url
    }

    fn link<'a>(&'a self, peer: &'a str) -> BoxFuture<'a, Result<Link, KmsError>> {
        Box::pin(async move {
            let status = self.status(peer).await?;
            let max = status.max_key_per_request.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            Ok(Link {
                source_kme: status.source_kme_id,
                target_kme: status.target_kme_id,
                stored_key_count: status.stored_key_count,
                // Zero would mean that the KME gives no key at all: it is a field that nobody filled in.
                max_key_per_request: max.filter(|n| *n > 0),
            })
        })
    }

    fn fetch_new<'a>(
        &'a self,
        peer: &'a str,
        number: u32,
        size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(self.enc_keys(peer, number, size_bits))
    }

    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a str,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(self.dec_keys(peer, ids))
    }

    fn certificates(&self) -> Certificates {
        Certificates {
            own_not_after: self.tls.current().own.as_ref().map(|cert| cert.not_after),
            kme_not_after: self.known().kme_not_after,
            problem: self.tls.problem(),
        }
    }
}
