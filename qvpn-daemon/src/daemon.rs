//! The whole running daemon, owned by one task. A reload changes it.

use std::net::IpAddr;
use std::sync::Arc;

use qvpn_api::Config;
use qvpn_api::status::{ConfigStatus, Status};
use qvpn_identity::SecretIdentity;
use qvpn_types::Time;
use tokio::sync::mpsc;

use crate::access::SharedRules;
use crate::audit::AuditTrail;
use crate::control_socket::PendingRequest;
use crate::events::Events;
use crate::lane_marks::LaneSocketMarks;
use crate::metrics_listener::MetricsListener;
use crate::peers::Peers;
use crate::routes::Routes;
use crate::settings::Settings;
use crate::state_file::StateFile;
use crate::takeovers::Takeovers;
use crate::trial::Trial;
use crate::{metrics, status};

pub(crate) struct Daemon {
    pub(crate) config: Config,
    /// The settings derived from `config`.
    pub(crate) settings: Settings,
    pub(crate) local: Arc<SecretIdentity>,
    pub(crate) events: Arc<Events>,
    pub(crate) audit: AuditTrail,
    pub(crate) peers: Peers,
    pub(crate) state: StateFile,
    /// Whether this gateway is active or in standby.
    pub(crate) takeovers: Takeovers,
    pub(crate) routes: Routes,
    pub(crate) marks: LaneSocketMarks,
    pub(crate) metrics: MetricsListener,
    /// Where a new metrics listener sends its requests.
    pub(crate) requests: mpsc::Sender<PendingRequest>,
    /// Who may use the control socket.
    pub(crate) access: SharedRules,
    /// The config on trial, if one is.
    pub(crate) trial: Option<Trial>,
}

impl Daemon {
    pub(crate) fn status(&self, now: Time) -> Status {
        let mut whole = status::status(&self.config, self.local.public(), &self.peers, now);
        let kept = self.routes.kept(&self.settings.routes);
        let guard = self.routes.status().map(|guard| status::guard_status(guard, &kept));
        let addresses = self.settings.device.addresses.iter().map(|net| net.addr());
        let link_local = addresses.filter(|ip| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
        let routing = self.peers.routing_status(link_local.map(|ip| ip.to_string()).next());
        for interface in &mut whole.interfaces {
            interface.guard.clone_from(&guard);
            interface.audit = Some(self.audit.status());
            interface.config = Some(self.config_status(now));
            interface.routing.clone_from(&routing);
            interface.gateway = Some(self.takeovers.status(now));
            status::note_device(interface, self.routes.device_state());
        }
        whole
    }

    fn config_status(&self, now: Time) -> ConfigStatus {
        ConfigStatus {
            hash: self.config.hash(),
            include: self.settings.include.clone(),
            confirm_in_s: self.trial.as_ref().map(|trial| trial.deadline.since(now).as_secs_f64()),
        }
    }

    pub(crate) fn metrics_text(&self, now: Time) -> String {
        self.status(now)
            .interfaces
            .first()
            .map_or_else(String::new, |interface| metrics::text(interface, &self.peers, now))
    }

    /// Sets the MTU of the routes to the measured path MTUs.
    pub(crate) async fn follow_path_mtus(&mut self) {
        let plan = self.peers.with_mtus(self.settings.routes.clone());
        if let Err(error) = self.routes.apply(&plan).await {
            tracing::error!("can't set the MTU of a path on its routes: {error}; set `mtu` to a number");
        }
    }

    /// Saves what a restart needs, if it changed.
    pub(crate) async fn save_state(&mut self, now: Time) {
        let peers = &self.peers;
        if peers.in_standby() {
            // The file keeps what was known before, or is a copy of the other gateway's.
            return;
        }
        self.state.poll(|| peers.states(), now).await;
    }

    /// Says goodbye to all peers and, after a clean stop, applies `on_stop`.
    pub(crate) async fn stop(mut self, clean: bool, now: Time) {
        if !self.peers.in_standby() {
            self.state.close(self.peers.states(), now);
        }
        let kmes = self.peers.shut_down(now);
        let routes = async {
            if clean {
                self.routes.close(self.settings.on_stop).await;
            }
        };
        tokio::join!(routes, kmes.close());
        self.audit.stop();
    }
}
