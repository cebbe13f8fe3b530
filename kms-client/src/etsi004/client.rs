//! The ETSI GS QKD 004 client for one KME: a stream for the new keys of each peer, and the peers' own
//! streams, which are opened when they offer keys of them. A key's ID is the stream's ID and the index.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use qvpn_api::config;
use qvpn_secret::SecretBuf;
use qvpn_types::{KeyId, SaeId};

use crate::api::Api;
use crate::config::KmeConfig;
use crate::error::{KmsError, KmsErrorKind, Operation, Violation};
use crate::etsi004::association::{self, Association, Caller};
use crate::etsi004::status::Side;
use crate::etsi004::wire::{Dialect, KeyAnswer, Ksid, Qos, Service};
use crate::https::connector::{Call, KmeConnector, Transport};
use crate::json::ProtocolViolation;
use crate::key::{KEY_BITS, MAX_KEYS_PER_CALL, QkdKey};
use crate::recent_keys::RecentKeys;
use crate::source::{BoxFuture, Certificates, Connection, KeySource, Link};

/// The port of both public servers.
const DEFAULT_PORT: u16 = 25575;
/// Streams of one peer that are kept open here: after a restart of a KME or of the peer there is another.
const MAX_STREAMS_OF_PEER: usize = 3;
/// Streams whose last index is remembered, in case that the KME gives the same ID again.
const MAX_ENDED_STREAMS: usize = 64;

/// One KME that speaks ETSI GS QKD 004.
pub struct Etsi004Client {
    connector: KmeConnector,
    dialect: config::Dialect,
    /// The name of the link for the other site, since the interface has none for KMEs.
    link_name: String,
    learned: Mutex<Option<Dialect>>,
    peers: Mutex<HashMap<SaeId, Arc<tokio::sync::Mutex<PeerStreams>>>>,
    delivered: Mutex<RecentKeys>,
    ended: Mutex<VecDeque<(Ksid, u32)>>,
}

/// The streams that are shared with one peer.
#[derive(Default)]
struct PeerStreams {
    /// The one that we opened, for new keys.
    own: Option<Association>,
    /// Those that the peer opened, the one that was used last at the end.
    theirs: VecDeque<Association>,
}

/// What a trial of OPEN_CONNECT and CLOSE showed.
#[derive(Debug, Clone)]
pub struct StreamReport {
    /// `"c"` or `"python"`.
    pub dialect: &'static str,
    /// The KME's counter-proposal, in words.
    pub counter_proposal: Option<String>,
    /// Whether the KME said that the peer isn't connected.
    pub peer_missing: bool,
    /// The status of CLOSE.
    pub close_status: u32,
}

impl Etsi004Client {
    /// Checks the config and loads the certificates. It opens no connection.
    ///
    /// # Errors
    /// [`KmsErrorKind::Config`], which names the setting or the file and what to write instead.
    pub fn new(config: KmeConfig, options: &config::StreamOptions) -> Result<Self, KmsError> {
        let link_name = match &options.link {
            Some(link) => format!("{}/{link}", Api::Etsi004.as_str()),
            None => Api::Etsi004.as_str().to_owned(),
        };
        Ok(Self {
            connector: KmeConnector::new(config, Transport::Tls { default_port: DEFAULT_PORT })?,
            dialect: options.dialect,
            link_name,
            learned: Mutex::default(),
            peers: Mutex::default(),
            delivered: Mutex::default(),
            ended: Mutex::default(),
        })
    }

    /// Opens a stream for `peer` and closes it. It takes no key.
    ///
    /// # Errors
    /// The KME's failure.
    pub async fn try_stream(&self, peer: &SaeId) -> Result<StreamReport, KmsError> {
        let caller = self.caller(Operation::Status, peer, 0);
        let open = self.open(caller, Ksid::NIL).await?;
        let report = StreamReport {
            dialect: open.dialect.as_str(),
            counter_proposal: open.counter_proposal.as_ref().map(Qos::to_string),
            peer_missing: open.peer_missing,
            close_status: 0,
        };
        self.note_end(&open);
        Ok(StreamReport { close_status: open.close(caller).await?, ..report })
    }

    fn caller<'a>(&'a self, operation: Operation, peer: &'a SaeId, at_stake: u32) -> Caller<'a> {
        let call = Call { operation, peer, at_stake };
        Caller { connector: &self.connector, call, deadline: self.connector.deadline() }
    }

    fn streams(&self, peer: &SaeId) -> Arc<tokio::sync::Mutex<PeerStreams>> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(peer.clone()).or_default())
    }

    async fn open(&self, caller: Caller<'_>, ksid: Ksid) -> Result<Association, KmsError> {
        let learned = *self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let opening = Caller { call: Call { at_stake: 0, ..caller.call }, ..caller };
        let mut open = Association::open(opening, ksid, self.dialect, learned).await?;
        *self.learned.lock().unwrap_or_else(PoisonError::into_inner) = Some(open.dialect);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, next)) = ended.iter().find(|(ksid, _)| *ksid == open.ksid) {
            // Its first keys were used.
            open.next_index = *next;
        }
        Ok(open)
    }

    fn note_end(&self, stream: &Association) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|(ksid, _)| *ksid != stream.ksid);
        if ended.len() >= MAX_ENDED_STREAMS {
            ended.pop_front();
        }
        ended.push_back((stream.ksid, stream.next_index));
    }

    /// Checks that the key is not one that came before, and makes it a [`QkdKey`].
    fn accept(
        &self,
        caller: Caller<'_>,
        id: KeyId,
        secret: SecretBuf,
        by_ids: bool,
    ) -> Result<QkdKey, KmsError> {
        let key = [(id, secret)];
        let known = self.delivered.lock().unwrap_or_else(PoisonError::into_inner).note(&key, by_ids);
        known.map_err(|broken| caller.broken(broken))?;
        let [(id, secret)] = key;
        Ok(QkdKey {
            id,
            secret,
            source_kme: self.link_name.clone(),
            target_kme: self.link_name.clone(),
            kme: self.connector.config.name.clone(),
            api: Api::Etsi004,
        })
    }

    async fn new_keys(&self, peer: &SaeId, number: u32, size_bits: u32) -> Result<Vec<QkdKey>, KmsError> {
        let caller = self.caller(Operation::EncKeys, peer, 1);
        if size_bits != KEY_BITS || !(1..=MAX_KEYS_PER_CALL).contains(&number) {
            let text = format!(
                "{number} keys of {size_bits} bits asked, and 1 to {MAX_KEYS_PER_CALL} of \
                                {KEY_BITS} bits are possible"
            );
            return Err(self.connector.misuse(caller.call, text));
        }
        let streams = self.streams(peer);
        let mut streams = streams.lock().await;
        if let Some(over) = streams.own.take_if(|own| own.is_over()) {
            self.note_end(&over);
            // The KME keeps the keys that the other site has not fetched yet. If the call fails, the TTL ends
            // the stream.
            let _ = over.close(caller).await;
        }
        let mut keys = Vec::new();
        let mut failed = None;
        while failed.is_none() && keys.len() < usize::try_from(number).unwrap_or(0) {
            match self.new_key(caller, &mut streams).await {
                Ok(key) => keys.push(key),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(own) = &mut streams.own {
            own.hang_up(caller).await;
        }
        match failed {
            // Return the keys so far; the caller asks again for the rest.
            Some(error) if keys.is_empty() => Err(error),
            _ => Ok(keys),
        }
    }

    /// Takes the next key of our own stream, which is opened if it isn't. A stream that the KME lost is
    /// opened again once.
    async fn new_key(&self, caller: Caller<'_>, streams: &mut PeerStreams) -> Result<QkdKey, KmsError> {
        let mut is_new = streams.own.is_none();
        loop {
            if streams.own.is_none() {
                streams.own = Some(self.open(caller, Ksid::NIL).await?);
            }
            let Some(own) = &mut streams.own else { continue };
            let index = own.next_index;
            // If the answer is lost, this key is.
            own.next_index = index.saturating_add(1);
            match own.get_key(caller, index).await {
                Ok(KeyAnswer::Key(secret, _)) => {
                    let id = own.ksid.key_id(index).ok_or_else(|| {
                        caller.broken(ProtocolViolation(Violation::KeyId, "no key ID".to_owned()))
                    })?;
                    return self.accept(caller, id, secret, false);
                }
                Ok(KeyAnswer::Refused(3 | 4)) if !is_new => {
                    // The KME was restarted, or the stream's time is over there.
                    if let Some(lost) = streams.own.take() {
                        self.note_end(&lost);
                    }
                    is_new = true;
                }
                Ok(KeyAnswer::Refused(status)) => {
                    // Refused the second time, the key may have been taken the first time.
                    if !own.sent_twice {
                        own.next_index = index;
                    }
                    return Err(caller.refused(status, Service::GetKey, Side::First));
                }
                Ok(KeyAnswer::MoreMetadata(_)) => {
                    return Err(caller.refused(8, Service::GetKey, Side::First));
                }
                Err(error) => {
                    if matches!(error.kind(), KmsErrorKind::ProtocolViolation(_))
                        && let Some(odd) = streams.own.take()
                    {
                        self.note_end(&odd);
                        let _ = odd.close(caller).await;
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn keys_by_ids(&self, peer: &SaeId, ids: &[KeyId]) -> Result<Vec<QkdKey>, KmsError> {
        let caller = self.caller(Operation::DecKeys, peer, 0);
        let streams = self.streams(peer);
        let mut streams = streams.lock().await;
        let mut wanted = Vec::new();
        let mut missing = None;
        for id in ids {
            match Ksid::parse_key_id(id) {
                Some((ksid, index)) => wanted.push((ksid, index, id)),
                None => {
                    let text = format!("{id} isn't the ID of a key of ETSI GS QKD 004");
                    missing = Some(caller.error(KmsErrorKind::KeyNotFound).with_detail(text));
                }
            }
        }
        // In the order in which streams have them.
        wanted.sort_by_key(|(ksid, index, _)| (ksid.0, *index));
        let mut keys = Vec::new();
        for (ksid, index, id) in wanted {
            let key = match self.key_by_id(caller, &mut streams, (ksid, index)).await {
                Ok(secret) => self.accept(caller, id.clone(), secret, true),
                Err(error) => Err(error),
            };
            match key {
                Ok(key) => keys.push(key),
                Err(error) => {
                    let go_on = error.kind() == KmsErrorKind::KeyNotFound;
                    missing = Some(error);
                    if !go_on {
                        break;
                    }
                }
            }
        }
        for stream in &mut streams.theirs {
            stream.hang_up(caller).await;
        }
        match missing {
            // Return the keys so far; the caller asks for the rest again.
            Some(error) if keys.is_empty() => Err(error),
            _ => Ok(keys),
        }
    }

    /// Takes the key at `index` of the peer's stream `ksid`. The stream is opened if it isn't, and again once
    /// if the KME lost it.
    async fn key_by_id(
        &self,
        caller: Caller<'_>,
        streams: &mut PeerStreams,
        (ksid, index): (Ksid, u32),
    ) -> Result<SecretBuf, KmsError> {
        let known = streams.theirs.iter().position(|stream| stream.ksid == ksid);
        let mut stream = known.and_then(|at| streams.theirs.remove(at));
        let mut is_new = stream.is_none();
        loop {
            let mut open = match stream.take() {
                Some(open) => open,
                None => self.open(caller, ksid).await?,
            };
            match open.get_key(caller, index).await {
                Ok(KeyAnswer::Refused(3 | 4)) if !is_new => is_new = true,
                answer => {
                    let keep = !matches!(answer, Err(_) | Ok(KeyAnswer::Refused(3 | 4)));
                    if keep {
                        self.keep(caller, streams, open).await;
                    }
                    return match answer? {
                        KeyAnswer::Key(secret, _) => Ok(secret),
                        KeyAnswer::MoreMetadata(_) => Err(caller.refused(8, Service::GetKey, Side::Second)),
                        KeyAnswer::Refused(status) => {
                            Err(caller.refused(status, Service::GetKey, Side::Second))
                        }
                    };
                }
            }
        }
    }

    /// Keeps a stream of the peer open, and closes the one that was used longest ago where there are too
    /// many.
    async fn keep(&self, caller: Caller<'_>, streams: &mut PeerStreams, stream: Association) {
        if streams.theirs.len() >= MAX_STREAMS_OF_PEER
            && let Some(oldest) = streams.theirs.pop_front()
        {
            // A stream that can't be closed ends by its TTL.
            let _ = oldest.close(caller).await;
        }
        streams.theirs.push_back(stream);
    }

    async fn close_all(&self) {
        let peers: Vec<_> = {
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.drain().collect()
        };
        for (peer, streams) in peers {
            let caller = self.caller(Operation::Status, &peer, 0);
            let PeerStreams { own, theirs } = std::mem::take(&mut *streams.lock().await);
            for stream in own.into_iter().chain(theirs) {
                self.note_end(&stream);
                if let Err(error) = stream.close(caller).await {
                    tracing::debug!(%error, "a key stream was not closed");
                    break;
                }
            }
        }
    }
}

/// A stream ID that nobody has.
fn random_ksid() -> Ksid {
    let mut bytes = [0; 16];
    // Without randomness it is a fixed one that nobody has either.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        bytes = *b"qvpn is it there";
    }
    Ksid(bytes)
}

impl KeySource for Etsi004Client {
    fn name(&self) -> &str {
        &self.connector.config.name
    }

    fn api(&self) -> Api {
        Api::Etsi004
    }

    fn url(&self) -> &str {
        &self.connector.config.url
    }

    fn link<'a>(&'a self, peer: &'a SaeId) -> BoxFuture<'a, Result<Link, KmsError>> {
        Box::pin(async move {
            association::ping(self.caller(Operation::Status, peer, 0), random_ksid()).await?;
            Ok(Link {
                source_kme: self.link_name.clone(),
                target_kme: self.link_name.clone(),
                ..Link::default()
            })
        })
    }

    fn fetch_new<'a>(
        &'a self,
        peer: &'a SaeId,
        number: u32,
        size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(self.new_keys(peer, number, size_bits))
    }

    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a SaeId,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(self.keys_by_ids(peer, ids))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.close_all())
    }

    fn connection(&self) -> Option<Connection> {
        self.connector.last_connection()
    }

    fn certificates(&self) -> Certificates {
        self.connector.certificates()
    }
}
