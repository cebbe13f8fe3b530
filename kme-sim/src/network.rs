//! The KMEs, their links and the relay between them: which SAE gets which key, and where each key is until then. Pure:
//! time is an argument (since the start), so that supply and relay delay can be tested without waiting.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::api::{
    DeliveredKey, KEY_NOT_FOUND, KeyRequest, MANDATORY_UNMET, MANDATORY_UNSUPPORTED, OPTIONAL_UNHANDLED,
    Refusal, SIZE_MULTIPLE_OF_8, Status,
};
use crate::config::{Config, KmeConfig};
use crate::link::{Link, NoRandomness};
use crate::misbehave::Misbehaviour;
use crate::quirks::{self, Limits};
use crate::relay;

/// All KMEs of one process.
pub struct Network {
    kmes: BTreeMap<String, Kme>,
    links: Vec<Link>,
    /// SAE ID to the name of its KME.
    saes: HashMap<String, String>,
    /// Nodes and KMEs that pass on what others take.
    relays: BTreeSet<String>,
}

/// One KME's own part.
struct Kme {
    config: KmeConfig,
    waiting: HashMap<String, Waiting>,
    /// The IDs in `waiting`, oldest first.
    by_age: BTreeMap<u64, String>,
    next_age: u64,
    /// The first key since a fault was set that repeats it.
    first: Option<DeliveredKey>,
    counts: Counts,
}

/// What a KME did since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Keys that master SAEs took.
    pub keys_taken: u64,
    /// Keys that slave SAEs fetched.
    pub keys_fetched: u64,
    /// Requests for which a link held too few bits.
    pub exhausted: u64,
    /// Requests for an ID that wasn't there.
    pub not_found: u64,
}

/// A link's supply, for the admin socket.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkStats {
    /// The KMEs or nodes that it joins.
    pub kmes: [String; 2],
    /// Secret bits a second, at the moment.
    pub bits_per_s: f64,
    /// Share of sifted bits that differ, at the moment.
    pub qber: f64,
    /// Whether it yields at the moment: no pause, and a pass is on.
    pub active: bool,
    /// Pulses that an eavesdropper measures, percent.
    pub intercepted_percent: u8,
    /// Bits in the store.
    pub stored_bits: u64,
    /// Bits that it holds at most.
    pub max_bits: u64,
    /// Bits yielded since the start.
    pub produced_bits: u64,
    /// Bits lost because the store was full.
    pub lost_bits: u64,
    /// Bits taken for keys or for carrying keys.
    pub spent_bits: u64,
}

/// A key that lies at a KME until each of its slave SAEs there has fetched it.
struct Waiting {
    age: u64,
    master: String,
    named: Vec<String>,
    left: BTreeSet<String>,
    available_at: Duration,
    key: DeliveredKey,
}

/// What a link holds, for the admin socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkReport {
    /// The KMEs that it joins.
    pub kmes: [String; 2],
    /// Whole keys of the link's `key_size` that can be taken now.
    pub stored_key_count: u64,
    /// Keys that it holds at most.
    pub max_key_count: u64,
    /// Whether its supply is stopped.
    pub paused: bool,
}

impl From<NoRandomness> for Refusal {
    fn from(error: NoRandomness) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Network {
    /// The network of `config`, at time zero.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let kme = |k: &KmeConfig| Kme {
            config: k.clone(),
            waiting: HashMap::new(),
            by_age: BTreeMap::new(),
            next_age: 0,
            first: None,
            counts: Counts::default(),
        };
        Self {
            kmes: config.kmes.iter().map(|k| (k.name.clone(), kme(k))).collect(),
            links: config.links.iter().map(Link::new).collect(),
            relays: config
                .nodes
                .iter()
                .chain(config.kmes.iter().filter(|k| k.relay).map(|k| &k.name))
                .cloned()
                .collect(),
            saes: config.saes.iter().map(|s| (s.id.clone(), s.kme.clone())).collect(),
        }
    }

    /// Whether `sae` is one of `kme`'s own.
    ///
    /// # Errors
    /// 401 if it isn't.
    pub fn authorize(&self, kme: &str, sae: &str) -> Result<(), Refusal> {
        match self.saes.get(sae) {
            Some(at) if at == kme => Ok(()),
            _ => Err(Refusal::Unauthorized("the certificate is no SAE's of this KME")),
        }
    }

    /// Get status (clause 5.1): what `caller` at `kme` could share with `slave`.
    ///
    /// # Errors
    /// 401 if `caller` isn't this KME's, 400 if `slave` is unknown or no link leads to its KME.
    pub fn status(
        &mut self,
        kme: &str,
        caller: &str,
        slave: &str,
        fault: Misbehaviour,
        now: Duration,
    ) -> Result<Status, Refusal> {
        self.authorize(kme, caller)?;
        let (target, way) = self.way(kme, caller, slave)?;
        let (mut stored, mut most) = (u64::MAX, u64::MAX);
        let (mut rate, mut qber) = (f64::INFINITY, 0f64);
        for link in &way {
            let link = &mut self.links[*link];
            link.advance(now);
            (stored, most) = (stored.min(link.stored_bits()), most.min(link.max_bits()));
            let state = link.state();
            rate = rate.min(if link.is_active() { state.bits_per_s } else { 0.0 });
            qber = qber.max(state.qber);
        }
        let key_size = self.key_size(&way);
        let limits = Limits::new(&self.kmes[kme].config, key_size, fault);
        let mut status = Status {
            source_kme_id: kme.to_owned(),
            target_kme_id: target,
            master_sae_id: caller.to_owned(),
            slave_sae_id: slave.to_owned(),
            key_size: limits.default_size,
            stored_key_count: stored / u64::from(key_size),
            max_key_count: most / u64::from(key_size),
            max_key_per_request: limits.max_keys,
            max_key_size: limits.max_size,
            min_key_size: limits.min_size,
            max_sae_id_count: limits.max_sae_ids,
            status_extension: Some(json!({
                "qber": (qber * 1e4).round() / 1e4,
                "key_rate_bits_per_s": rate.round(),
                "hops": way.len(),
            })),
        };
        if fault == Misbehaviour::CountWaiting
            && let Some(target) = self.kmes.get(&status.target_kme_id)
        {
            let of_pair = |w: &&Waiting| w.master == caller && w.left.contains(slave);
            status.stored_key_count = target.waiting.values().filter(of_pair).count() as u64;
        }
        quirks::status(fault, &mut status)?;
        Ok(status)
    }

    /// Get key (clause 5.2): takes keys for `caller` at `kme` and sends them to the KMEs of its slaves. All or none.
    ///
    /// # Errors
    /// 401 if `caller` isn't this KME's, 400 for a request that can't be met, 503 if a link holds too few bits.
    pub fn enc_keys(
        &mut self,
        kme: &str,
        caller: &str,
        slave: &str,
        request: &KeyRequest,
        fault: Misbehaviour,
        now: Duration,
    ) -> Result<Vec<DeliveredKey>, Refusal> {
        self.authorize(kme, caller)?;
        let (_, first_way) = self.way(kme, caller, slave)?;
        let config = &self.kmes[kme].config;
        let limits = Limits::new(config, self.key_size(&first_way), fault);
        let (number, bits) = checked_amount(&limits, request)?;
        let (number, bits) = quirks::amount(fault, request, number, bits);
        check_extensions(config, request)?;
        if let (Misbehaviour::RepeatKeys, Some(first)) = (fault, &self.kmes[kme].first) {
            return Ok(vec![first.duplicate()]);
        }

        // The slaves by their KME, and the way that the key goes there.
        let mut targets: BTreeMap<String, (Vec<usize>, Vec<String>)> = BTreeMap::new();
        let mut named = BTreeSet::new();
        for sae in std::iter::once(slave).chain(request.additional_slave_sae_ids.iter().map(String::as_str)) {
            if !named.insert(sae) {
                return Err(Refusal::bad(format!("the slave SAE {sae:?} is named twice")));
            }
            let (target, way) = self.way(kme, caller, sae)?;
            targets.entry(target).or_insert_with(|| (way, Vec::new())).1.push(sae.to_owned());
        }

        // A key costs its bits on each hop: the first gives them, the others carry it under a one-time pad.
        let cost = number.saturating_mul(bits);
        let mut costs: BTreeMap<usize, u64> = BTreeMap::new();
        for link in targets.values().flat_map(|(way, _)| way) {
            let sum = costs.entry(*link).or_default();
            *sum = sum.saturating_add(cost);
        }
        for (link, cost) in &costs {
            self.links[*link].advance(now);
            if !self.links[*link].has(*cost) {
                let [a, b] = &self.links[*link].kmes;
                let message = format!(
                    "the link {a} - {b} holds too few key bits for {number} of {bits}; try again later"
                );
                self.count(kme, |counts| counts.exhausted += 1);
                return Err(Refusal::Unavailable(message));
            }
        }
        let bytes = usize::try_from(bits / 8).unwrap_or(usize::MAX);
        let first_link = &mut self.links[first_way[0]];
        let mut keys: Vec<DeliveredKey> =
            (0..number).map(|_| first_link.next_key(bytes)).collect::<Result<_, _>>()?;
        if fault == Misbehaviour::OddIds {
            keys.iter_mut().for_each(|key| key.id = quirks::odd_id(&key.id));
        } else if request.hex_ids {
            keys.iter_mut().for_each(|key| key.id.retain(|c| c != '-'));
        }
        for (link, cost) in &costs {
            self.links[*link].spend(*cost);
        }
        for (target, (way, slaves)) in targets {
            let delays = way.iter().map(|link| self.links[*link].relay_delay);
            let available_at = delays.fold(now, Duration::saturating_add);
            // The link that gave the key has it at both of its ends.
            let hops = way.iter().filter(|link| **link != first_way[0]).count();
            if let Some(at) = self.kmes.get_mut(&target) {
                if fault == Misbehaviour::ForgetPrevious {
                    at.forget(|w| w.master == caller && w.named == slaves);
                }
                let lost = usize::from(fault == Misbehaviour::LoseFirst);
                for key in keys.iter().skip(lost) {
                    at.put(relay::carry(key, hops)?, caller, &slaves, available_at);
                }
            }
        }
        for key in &keys {
            info!(key_id = %key.id, %kme, side = "master", sae = caller, slave, "key delivered");
        }
        self.count(kme, |counts| counts.keys_taken += number);
        if let Some(at) = self.kmes.get_mut(kme) {
            at.repeat(fault, &mut keys);
        }
        Ok(keys)
    }

    /// Get key with key IDs (clause 5.3): hands keys that `master` took over to its slave `caller`. All or none.
    ///
    /// # Errors
    /// 401 if `caller` isn't this KME's or wasn't named as a slave of one of the keys, 400 if an ID isn't here.
    pub fn dec_keys(
        &mut self,
        kme: &str,
        caller: &str,
        master: &str,
        ids: &[String],
        fault: Misbehaviour,
        now: Duration,
    ) -> Result<Vec<DeliveredKey>, Refusal> {
        self.authorize(kme, caller)?;
        let Some(kme_state) = self.kmes.get_mut(kme) else {
            return Err(Refusal::Unauthorized("there is no such KME"));
        };
        let limit = Limits::new(&kme_state.config, 0, fault).max_keys;
        if fault == Misbehaviour::ForgetKeys {
            kme_state.forget(|w| ids.contains(&w.key.id));
        }
        let late = if fault == Misbehaviour::LateSync { quirks::LATE } else { Duration::ZERO };
        if ids.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(Refusal::bad(format!("key_IDs shall have at most {limit} entries")));
        }
        if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
            return Err(Refusal::bad("a key_ID is given twice"));
        }
        let mut missing = Vec::new();
        for id in ids {
            match kme_state.waiting.get(id).filter(|w| w.master == master && w.available_at + late <= now) {
                Some(w) if !w.named.iter().any(|s| s == caller) => {
                    return Err(Refusal::Unauthorized(
                        "the caller is no slave SAE of a key that it asked for",
                    ));
                }
                Some(w) if w.left.contains(caller) => {}
                _ => missing.push(id),
            }
        }
        if !missing.is_empty() {
            debug!(%kme, sae = caller, %master, ?missing, "keys not found");
            kme_state.counts.not_found += 1;
            return Err(Refusal::bad(KEY_NOT_FOUND));
        }
        let keys: Vec<DeliveredKey> =
            ids.iter().filter_map(|id| kme_state.fetch(id, caller, fault)).collect();
        kme_state.counts.keys_fetched += keys.len() as u64;
        for key in &keys {
            info!(key_id = %key.id, %kme, side = "slave", sae = caller, master, "key delivered");
        }
        Ok(keys)
    }

    /// The SAEs that `caller` at `kme` can share keys with, in the order of their IDs.
    pub(crate) fn reachable(&self, kme: &str, caller: &str) -> Vec<String> {
        let mut ids: Vec<String> =
            self.saes.keys().filter(|sae| self.way(kme, caller, sae).is_ok()).cloned().collect();
        ids.sort();
        ids
    }

    /// Lets a KME that repeats a first key forget it.
    pub(crate) fn forget_first(&mut self, kme: &str) {
        if let Some(kme) = self.kmes.get_mut(kme) {
            kme.first = None;
        }
    }

    /// Stops (`paused`) or restarts the supply of the link between two KMEs. False: there is no such link.
    pub fn pause_link(&mut self, kmes: &[String; 2], paused: bool, now: Duration) -> bool {
        let link = self.links.iter_mut().find(|l| l.joins(&kmes[0], &kmes[1]));
        link.map(|link| link.set_paused(paused, now)).is_some()
    }

    /// What each link holds.
    pub fn links(&mut self, now: Duration) -> Vec<LinkReport> {
        let report = |link: &mut Link| {
            link.advance(now);
            LinkReport {
                kmes: link.kmes.clone(),
                stored_key_count: link.stored_bits() / u64::from(link.key_size),
                max_key_count: link.max_bits() / u64::from(link.key_size),
                paused: link.is_paused(),
            }
        };
        self.links.iter_mut().map(report).collect()
    }

    /// How many keys wait at `kme` for a slave SAE.
    #[must_use]
    pub fn waiting(&self, kme: &str) -> usize {
        self.kmes.get(kme).map_or(0, |k| k.waiting.len())
    }

    /// Lets an eavesdropper measure and resend `percent` of the pulses between two KMEs or nodes. False: there is no such
    /// link.
    pub fn eavesdrop(&mut self, kmes: &[String; 2], percent: u8, now: Duration) -> bool {
        let link = self.links.iter_mut().find(|l| l.joins(&kmes[0], &kmes[1]));
        link.map(|link| link.set_intercepted(percent, now)).is_some()
    }

    /// The supply of each link.
    pub fn link_stats(&mut self, now: Duration) -> Vec<LinkStats> {
        let stats = |link: &mut Link| {
            link.advance(now);
            let (state, totals) = (link.state(), link.totals());
            LinkStats {
                kmes: link.kmes.clone(),
                bits_per_s: state.bits_per_s,
                qber: state.qber,
                active: link.is_active(),
                intercepted_percent: link.intercepted(),
                stored_bits: link.stored_bits(),
                max_bits: link.max_bits(),
                produced_bits: totals.produced,
                lost_bits: totals.lost,
                spent_bits: totals.spent,
            }
        };
        self.links.iter_mut().map(stats).collect()
    }

    /// What `kme` did.
    #[must_use]
    pub fn counts(&self, kme: &str) -> Counts {
        self.kmes.get(kme).map(|k| k.counts).unwrap_or_default()
    }

    fn count(&mut self, kme: &str, add: impl FnOnce(&mut Counts)) {
        if let Some(kme) = self.kmes.get_mut(kme) {
            add(&mut kme.counts);
        }
    }

    /// Default size of a key that goes this way, bits.
    fn key_size(&self, way: &[usize]) -> u32 {
        way.first().map_or(256, |link| self.links[*link].key_size)
    }

    /// The KME of `slave` and the links that lead there from `kme`: one at least, and as few as there can be.
    fn way(&self, kme: &str, caller: &str, slave: &str) -> Result<(String, Vec<usize>), Refusal> {
        if slave == caller {
            return Err(Refusal::bad("master and slave SAE are the same"));
        }
        let Some(target) = self.saes.get(slave) else {
            return Err(Refusal::bad(format!("the SAE {slave:?} is unknown to this KME")));
        };
        let way = relay::way(&self.links, &self.relays, kme, target);
        let way = way.ok_or_else(|| Refusal::bad(format!("no QKD link leads from {kme} to {target}")))?;
        Ok((target.clone(), way))
    }
}

impl Kme {
    fn put(&mut self, key: DeliveredKey, master: &str, slaves: &[String], available_at: Duration) {
        let limit = usize::try_from(self.config.max_waiting_keys).unwrap_or(usize::MAX);
        while self.waiting.len() >= limit {
            let Some((_, id)) = self.by_age.pop_first() else { break };
            self.waiting.remove(&id);
            warn!(key_id = %id, kme = %self.config.name, "key forgotten: no slave SAE fetched it and the store is full");
        }
        let age = self.next_age;
        self.next_age += 1;
        self.by_age.insert(age, key.id.clone());
        let waiting = Waiting {
            age,
            master: master.to_owned(),
            named: slaves.to_vec(),
            left: slaves.iter().cloned().collect(),
            available_at,
            key,
        };
        self.waiting.insert(waiting.key.id.clone(), waiting);
    }

    /// Throws away the keys that `which` names.
    fn forget(&mut self, which: impl Fn(&Waiting) -> bool) {
        self.waiting.retain(|_, waiting| {
            let forgotten = which(waiting);
            if forgotten {
                self.by_age.remove(&waiting.age);
            }
            !forgotten
        });
    }

    /// Remembers the first key of all under a fault that repeats it, and repeats its ID.
    fn repeat(&mut self, fault: Misbehaviour, keys: &mut [DeliveredKey]) {
        if !matches!(fault, Misbehaviour::RepeatKeys | Misbehaviour::RepeatId) {
            return;
        }
        match (&self.first, keys.first_mut()) {
            (None, key) => self.first = key.map(|k| k.duplicate()),
            (Some(first), Some(key)) if fault == Misbehaviour::RepeatId => key.id.clone_from(&first.id),
            _ => {}
        }
    }

    /// The key for `sae`; it leaves the store when all its slave SAEs have it.
    fn fetch(&mut self, id: &str, sae: &str, fault: Misbehaviour) -> Option<DeliveredKey> {
        let waiting = self.waiting.get_mut(id)?;
        if fault == Misbehaviour::DeliverTwice {
            return Some(waiting.key.duplicate());
        }
        waiting.left.remove(sae);
        if !waiting.left.is_empty() {
            return Some(waiting.key.duplicate());
        }
        let waiting = self.waiting.remove(id)?;
        self.by_age.remove(&waiting.age);
        Some(waiting.key)
    }
}

/// How many keys and of how many bits, within the KME's limits.
fn checked_amount(limits: &Limits, request: &KeyRequest) -> Result<(u64, u64), Refusal> {
    let number = request.number.unwrap_or(1);
    let most = limits.max_keys;
    if number == 0 || number > u64::from(most) {
        return Err(Refusal::bad(format!("number shall be from 1 to {most}")));
    }
    let size = request.size.unwrap_or_else(|| u64::from(limits.default_size));
    if !size.is_multiple_of(8) {
        return Err(Refusal::bad(SIZE_MULTIPLE_OF_8));
    }
    let (min, max) = (limits.min_size, limits.max_size);
    if size < u64::from(min) || size > u64::from(max) {
        return Err(Refusal::bad(format!("size shall be from {min} to {max} bits")));
    }
    let most = limits.max_sae_ids;
    if request.additional_slave_sae_ids.len() > usize::try_from(most).unwrap_or(usize::MAX) {
        return Err(Refusal::bad(format!("additional_slave_SAE_IDs shall have at most {most} entries")));
    }
    Ok((number, size))
}

/// Whether the KME knows each extension and can meet its value.
fn check_extensions(config: &KmeConfig, request: &KeyRequest) -> Result<(), Refusal> {
    let of = |extensions: &[serde_json::Map<String, Value>], wanted: Support| -> Vec<Value> {
        let pairs = extensions.iter().flatten();
        pairs.filter(|(n, v)| support(config, n, v) == wanted).map(|(n, _)| json!({ "name": n })).collect()
    };
    let refuse = |message: &str, details| Err(Refusal::BadRequest { message: message.to_owned(), details });
    let unknown = of(&request.extension_mandatory, Support::Unknown);
    if !unknown.is_empty() {
        return refuse(MANDATORY_UNSUPPORTED, unknown);
    }
    let unmet = of(&request.extension_mandatory, Support::Unmet);
    if !unmet.is_empty() {
        return refuse(MANDATORY_UNMET, unmet);
    }
    let mut ignored = of(&request.extension_optional, Support::Unknown);
    ignored.extend(of(&request.extension_optional, Support::Unmet));
    if config.refuse_optional_extensions && !ignored.is_empty() {
        return refuse(OPTIONAL_UNHANDLED, ignored);
    }
    Ok(())
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Support {
    Met,
    Unmet,
    Unknown,
}

fn support(config: &KmeConfig, name: &str, value: &Value) -> Support {
    match config.extensions.get(name) {
        None => Support::Unknown,
        Some(values) if values.iter().any(|v| value.as_str() == Some(v)) => Support::Met,
        Some(_) => Support::Unmet,
    }
}
