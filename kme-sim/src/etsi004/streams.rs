//! The key streams of ETSI GS QKD 004: which two SAEs share one, and which index got which key. The keys come
//! from the same links as those of the other interfaces: the SAE that asks for an index first takes the key,
//! and the other SAE fetches it at its own KME.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tracing::info;

use crate::api::{DeliveredKey, KeyRequest, Op};
use crate::etsi004::wire::{Qos, status};
use crate::faults::catalog::{Faults, Misbehaviour};
use crate::link::random_bytes;
use crate::network::Network;
use crate::refusal::Refusal;

/// A stream's ID.
pub(crate) type Ksid = [u8; 16];

/// With this the KME picks one.
const NIL: Ksid = [0; 16];
/// How far beyond the last index one may be asked for.
const MAX_SKIP: u32 = 1024;
/// Keys of a stream that one side took and the other has not fetched. One more drops the oldest.
const MAX_PENDING: usize = 1000;
/// Streams of all SAEs.
const MAX_STREAMS: usize = 10_000;
/// The chunks of the fault `counter_proposal`, bytes.
const COUNTER_CHUNK: u32 = 64;
const MAX_TTL_S: u32 = 86_400;

/// The streams of all KMEs.
#[derive(Default)]
pub(crate) struct Streams(HashMap<Ksid, Stream>);

struct Stream {
    /// The SAE that opened it, and the one that it named.
    saes: [String; 2],
    is_open: [bool; 2],
    chunk: u32,
    ttl: Duration,
    used_at: Duration,
    next_index: u32,
    /// By index: which of the two took it, and the key's ID in the network.
    pending: BTreeMap<u32, (usize, String)>,
}

/// The answer to OPEN_CONNECT.
pub(crate) struct Opened {
    pub(crate) status: u32,
    /// The QoS of the stream, or the counter-proposal, and the stream.
    pub(crate) stream: Option<(Qos, Ksid)>,
}

impl Opened {
    fn refused(status: u32) -> Self {
        Self { status, stream: None }
    }
}

impl Streams {
    /// OPEN_CONNECT of `caller` at `kme`, from the application `source` to `destination`.
    pub(crate) fn open_stream(
        &mut self,
        network: &Network,
        (kme, caller): (&str, &str),
        (source, destination): (&str, &str),
        (mut qos, ksid): (Qos, Ksid),
        fault: Misbehaviour,
        now: Duration,
    ) -> Opened {
        self.0.retain(|_, stream| now.saturating_sub(stream.used_at) <= stream.ttl);
        let no_connection = network.authorize(kme, caller).is_err()
            || source != caller
            || !network.reachable(kme, caller).iter().any(|sae| sae == destination);
        if no_connection {
            return Opened::refused(status::NO_QKD_CONNECTION);
        }
        if let Some(proposal) = counter_proposal(network.key_sizes(kme), &qos, fault) {
            return Opened { status: status::QOS_NOT_MET, stream: Some((proposal, NIL)) };
        }
        if ksid != NIL {
            let Some(stream) = self.0.get_mut(&ksid) else {
                return Opened::refused(status::NO_QKD_CONNECTION);
            };
            let side = stream.saes.iter().position(|sae| sae == caller);
            let Some(is_open) = side.filter(|_| stream.saes.iter().any(|sae| sae == destination)) else {
                return Opened::refused(status::KSID_IN_USE);
            };
            if std::mem::replace(&mut stream.is_open[is_open], true) {
                return Opened::refused(status::KSID_IN_USE);
            }
            stream.used_at = now;
            qos.numbers[0] = stream.chunk;
            return Opened { status: status::SUCCESS, stream: Some((qos, ksid)) };
        }
        let mut ksid = NIL;
        if self.0.len() >= MAX_STREAMS || random_bytes(&mut ksid).is_err() {
            return Opened::refused(status::NO_QKD_CONNECTION);
        }
        let stream = Stream {
            saes: [caller.to_owned(), destination.to_owned()],
            is_open: [true, false],
            chunk: qos.chunk(),
            ttl: Duration::from_secs(u64::from(qos.ttl().clamp(1, MAX_TTL_S))),
            used_at: now,
            next_index: 0,
            pending: BTreeMap::new(),
        };
        self.0.insert(ksid, stream);
        info!(%kme, sae = caller, peer = destination, "key stream opened");
        let status =
            if fault == Misbehaviour::PeerMissing { status::PEER_NOT_CONNECTED } else { status::SUCCESS };
        Opened { status, stream: Some((qos, ksid)) }
    }

    /// Which of the other interface's operations a GET_KEY corresponds to: taking a key, or fetching one.
    pub(crate) fn stream_op(&self, caller: &str, ksid: &Ksid, index: u32) -> Op {
        let taken = self.0.get(ksid).and_then(|stream| {
            let (by, _) = stream.pending.get(&index)?;
            Some(stream.saes.get(*by)? != caller)
        });
        if taken == Some(true) { Op::DecKeys } else { Op::EncKeys }
    }

    /// GET_KEY: the key at `index`, or a status.
    pub(crate) fn stream_key(
        &mut self,
        network: &mut Network,
        (kme, caller): (&str, &str),
        ksid: &Ksid,
        index: u32,
        faults: Faults,
        now: Duration,
    ) -> Result<DeliveredKey, u32> {
        let stream = self.0.get_mut(ksid).ok_or(status::NOT_CONNECTED)?;
        let side = stream.saes.iter().position(|sae| sae == caller).ok_or(status::NOT_CONNECTED)?;
        if !stream.is_open[side] || now.saturating_sub(stream.used_at) > stream.ttl {
            return Err(status::NOT_CONNECTED);
        }
        stream.used_at = now;
        let peer = stream.saes[1 - side].clone();
        let (next, chunk) = (stream.next_index, stream.chunk);
        if let Some((by, id)) = stream.pending.get(&index).cloned() {
            if by == side {
                // Delivered already.
                return Err(status::INSUFFICIENT_KEY);
            }
            let fetched = network.dec_keys(kme, caller, &peer, &[id], faults.dec_keys, now);
            let key = fetched.map_err(|refusal| status_of(&refusal))?.pop();
            if faults.dec_keys != Misbehaviour::DeliverTwice
                && let Some(stream) = self.0.get_mut(ksid)
            {
                stream.pending.remove(&index);
            }
            return key.ok_or(status::INSUFFICIENT_KEY);
        }
        if index < next || index - next > MAX_SKIP {
            return Err(status::INSUFFICIENT_KEY);
        }
        let request = KeyRequest { size: Some(u64::from(chunk) * 8), ..KeyRequest::default() };
        let taken = network.enc_keys(kme, caller, &peer, &request, faults.enc_keys, now);
        let key = taken.map_err(|refusal| status_of(&refusal))?.pop().ok_or(status::INSUFFICIENT_KEY)?;
        if let Some(stream) = self.0.get_mut(ksid) {
            stream.next_index = index.saturating_add(1);
            stream.pending.insert(index, (side, key.id.clone()));
            if stream.pending.len() > MAX_PENDING {
                stream.pending.pop_first();
            }
        }
        Ok(key)
    }

    /// CLOSE. What the other side has not fetched stays until it closes too, or until the TTL.
    pub(crate) fn close_stream(&mut self, caller: &str, ksid: &Ksid) -> u32 {
        let Some(stream) = self.0.get_mut(ksid) else { return status::NOT_CONNECTED };
        let side = stream.saes.iter().position(|sae| sae == caller);
        let was_open = side.and_then(|side| stream.is_open.get_mut(side)).is_some_and(std::mem::take);
        if !was_open {
            return status::NOT_CONNECTED;
        }
        info!(sae = caller, "key stream closed");
        if stream.pending.is_empty() && stream.is_open == [false, false] {
            self.0.remove(ksid);
        }
        status::SUCCESS
    }
}

/// The KME's proposal, if it can't give the chunks that are asked for.
fn counter_proposal(sizes: Option<(u32, u32)>, qos: &Qos, fault: Misbehaviour) -> Option<Qos> {
    let (min, max) = sizes?;
    let wanted = qos.chunk();
    let chunk = match fault {
        Misbehaviour::CounterProposal => COUNTER_CHUNK,
        _ => wanted.clamp(min.div_ceil(8), max / 8),
    };
    (chunk != wanted).then(|| {
        let mut proposal = qos.clone();
        proposal.numbers[0] = chunk;
        proposal
    })
}

fn status_of(refusal: &Refusal) -> u32 {
    match refusal {
        Refusal::Unauthorized(_) => status::NO_QKD_CONNECTION,
        _ => status::INSUFFICIENT_KEY,
    }
}
