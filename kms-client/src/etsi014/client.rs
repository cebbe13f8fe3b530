//! The ETSI GS QKD 014 client for one KME: it builds requests, checks answers against them, and turns each
//! failure into a [`KmsError`] with advice.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use hyper::Method;
use percent_encoding::utf8_percent_encode;
use qvpn_secret::{SecretBuf, with_scrubbed_stack};
use qvpn_types::{KeyId, SaeId};
use tokio::time::Instant;

use crate::api::Api;
use crate::config::KmeConfig;
use crate::error::{KmsError, KmsErrorKind, Operation, Violation};
use crate::etsi014::classify::{ErrorAnswer, classify};
use crate::etsi014::wire::{self, ExpectedKeys, Status};
use crate::excerpt::excerpt;
use crate::https::connector::{Call, ENCODED, KmeConnector, Transport};
use crate::https::http::Answer;
use crate::json::is_page;
use crate::key::{MAX_KEY_BITS, MAX_KEYS_PER_CALL, MIN_KEY_BITS, QkdKey};
use crate::recent_keys::RecentKeys;
use crate::source::{BoxFuture, Certificates, Connection, KeySource, Link};

/// One KME that speaks ETSI GS QKD 014. Each operation has its own connection and one deadline.
pub struct KmsClient {
    connector: KmeConnector,
    known: Mutex<LearnedLimits>,
    delivered: Mutex<RecentKeys>,
}

/// What earlier answers have shown.
#[derive(Default)]
struct LearnedLimits {
    /// The two KME IDs of each link, by the peer's SAE ID.
    links: HashMap<SaeId, (String, String)>,
    /// `dec_keys` by POST has worked, so a 404 means the key.
    post_works: bool,
    /// Operations that the KME accepts as GET only.
    only_get: Vec<Operation>,
}

impl KmsClient {
    /// Checks the config and loads the certificates. It opens no connection.
    ///
    /// # Errors
    /// [`KmsErrorKind::Config`], which names the setting or the file and what to write instead.
    pub fn new(config: KmeConfig) -> Result<Self, KmsError> {
        Ok(Self {
            connector: KmeConnector::new(config, Transport::Https)?,
            known: Mutex::default(),
            delivered: Mutex::default(),
        })
    }

    /// Requests the status of the link to SAE `slave` (ETSI GS QKD 014 clause 5.2). It takes no key.
    ///
    /// # Errors
    /// [`KmsError`] of any kind except [`Exhausted`](KmsErrorKind::Exhausted) and
    /// [`KeyNotFound`](KmsErrorKind::KeyNotFound).
    pub async fn status(&self, slave: &SaeId) -> Result<Status, KmsError> {
        let call = Call { operation: Operation::Status, peer: slave, at_stake: 0 };
        let deadline = self.connector.deadline();
        let answer = self.ask(call, Method::GET, "status", None, deadline).await?;
        self.accept(call, &answer)?;
        let parsed = wire::parse_status(answer.body.bytes());
        let mut status = parsed.map_err(|broken| self.connector.broken(call, broken))?;
        status.content_type = answer.content_type.filter(|kind| !kind.to_lowercase().contains("json"));
        if !status.master_sae_id.is_empty()
            && status.master_sae_id != self.connector.config.sae_id
            && status.master_sae_id != slave.as_str()
        {
            let config = &self.connector.config;
            tracing::debug!(kme = %config.name, ours = %config.sae_id, "the KME knows us by another SAE ID");
        }
        let names = (status.source_kme_id.clone(), status.target_kme_id.clone());
        self.known().links.insert(slave.clone(), names);
        Ok(status)
    }

    /// Takes up to `number` new keys of `size_bits` bits, shared with SAE `slave` (clause 5.3). The request
    /// is never repeated: the keys of a lost answer are spent, and the error says how many.
    ///
    /// # Errors
    /// [`KmsErrorKind::Exhausted`] if none came; [`KmsErrorKind::LostKeys`] if the answer was lost; and the
    /// other kinds.
    pub async fn enc_keys(
        &self,
        slave: &SaeId,
        number: u32,
        size_bits: u32,
    ) -> Result<Vec<QkdKey>, KmsError> {
        let call = Call { operation: Operation::EncKeys, peer: slave, at_stake: number };
        if !(1..=MAX_KEYS_PER_CALL).contains(&number) {
            return Err(self
                .connector
                .misuse(call, format!("{number} keys asked, and 1 to {MAX_KEYS_PER_CALL} are possible")));
        }
        if !size_bits.is_multiple_of(8) || !(MIN_KEY_BITS..=MAX_KEY_BITS).contains(&size_bits) {
            let range = format!("a multiple of 8 from {MIN_KEY_BITS} to {MAX_KEY_BITS} is possible");
            return Err(self.connector.misuse(call, format!("keys of {size_bits} bits asked, and {range}")));
        }
        let deadline = self.connector.deadline();
        let body = wire::enc_keys_body(number, size_bits);
        let mut answer = self.ask(call, Method::POST, "enc_keys", Some(body), deadline).await?;
        if answer.status == 405 {
            // The KME refused the method, so no key is spent. Clause 5.3 allows GET for this request too.
            let query = format!("enc_keys?number={number}&size={size_bits}");
            answer = self.ask(call, Method::GET, &query, None, deadline).await?;
            if answer.status == 200 {
                self.note_get(call.operation);
            }
        }
        self.accept(call, &answer)?;
        let keys = self.keys(call, answer, &ExpectedKeys::New { number, size_bits })?;
        if keys.is_empty() {
            return Err(self
                .connector
                .error(KmsErrorKind::Exhausted, call)
                .with_status(200, None)
                .with_detail("an empty list came"));
        }
        let (source, target) = self.link_names(slave);
        Ok(self.owned(keys, &source, &target))
    }

    /// Takes keys that SAE `master` took before, by their IDs (clause 5.4). A KME may send fewer.
    ///
    /// # Errors
    /// [`KmsErrorKind::KeyNotFound`] if the KME doesn't know them (yet): you may ask again for a bounded
    /// time. Also the other kinds.
    pub async fn dec_keys(&self, master: &SaeId, ids: &[KeyId]) -> Result<Vec<QkdKey>, KmsError> {
        let call = Call { operation: Operation::DecKeys, peer: master, at_stake: 0 };
        let most = usize::try_from(MAX_KEYS_PER_CALL).unwrap_or(usize::MAX);
        if !(1..=most).contains(&ids.len()) {
            return Err(self
                .connector
                .misuse(call, format!("{} keys asked, and 1 to {most} are possible", ids.len())));
        }
        let deadline = self.connector.deadline();
        let mut answer =
            self.ask(call, Method::POST, "dec_keys", Some(wire::dec_keys_body(ids)), deadline).await?;
        if matches!(answer.status, 405 | 501) && ids.len() > 1 {
            let keys = self.get_one_by_one(call, ids).await?;
            let (ours, theirs) = self.link_names(master);
            return Ok(self.owned(keys, &theirs, &ours));
        }
        let maybe_no_post =
            answer.status == 405 || (matches!(answer.status, 404 | 501) && !self.known().post_works);
        if let ([id], true) = (ids, maybe_no_post) {
            // Some servers accept only GET. Nothing was delivered, so a second request spends nothing.
            let query = format!("dec_keys?key_ID={}", utf8_percent_encode(id.as_str(), ENCODED));
            answer = self.ask(call, Method::GET, &query, None, deadline).await?;
            if answer.status == 200 {
                self.note_get(call.operation);
            }
        } else if answer.status == 200 {
            self.known().post_works = true;
        }
        self.accept(call, &answer)?;
        let keys = self.keys(call, answer, &ExpectedKeys::ByIds(ids))?;
        if keys.is_empty() {
            return Err(self
                .connector
                .error(KmsErrorKind::KeyNotFound, call)
                .with_status(200, None)
                .with_detail("an empty list came"));
        }
        // The master's KME issued these keys. It is the target of our link.
        let (ours, theirs) = self.link_names(master);
        Ok(self.owned(keys, &theirs, &ours))
    }

    /// Requests one key at a time from a server that accepts only GET. Each request has its own deadline. The
    /// first failure leaves the rest for later.
    async fn get_one_by_one(
        &self,
        call: Call<'_>,
        ids: &[KeyId],
    ) -> Result<Vec<(KeyId, SecretBuf)>, KmsError> {
        let (mut keys, mut failed) = (Vec::new(), None);
        for id in ids {
            match self.get_by_id(call, id).await {
                Ok(one) => keys.extend(one),
                Err(error) => {
                    let go_on = error.kind() == KmsErrorKind::KeyNotFound;
                    failed = Some(error);
                    if !go_on {
                        break;
                    }
                }
            }
        }
        match failed {
            Some(error) if keys.is_empty() => Err(error),
            _ => Ok(keys),
        }
    }

    async fn get_by_id(&self, call: Call<'_>, id: &KeyId) -> Result<Vec<(KeyId, SecretBuf)>, KmsError> {
        let query = format!("dec_keys?key_ID={}", utf8_percent_encode(id.as_str(), ENCODED));
        let answer = self.ask(call, Method::GET, &query, None, self.connector.deadline()).await?;
        self.accept(call, &answer)?;
        self.note_get(call.operation);
        self.keys(call, answer, &ExpectedKeys::ByIds(std::slice::from_ref(id)))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, LearnedLimits> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link_names(&self, peer: &SaeId) -> (String, String) {
        self.known().links.get(peer).cloned().unwrap_or_default()
    }

    /// Returns the operations that this KME accepts only as GET, where the standard also has POST.
    #[must_use]
    pub fn only_get(&self) -> Vec<Operation> {
        self.known().only_get.clone()
    }

    async fn ask(
        &self,
        call: Call<'_>,
        method: Method,
        what: &str,
        body: Option<Vec<u8>>,
        deadline: Instant,
    ) -> Result<Answer, KmsError> {
        let path = format!("/api/v1/keys/{}/{what}", utf8_percent_encode(call.peer.as_str(), ENCODED));
        self.connector.ask(call, method, &path, body, deadline).await
    }

    fn note_get(&self, operation: Operation) {
        let mut known = self.known();
        if !known.only_get.contains(&operation) {
            known.only_get.push(operation);
        }
    }

    /// Turns an answer that isn't 200 into an error.
    fn accept(&self, call: Call<'_>, answer: &Answer) -> Result<(), KmsError> {
        if answer.status == 200 {
            return Ok(());
        }
        // In the standard, only answers with 4xx and 5xx never contain keys.
        let excerpt = (400..600).contains(&answer.status).then(|| excerpt(answer.body.bytes())).flatten();
        let meaning = classify(
            call.operation,
            ErrorAnswer {
                status: answer.status,
                message: excerpt.as_deref().unwrap_or_default(),
                is_page: is_page(answer.body.bytes()),
            },
        );
        let kind = meaning.kind;
        let mut error = self
            .connector
            .error(kind, call)
            .with_status(answer.status, excerpt)
            .with_certainty(meaning.certain)
            .with_keys_lost(if meaning.may_be_done { call.at_stake } else { 0 });
        if let Some(by) = meaning.answered_by {
            return Err(self.by_intermediary(error, by.name()));
        }
        match (kind, &answer.location) {
            (KmsErrorKind::ProtocolViolation(Violation::Redirect), location) => {
                let to = location.as_deref().unwrap_or("nowhere");
                error = error
                    .with_detail(format!("a redirect to {to}, which is never followed"))
                    .with_advice("if that is where the KME is, write its address as url");
            }
            (KmsErrorKind::IdentityRefused, _) => {
                error = error.with_detail(self.connector.client_identity());
            }
            (KmsErrorKind::PeerKmeDown, _) => {
                let (_, target) = self.link_names(call.peer);
                let which = if target.is_empty() { "the KME" } else { target.as_str() };
                error = error.with_detail(format!("{which} of SAE {}", call.peer));
            }
            (KmsErrorKind::Exhausted, _) if !meaning.certain && matches!(answer.status, 404 | 410) => {
                error = error.with_advice(
                    "some KMEs say so while the link makes no keys: then wait; others say so where the \
                     url's path is wrong or they don't know the other SAE: qvpn-ctl kms check shows which",
                );
            }
            (KmsErrorKind::KeyNotFound, _) if answer.status == 401 => {
                error = error.with_detail("by the document this means that we aren't a slave SAE of the key");
            }
            _ => {}
        }
        Err(error)
    }

    /// Returns the error for an answer that a proxy wrote itself.
    fn by_intermediary(&self, error: KmsError, name: &str) -> KmsError {
        let what = format!("{name} answers, not the KME");
        match error.kind() {
            KmsErrorKind::IdentityRefused => {
                error.with_detail(format!("{what}; {}", self.connector.client_identity())).with_advice(
                    "check that the proxy before the KME trusts the CA of cert_file (in nginx: \
                     ssl_client_certificate), that the certificate hasn't expired or been revoked, and the \
                     proxy's access rules",
                )
            }
            KmsErrorKind::BadRequest => error.with_detail(what).with_advice(
                "check the url's path, and which paths and methods the proxy before the KME passes on",
            ),
            _ => error.with_detail(what),
        }
    }

    /// Reads the keys of an answer and erases the answer.
    fn keys(
        &self,
        call: Call<'_>,
        answer: Answer,
        expected: &ExpectedKeys<'_>,
    ) -> Result<Vec<(KeyId, SecretBuf)>, KmsError> {
        let parsed = with_scrubbed_stack(|| wire::parse_keys(answer.body.bytes(), expected));
        drop(answer);
        let parsed = parsed.and_then(|keys| {
            let by_ids = matches!(expected, ExpectedKeys::ByIds(_));
            self.delivered.lock().unwrap_or_else(PoisonError::into_inner).note(&keys, by_ids)?;
            Ok(keys)
        });
        parsed.map_err(|broken| self.connector.broken(call, broken))
    }

    fn owned(&self, keys: Vec<(KeyId, SecretBuf)>, source: &str, target: &str) -> Vec<QkdKey> {
        keys.into_iter()
            .map(|(id, secret)| QkdKey {
                id,
                secret,
                source_kme: source.to_owned(),
                target_kme: target.to_owned(),
                kme: self.connector.config.name.clone(),
                api: Api::Etsi014,
            })
            .collect()
    }
}

impl KeySource for KmsClient {
    fn name(&self) -> &str {
        &self.connector.config.name
    }

    fn api(&self) -> Api {
        Api::Etsi014
    }

    fn url(&self) -> &str {
        &self.connector.config.url
    }

    fn link<'a>(&'a self, peer: &'a SaeId) -> BoxFuture<'a, Result<Link, KmsError>> {
        Box::pin(async move { Ok(self.status(peer).await?.link()) })
    }

    fn fetch_new<'a>(
        &'a self,
        peer: &'a SaeId,
        number: u32,
        size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(self.enc_keys(peer, number, size_bits))
    }

    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a SaeId,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(self.dec_keys(peer, ids))
    }

    fn connection(&self) -> Option<Connection> {
        self.connector.last_connection()
    }

    fn certificates(&self) -> Certificates {
        self.connector.certificates()
    }
}
