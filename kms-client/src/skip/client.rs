//! The Secure Key Integration Protocol (draft-cisco-skip-02) for one key provider: `GET /capabilities`,
//! `/key?remoteSystemID=` and `/key/{id}`. The draft uses TLS with external pre-shared keys; rustls doesn't
//! support these, so this is SKIP over mutual TLS with certificates.

use std::sync::{Mutex, PoisonError};

use hyper::Method;
use percent_encoding::utf8_percent_encode;
use qvpn_secret::with_scrubbed_stack;
use qvpn_types::{KeyId, SaeId};

use crate::api::Api;
use crate::config::KmeConfig;
use crate::error::{KmsError, KmsErrorKind, Operation, Violation};
use crate::excerpt::excerpt;
use crate::https::connector::{Call, ENCODED, KmeConnector, Transport};
use crate::https::http::Answer;
use crate::key::QkdKey;
use crate::recent_keys::RecentKeys;
use crate::skip::wire::{self, Capabilities};
use crate::source::{BoxFuture, Certificates, Connection, KeySource, Link};

/// One key provider that speaks SKIP. A peer's SAE ID is the system ID of its key provider. Each operation
/// has its own connection and one deadline. A request delivers one key.
pub struct SkipClient {
    connector: KmeConnector,
    local: Mutex<String>,
    delivered: Mutex<RecentKeys>,
}

impl SkipClient {
    /// Checks the config and loads the certificates. It opens no connection.
    ///
    /// # Errors
    /// [`KmsErrorKind::Config`], which names the setting or the file and what to write instead.
    pub fn new(config: KmeConfig) -> Result<Self, KmsError> {
        Ok(Self {
            connector: KmeConnector::new(config, Transport::Https)?.with_psk_advice(),
            local: Mutex::default(),
            delivered: Mutex::default(),
        })
    }

    /// Asks what the key provider can do, and for which remote systems.
    ///
    /// # Errors
    /// [`KmsErrorKind::BadRequest`] if it has no keys for `peer`; and the kinds of the connection.
    pub async fn capabilities(&self, peer: &SaeId) -> Result<Capabilities, KmsError> {
        let call = Call { operation: Operation::Status, peer, at_stake: 0 };
        let answer =
            self.connector.ask(call, Method::GET, "/capabilities", None, self.connector.deadline()).await?;
        self.accept(call, &answer)?;
        let parsed = wire::parse_capabilities(answer.body.bytes());
        let capabilities = parsed.map_err(|broken| self.connector.broken(call, broken))?;
        if capabilities.key == Some(false) {
            return Err(self
                .connector
                .error(KmsErrorKind::BadRequest, call)
                .with_detail("the key provider says that it gives no keys (\"key\" is false)")
                .with_advice("have its operator switch keys on; entropy alone is of no use here"));
        }
        if !capabilities.serves(peer.as_str()) {
            return Err(self
                .connector
                .error(KmsErrorKind::BadRequest, call)
                .with_detail(format!("it has keys for {}", list(&capabilities.remote_system_ids)))
                .with_advice(
                    "write one of these as the peer's sae_id, or have the key provider's operator add the \
                     peer",
                ));
        }
        if let Ok(mut local) = self.local.lock() {
            local.clone_from(&capabilities.local_system_id);
        }
        Ok(capabilities)
    }

    async fn key(
        &self,
        call: Call<'_>,
        path: &str,
        expected: wire::ExpectedKey<'_>,
    ) -> Result<QkdKey, KmsError> {
        let answer = self.connector.ask(call, Method::GET, path, None, self.connector.deadline()).await?;
        self.accept(call, &answer)?;
        let parsed = with_scrubbed_stack(|| wire::parse_key(answer.body.bytes(), &expected));
        drop(answer);
        let by_id = matches!(expected, wire::ExpectedKey::ById(_));
        let parsed = parsed.and_then(|key| {
            let key = [key];
            self.delivered.lock().unwrap_or_else(PoisonError::into_inner).note(&key, by_id)?;
            Ok(key)
        });
        let [(id, secret)] = parsed.map_err(|broken| self.connector.broken(call, broken))?;
        let ours = self.local.lock().map(|local| local.clone()).unwrap_or_default();
        let (source_kme, target_kme) = match expected {
            wire::ExpectedKey::New { .. } => (ours, call.peer.as_str().to_owned()),
            wire::ExpectedKey::ById(_) => (call.peer.as_str().to_owned(), ours),
        };
        let kme = self.connector.config.name.clone();
        Ok(QkdKey { id, secret, source_kme, target_kme, kme, api: Api::Skip })
    }

    /// Turns an answer that isn't 200 into an error.
    fn accept(&self, call: Call<'_>, answer: &Answer) -> Result<(), KmsError> {
        if answer.status == 200 {
            return Ok(());
        }
        let excerpt = (400..600).contains(&answer.status).then(|| excerpt(answer.body.bytes())).flatten();
        let kind = wire::classify(call.operation, answer.status, excerpt.as_deref().unwrap_or_default());
        // 500 may mean that the key couldn't be erased after it was taken (table 7).
        let may_be_spent =
            matches!(answer.status, 201..=299 | 500 | 502 | 504) && kind != KmsErrorKind::Exhausted;
        let at_stake = if may_be_spent { call.at_stake } else { 0 };
        let mut error =
            self.connector.error(kind, call).with_status(answer.status, excerpt).with_keys_lost(at_stake);
        if kind == KmsErrorKind::ProtocolViolation(Violation::Redirect) {
            let to = answer.location.as_deref().unwrap_or("nowhere");
            error = error
                .with_detail(format!("a redirect to {to}, which is never followed"))
                .with_advice("if that is where the key provider is, write its address as url");
        }
        if kind == KmsErrorKind::IdentityRefused {
            error = error.with_detail(self.connector.client_identity());
        }
        Err(error)
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "nobody".to_owned(),
        names => names.iter().take(8).cloned().collect::<Vec<_>>().join(", "),
    }
}

impl KeySource for SkipClient {
    fn name(&self) -> &str {
        &self.connector.config.name
    }

    fn api(&self) -> Api {
        Api::Skip
    }

    fn url(&self) -> &str {
        &self.connector.config.url
    }

    fn link<'a>(&'a self, peer: &'a SaeId) -> BoxFuture<'a, Result<Link, KmsError>> {
        Box::pin(async move { Ok(self.capabilities(peer).await?.link(peer.as_str())) })
    }

    fn fetch_new<'a>(
        &'a self,
        peer: &'a SaeId,
        _number: u32,
        size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(async move {
            let call = Call { operation: Operation::EncKeys, peer, at_stake: 1 };
            let path = format!(
                "/key?remoteSystemID={}&size={size_bits}",
                utf8_percent_encode(peer.as_str(), ENCODED)
            );
            Ok(vec![self.key(call, &path, wire::ExpectedKey::New { size_bits }).await?])
        })
    }

    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a SaeId,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(async move {
            let call = Call { operation: Operation::DecKeys, peer, at_stake: 0 };
            let mut keys = Vec::new();
            let mut missing = None;
            for id in ids {
                let encoded = utf8_percent_encode(id.as_str(), ENCODED);
                let path =
                    format!("/key/{encoded}?remoteSystemID={}", utf8_percent_encode(peer.as_str(), ENCODED));
                match self.key(call, &path, wire::ExpectedKey::ById(id)).await {
                    Ok(key) => keys.push(key),
                    Err(error) if error.kind() == KmsErrorKind::KeyNotFound => missing = Some(error),
                    // Return the keys so far; the caller asks for the rest again.
                    Err(_) if !keys.is_empty() => break,
                    Err(error) => return Err(error),
                }
            }
            match missing {
                Some(error) if keys.is_empty() => Err(error),
                _ => Ok(keys),
            }
        })
    }

    fn connection(&self) -> Option<Connection> {
        self.connector.last_connection()
    }

    fn certificates(&self) -> Certificates {
        self.connector.certificates()
    }
}
