//! `standby` and `activate`: one gateway of a pair carries the traffic, the other one waits with its device
//! and its block in place.

use std::time::Duration;

use qvpn_api::control::Reply;
use qvpn_api::events::EventKind;
use qvpn_types::Time;

use crate::daemon::Daemon;
use crate::takeovers::Mode;

/// Ends all sessions and keys, and sends nothing from then on.
pub(crate) async fn stand_by(daemon: &mut Daemon, now: Time) -> Reply {
    let former = daemon.takeovers.mode();
    daemon.takeovers.stand_by();
    if !daemon.peers.in_standby() {
        let states = daemon.peers.states();
        daemon.peers.stand_by(daemon.settings.device.mtu, now);
        // The goodbyes went first: the other gateway waits for them.
        daemon.state.save_now(states, now).await;
    }
    if former != Mode::Standby {
        daemon.events.emit(EventKind::GatewayStandby {});
    }
    Reply::Gateway(daemon.takeovers.status(now))
}

/// Begins with all peers, at once or when the limit on takeovers permits it.
pub(crate) fn activate(daemon: &mut Daemon, now: Time) -> Reply {
    let former = daemon.takeovers.mode();
    match daemon.takeovers.activate(now) {
        Mode::Active if former != Mode::Active => {
            // The file may be a copy that came from the other gateway meanwhile.
            let stored = daemon.state.read_again();
            daemon.peers.activate(&stored, daemon.settings.device.mtu, now);
            daemon.events.emit(EventKind::GatewayActive { takeovers: daemon.takeovers.count() });
        }
        Mode::Waiting(until) if former == Mode::Standby => {
            let active_in_s = until.since(now).max(Duration::from_secs(1)).as_secs();
            daemon.events.emit(EventKind::GatewayWaiting { active_in_s });
        }
        _ => {}
    }
    Reply::Gateway(daemon.takeovers.status(now))
}
