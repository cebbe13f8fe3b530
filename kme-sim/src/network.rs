//! The KMEs, their links and the relay between them: which SAE gets which key, and where each key is until
//! then. This module is pure: time is an argument (since the start), so that tests of supply and relay delay
//! need not wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde_json::json;
use tracing::{debug, info};

use crate::api::{DeliveredKey, KeyRequest, Status};
use crate::config::Config;
use crate::faults::catalog::Misbehaviour;
use crate::faults::request::{self as request_faults, Limits};
use crate::link::Link;
use crate::refusal::{KEY_NOT_FOUND, Refusal};
use crate::relay;

pub(crate) mod report;
mod request;
mod store;

use report::{Counts, LinkReport, LinkStats};
use request::{check_extensions, checked_amount};
use store::{Kme, StoredKey};

/// All KMEs of one process.
pub struct Network {
    kmes: BTreeMap<String, Kme>,
    links: Vec<Link>,
    /// Maps an SAE ID to the name of its KME.
    saes: HashMap<String, String>,
    /// Nodes and KMEs that relay keys.
    relays: BTreeSet<String>,
}

impl Network {
    /// Makes the network of `config`, at time zero.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            kmes: config.kmes.iter().map(|k| (k.name.clone(), Kme::new(k))).collect(),
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

    /// Checks that `sae` is one of `kme`'s own.
    ///
    /// # Errors
    /// 401 if it isn't.
    pub fn authorize(&self, kme: &str, sae: &str) -> Result<(), Refusal> {
        match self.saes.get(sae) {
            Some(at) if at == kme => Ok(()),
            _ => Err(Refusal::Unauthorized("the certificate is no SAE's of this KME")),
        }
    }

    /// Get status (clause 5.2): the link between `caller` at `kme` and `slave`.
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
        let (target, route) = self.route(kme, caller, slave)?;
        let (mut stored, mut most) = (u64::MAX, u64::MAX);
        let (mut rate, mut qber) = (f64::INFINITY, 0f64);
        for link in &route {
            let link = &mut self.links[*link];
            link.advance(now);
            (stored, most) = (stored.min(link.stored_bits()), most.min(link.max_bits()));
            let state = link.state();
            rate = rate.min(if link.is_active() { state.bits_per_s } else { 0.0 });
            qber = qber.max(state.qber);
        }
        let key_size = self.key_size(&route);
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
                "hops": route.len(),
            })),
        };
        if fault == Misbehaviour::CountWaiting
            && let Some(target) = self.kmes.get(&status.target_kme_id)
        {
            let of_pair = |w: &&StoredKey| w.master == caller && w.not_fetched.contains(slave);
            status.stored_key_count = target.stored.values().filter(of_pair).count() as u64;
        }
        request_faults::status(fault, &mut status)?;
        Ok(status)
    }

    /// Get key (clause 5.3): takes keys for `caller` at `kme` and sends them to the KMEs of its slaves. All
    /// or none.
    ///
    /// # Errors
    /// 401 if `caller` isn't this KME's, 400 for a request that can't be met, 503 if a link holds too few
    /// bits.
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
        let (_, first_route) = self.route(kme, caller, slave)?;
        let config = &self.kmes[kme].config;
        let limits = Limits::new(config, self.key_size(&first_route), fault);
        let (number, bits) = checked_amount(&limits, request)?;
        let (number, bits) = request_faults::amount(fault, request, number, bits);
        check_extensions(config, request)?;
        if let (Misbehaviour::RepeatKeys, Some(first)) = (fault, &self.kmes[kme].first) {
            return Ok(vec![first.duplicate()]);
        }

        // The slaves by their KME, and the route of the key to that KME.
        let mut targets: BTreeMap<String, (Vec<usize>, Vec<String>)> = BTreeMap::new();
        let mut named = BTreeSet::new();
        for sae in std::iter::once(slave).chain(request.additional_slave_sae_ids.iter().map(String::as_str)) {
            if !named.insert(sae) {
                return Err(Refusal::bad(format!("the slave SAE {sae:?} is named twice")));
            }
            let (target, route) = self.route(kme, caller, sae)?;
            targets.entry(target).or_insert_with(|| (route, Vec::new())).1.push(sae.to_owned());
        }

        // A key costs its bits on each hop: the first hop provides them, the others use them as a one-time
        // pad.
        let cost = number.saturating_mul(bits);
        let mut costs: BTreeMap<usize, u64> = BTreeMap::new();
        for link in targets.values().flat_map(|(route, _)| route) {
            let sum = costs.entry(*link).or_default();
            *sum = sum.saturating_add(cost);
        }
        self.check_supply(kme, &costs, number, bits, now)?;
        let bytes = usize::try_from(bits / 8).unwrap_or(usize::MAX);
        let first_link = &mut self.links[first_route[0]];
        let mut keys: Vec<DeliveredKey> =
            (0..number).map(|_| first_link.next_key(bytes)).collect::<Result<_, _>>()?;
        if fault == Misbehaviour::OddIds {
            keys.iter_mut().for_each(|key| key.id = request_faults::odd_id(&key.id));
        } else if request.hex_ids {
            keys.iter_mut().for_each(|key| key.id.retain(|c| c != '-'));
        }
        for (link, cost) in &costs {
            self.links[*link].spend(*cost);
        }
        for (target, (route, slaves)) in targets {
            let delays = route.iter().map(|link| self.links[*link].relay_delay);
            let available_at = delays.fold(now, Duration::saturating_add);
            // The first link has the key at both ends.
            let hops = route.iter().filter(|link| **link != first_route[0]).count();
            if let Some(at) = self.kmes.get_mut(&target) {
                if fault == Misbehaviour::ForgetPrevious {
                    at.forget(|w| w.master == caller && w.slaves == slaves);
                }
                let lost = usize::from(fault == Misbehaviour::LoseFirst);
                for key in keys.iter().skip(lost) {
                    at.store(relay::carry(key, hops)?, caller, &slaves, available_at);
                }
            }
        }
        for key in &keys {
            info!(key_id = %key.id, %kme, side = "master", sae = caller, slave, "key delivered");
        }
        self.count(kme, |counts| counts.keys_taken += number);
        if let Some(at) = self.kmes.get_mut(kme) {
            for key in &keys {
                at.note_issued(&key.id, named.iter().map(|slave| (*slave).to_owned()).collect());
            }
            at.repeat(fault, &mut keys);
        }
        Ok(keys)
    }

    /// Get key with key IDs (clause 5.4): delivers keys that `master` took to its slave `caller`. All or
    /// none.
    ///
    /// # Errors
    /// 401 if `caller` isn't this KME's or wasn't named as a slave of one of the keys, 400 if an ID isn't
    /// here.
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
        let ids: Vec<String> = ids.iter().map(|id| canonical_id(id)).collect();
        let ids = ids.as_slice();
        let Some(kme_state) = self.kmes.get_mut(kme) else {
            return Err(Refusal::Unauthorized("there is no such KME"));
        };
        let limit = Limits::new(&kme_state.config, 0, fault).max_keys;
        if fault == Misbehaviour::ForgetKeys {
            kme_state.forget(|w| ids.contains(&w.key.id));
        }
        let late =
            if fault == Misbehaviour::LateSync { request_faults::LATE_SYNC_DELAY } else { Duration::ZERO };
        if ids.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(Refusal::bad(format!("key_IDs must have at most {limit} entries")));
        }
        if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
            return Err(Refusal::bad("a key_ID is given twice"));
        }
        let mut missing = Vec::new();
        for id in ids {
            match kme_state.stored.get(id).filter(|w| w.master == master && w.available_at + late <= now) {
                Some(w) if !w.slaves.iter().any(|s| s == caller) => {
                    return Err(Refusal::Unauthorized(
                        "the caller is no slave SAE of a key that it asked for",
                    ));
                }
                Some(w) if w.not_fetched.contains(caller) => {}
                // Clause 5.4: the master SAE itself is not a slave SAE of its keys either.
                None if kme_state.is_of_others(id, caller) => {
                    return Err(Refusal::Unauthorized(
                        "the caller is no slave SAE of a key that it asked for",
                    ));
                }
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

    /// Returns the SAEs that `caller` at `kme` can share keys with, in the order of their IDs.
    pub(crate) fn reachable(&self, kme: &str, caller: &str) -> Vec<String> {
        let mut ids: Vec<String> =
            self.saes.keys().filter(|sae| self.route(kme, caller, sae).is_ok()).cloned().collect();
        ids.sort();
        ids
    }

    /// Returns the smallest and the largest key of `kme`, in bits.
    pub(crate) fn key_sizes(&self, kme: &str) -> Option<(u32, u32)> {
        self.kmes.get(kme).map(|kme| (kme.config.min_key_size, kme.config.max_key_size))
    }

    /// Clears the key that a fault repeats.
    pub(crate) fn forget_first(&mut self, kme: &str) {
        if let Some(kme) = self.kmes.get_mut(kme) {
            kme.first = None;
        }
    }

    /// Pauses or resumes the supply of the link between two KMEs. Returns false if there is no such link.
    pub fn pause_link(&mut self, kmes: &[String; 2], paused: bool, now: Duration) -> bool {
        let link = self.links.iter_mut().find(|l| l.joins(&kmes[0], &kmes[1]));
        link.map(|link| link.set_paused(paused, now)).is_some()
    }

    /// Returns the store of each link.
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

    /// Returns the number of keys at `kme` that a slave SAE has not fetched yet.
    #[must_use]
    pub fn stored_keys(&self, kme: &str) -> usize {
        self.kmes.get(kme).map_or(0, |k| k.stored.len())
    }

    /// Simulates an eavesdropper who measures and resends `percent` of the pulses between two KMEs or nodes.
    /// Returns false if there is no such link.
    pub fn eavesdrop(&mut self, kmes: &[String; 2], percent: u8, now: Duration) -> bool {
        let link = self.links.iter_mut().find(|l| l.joins(&kmes[0], &kmes[1]));
        link.map(|link| link.set_intercepted(percent, now)).is_some()
    }

    /// Returns the supply of each link.
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

    /// Returns the counters of `kme`.
    #[must_use]
    pub fn counts(&self, kme: &str) -> Counts {
        self.kmes.get(kme).map(|k| k.counts).unwrap_or_default()
    }

    /// Checks that each link holds the bits that a request costs.
    fn check_supply(
        &mut self,
        kme: &str,
        costs: &BTreeMap<usize, u64>,
        number: u64,
        bits: u64,
        now: Duration,
    ) -> Result<(), Refusal> {
        for (link, cost) in costs {
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
        Ok(())
    }

    fn count(&mut self, kme: &str, add: impl FnOnce(&mut Counts)) {
        if let Some(kme) = self.kmes.get_mut(kme) {
            add(&mut kme.counts);
        }
    }

    /// Returns the default size of a key on this route, in bits.
    fn key_size(&self, route: &[usize]) -> u32 {
        route.first().map_or(256, |link| self.links[*link].key_size)
    }

    /// Returns the KME of `slave` and the shortest route of links there from `kme`, of at least one link.
    fn route(&self, kme: &str, caller: &str, slave: &str) -> Result<(String, Vec<usize>), Refusal> {
        if slave == caller {
            return Err(Refusal::bad("master and slave SAE are the same"));
        }
        let Some(target) = self.saes.get(slave) else {
            return Err(Refusal::bad(format!("the SAE {slave:?} is unknown to this KME")));
        };
        let route = relay::route(&self.links, &self.relays, kme, target);
        let route = route.ok_or_else(|| Refusal::bad(format!("no QKD link leads from {kme} to {target}")))?;
        Ok((target.clone(), route))
    }
}

/// Returns a UUID in the form of our IDs, since its letters may have either case (RFC 9562 section 4). Other
/// IDs stay as they are.
fn canonical_id(id: &str) -> String {
    if id.len() == 36 && uuid::Uuid::try_parse(id).is_ok() { id.to_ascii_lowercase() } else { id.to_owned() }
}
