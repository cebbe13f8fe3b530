//! What ends all peers at once and begins them again: standby, and a machine that was copied.

use qvpn_api::events::EventKind;
use qvpn_types::Time;

use super::Peers;
use crate::key_index;
use crate::peer_runtime::first_call;
use crate::settings::PeerSettings;
use crate::state_file::PeerStates;

impl Peers {
    pub(crate) fn in_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// Says goodbye to all peers, and ends their sessions, keys and key streams. Peers are sent nothing from
    /// then on.
    pub(crate) fn stand_by(&mut self, mtu: u16, now: Time) {
        if self.standby.is_some() {
            return;
        }
        let waiting: Vec<PeerSettings> = self.in_order().map(|runtime| runtime.settings().clone()).collect();
        self.numbers().into_iter().for_each(|number| self.remove(number, now));
        self.standby = Some(waiting);
        self.kmes.close_until_used();
        self.configure_lanes(mtu);
    }

    /// Leaves standby: begins with each peer as after a start, under a new instance ID. `stored` is what
    /// was known of each.
    pub(crate) fn activate(&mut self, stored: &PeerStates, mtu: u16, now: Time) {
        for (n, peer) in (0..).zip(self.standby.take().into_iter().flatten()) {
            let stored = key_index::stored(&peer, stored);
            self.add(peer, stored, first_call(n, now), now);
        }
        self.configure_lanes(mtu);
    }

    /// This machine turned out to be a copy of another one, which has the same keys and counters. So each key
    /// here ends at once, also those of control sessions and those fetched ahead, and every peer starts as
    /// after a restart. No goodbye is sent: it would be sealed under such a key.
    pub(crate) fn machine_copied(&mut self, mtu: u16, now: Time) {
        self.numbers().into_iter().for_each(|number| self.remove_from_lanes(number));
        self.timers.clear();
        self.by_key.clear();
        let mut former = std::mem::take(&mut self.runtimes);
        for runtime in std::mem::take(&mut self.order).into_iter().filter_map(|number| former.remove(&number))
        {
            let endpoint = runtime.view(now).endpoint;
            let settings = runtime.into_settings();
            let key = *settings.config.public_key.x25519();
            self.add(settings, Vec::new(), now, now);
            if let (Some(endpoint), Some(number)) = (endpoint, self.by_key.get(&key).copied()) {
                self.with(number, now, |runtime, context| runtime.move_to(endpoint, context, now));
            }
        }
        self.configure_lanes(mtu);
        self.context.events.emit(EventKind::MachineCopied {});
    }
}
