//! Where a peer is: what the config, its host name and the state file say.

use std::net::SocketAddr;

use qvpn_types::Time;

use super::Peer;
use crate::session::ControlLink;
use crate::timers::Timer;

impl<L: ControlLink> Peer<L> {
    /// Sends everything to another endpoint from now on, since the config or the peer's host name changed.
    pub fn move_to(&mut self, endpoint: SocketAddr, now: Time) {
        self.set_endpoint(endpoint, now);
        self.lanes.move_to(endpoint, &mut self.out);
    }

    /// Sets the endpoint of the control session.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr, now: Time) {
        if self.control.set_endpoint(endpoint, now) && !self.control.is_up() {
            self.out.timers.set(Timer::Handshake, Some(now));
        }
    }

    /// Sets the time of the next call, while there is no session.
    pub fn call_at(&mut self, at: Time) {
        if !self.control.is_up() {
            self.out.timers.set(Timer::Handshake, Some(at));
        }
    }

    /// Sets further endpoints at which the peer may be: all addresses of its host name, and where it was last
    /// seen. A call goes to all of them.
    pub fn set_known_endpoints(&mut self, endpoints: &[SocketAddr]) {
        self.control.path.set_known(endpoints);
    }

    /// Starts or stops the measurement of the path's MTU. [`PeerEvent::PathMtu`](crate::PeerEvent::PathMtu)
    /// reports each change; before the first one it is [`MAX_PATH_MTU`](crate::path_mtu::MAX_PATH_MTU).
    pub fn measure_path(&mut self, measure: bool, now: Time) {
        self.control.measure_path(measure, now, &mut self.out);
    }
}
