//! Lets the search for the path's MTU probe through the control session.

use rand_core::CryptoRng;

use super::Peer;
use crate::notice::PeerEvent;
use crate::path_mtu::PathMtu;
use crate::session::ControlLink;
use crate::timers::Timer;
use qvpn_types::Time;

impl<L: ControlLink> Peer<L> {
    /// Begins to measure the path's MTU, or ends that. [`PeerEvent::PathMtu`] tells each change; before the first it is
    /// [`MOST`](crate::path_mtu::MOST).
    pub fn measure_path(&mut self, measure: bool, now: Time) {
        match (measure, &self.path) {
            (true, None) => self.path = Some(PathMtu::new(now)),
            (false, Some(_)) => {
                self.path = None;
                self.timers.set(Timer::PathMtu, None);
            }
            _ => {}
        }
    }

    /// The path is another one.
    pub(super) fn path_moved(&mut self, now: Time) {
        if let Some(path) = &mut self.path {
            path.moved(now);
        }
    }

    /// Something goes by the path.
    pub(super) fn path_used(&mut self, now: Time) {
        if let Some(path) = &mut self.path {
            path.sent(now);
        }
    }

    /// Takes acknowledgements, sends what is to be probed, and tells what was found.
    pub(super) fn drive_path(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let Some(path) = &mut self.path else { return };
        let before = path.mtu();
        while let Some(id) = self.channel.take_passed() {
            path.acknowledged(&id, now);
        }
        // Without a session nothing can be asked; the next one calls again.
        if self.link.session_age().is_some() && self.session.endpoint.is_some() {
            for size in path.due(now, self.channel.round_trip()) {
                let id = self.channel.probe(size.into(), rng);
                path.probed(id, size);
            }
            self.timers.set(Timer::PathMtu, Some(path.next()));
        } else {
            self.timers.set(Timer::PathMtu, None);
        }
        let mtu = path.mtu();
        if mtu != before {
            self.emit(PeerEvent::PathMtu { mtu });
        }
    }
}
