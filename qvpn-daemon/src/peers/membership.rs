//! Peers come, change and go.

use std::sync::Arc;

use qvpn_identity::SecretIdentity;
use qvpn_proto::Peer;
use qvpn_proto::session::KeyedLinks;
use qvpn_proto::wire::limits::MAX_PEERS;
use qvpn_types::{PeerNumber, Time};
use rand_core::Rng;

use super::Peers;
use crate::key_index;
use crate::kms_task::Kmes;
use crate::peer_runtime::PeerRuntime;
use crate::settings::{PeerSettings, Settings};
use crate::task_result::PeerKey;

impl Peers {
    /// Puts other settings in force; [`Settings::fixed`] must be the same as before. Touches only peers that
    /// changed.
    pub(crate) fn reconfigure(
        &mut self,
        settings: &Settings,
        local: &Arc<SecretIdentity>,
        kmes: Kmes,
        now: Time,
    ) {
        std::mem::replace(&mut self.kmes, kmes).close_without(&self.kmes);
        self.measure_paths = settings.measure_paths;
        self.idle.clone_from(&settings.idle);
        key_index::accept(&mut self.demux, local);
        if let Some(waiting) = &mut self.standby {
            waiting.clone_from(&settings.peers);
            return self.configure_lanes(settings.device.mtu);
        }
        let successors = key_index::successors(&self.runtimes, &settings.peers);
        for number in self.numbers() {
            if !successors.values().any(|stays| *stays == number) {
                self.remove(number, now);
            }
        }
        self.order.clear();
        for peer in &settings.peers {
            match successors.get(peer.config.name.as_str()).copied() {
                Some(number) => {
                    self.by_key.retain(|_, of| *of != number);
                    self.by_key.extend(peer.public_keys().map(|key| (*key.x25519(), number)));
                    let kmes = self.kmes.set(peer.kme_names());
                    self.with(number, now, |runtime, context| {
                        runtime.reconfigure(peer.clone(), kmes, context, now);
                    });
                    self.order.push(number);
                }
                None => self.add(peer.clone(), Vec::new(), now, now),
            }
        }
        let measure = self.measure_paths;
        for number in self.numbers() {
            self.with(number, now, |runtime, context| runtime.measure_path(measure, context, now));
        }
        self.configure_lanes(settings.device.mtu);
    }

    /// Adds a peer, with what was stored about it before a restart. Its first call is at `call_at` if that
    /// tells where it was.
    pub(super) fn add(
        &mut self,
        settings: PeerSettings,
        stored: key_index::Stored,
        call_at: Time,
        now: Time,
    ) {
        let Some(number) = self.free_number() else {
            return tracing::error!("peer {}: there are {MAX_PEERS} peers already", settings.config.name);
        };
        let id = PeerKey { number, serial: self.next_serial };
        self.next_serial += 1;
        let protocol = settings.protocol(number);
        let (local, other_remote) = (protocol.local.clone(), protocol.other_remote);
        let mut link = KeyedLinks::new(local, protocol.remote, other_remote, PeerNumber(number));
        for (key, stored) in &stored {
            link.set_greatest_initiation(key, stored.initiation);
        }
        // Random for each peer, so that the other site sees a restart when a peer is removed and added again.
        let mut instance = [0; 16];
        self.context.rng.fill_bytes(&mut instance);
        let mut peer = Peer::new(protocol, link, instance, now);
        peer.measure_path(self.measure_paths, now);
        let kmes = self.kmes.set(settings.kme_names());
        self.by_key.extend(settings.public_keys().map(|key| (*key.x25519(), number)));
        self.order.push(number);
        let runtime = PeerRuntime::new(id, settings, kmes, peer, self.lanes, &self.context);
        self.runtimes.insert(number, runtime);
        self.with(number, now, |runtime, context| {
            runtime.begin_calls(key_index::last_endpoint(&stored), call_at, context, now);
            runtime.tick(context, now);
            runtime.peer.handle_timeout(now, &mut context.rng);
        });
    }

    /// Erases our former key once each peer uses the new one, or after the time for that.
    pub(super) fn erase_former_keys(&mut self) {
        let changes = self.demux.locals().len() > 1;
        if changes && !self.runtimes.values().any(|runtime| runtime.peer.holds_former_key()) {
            key_index::erase_former(&mut self.demux);
        }
    }

    /// The names of peers that `settings` leave without the key in use.
    pub(crate) fn losing_their_key(&self, settings: &Settings) -> Vec<String> {
        key_index::losing_their_key(&self.runtimes, &self.by_key, &settings.peers)
    }

    pub(super) fn remove(&mut self, number: u16, now: Time) {
        self.by_key.retain(|_, of| *of != number);
        self.with(number, now, |runtime, context| runtime.peer.shut_down(now, &mut context.rng));
        if self.runtimes.remove(&number).is_none() {
            return;
        }
        self.order.retain(|n| *n != number);
        self.timers.retain(|(_, n)| *n != number);
        self.remove_from_lanes(number);
        self.context.control_sources.moved(number, None);
    }

    pub(super) fn remove_from_lanes(&mut self, number: u16) {
        for lane in 0..self.lanes {
            self.context.lanes.remove_peer(lane, PeerNumber(number));
        }
    }

    /// Reuses a number as late as possible, so that a late packet rarely meets another peer.
    fn free_number(&mut self) -> Option<u16> {
        let mut candidates = (self.next_number..MAX_PEERS).chain(0..self.next_number);
        let number = candidates.find(|n| !self.runtimes.contains_key(n))?;
        self.next_number = (number + 1) % MAX_PEERS;
        Some(number)
    }
}
