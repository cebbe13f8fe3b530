//! The tunnel's routes: first the block, then the device and its routes. It restores what other programs
//! delete. The block stays when the daemon ends, unless it is stopped and the config says `on_stop = "open"`.

use std::time::Duration;

use qvpn_api::config::OnStop;
use qvpn_api::events::EventKind;
use qvpn_net::{Changes, IpNet, Net, NetError, RoutePlan, Watch};
use qvpn_types::Time;

use crate::clock;
use crate::events::Events;

/// Notifications come in bursts; one check serves them all.
const BURST_DELAY: Duration = Duration::from_millis(20);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The addresses and the MTU of the TUN device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceSettings {
    pub(crate) addresses: Vec<IpNet>,
    /// In bytes.
    pub(crate) mtu: u16,
}

/// The routes of this daemon.
pub(crate) struct Routes {
    net: Net,
    watch: Option<Watch>,
    plan: RoutePlan,
    device: DeviceSettings,
    /// When the routes are checked next.
    check_at: Option<Time>,
    /// The last failure, so that one that lasts is logged once.
    failure: Option<String>,
}

impl Routes {
    /// Puts the block in place, before there is a device.
    pub(crate) async fn block(plan: RoutePlan) -> Result<Self, NetError> {
        let net = Net::connect()?;
        log(&net.block(&plan).await?);
        let device = DeviceSettings::default();
        Ok(Self { net, watch: None, plan, device, check_at: None, failure: None })
    }

    /// Takes the device up, and routes the allowed IPs into it.
    pub(crate) async fn open(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.set_device(device).await?;
        self.watch = Some(self.net.watch(self.plan.interface())?);
        log(&self.net.add_routes(&self.plan).await?);
        Ok(())
    }

    pub(crate) async fn set_device(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.net.set_addresses(self.plan.interface(), &device.addresses).await?;
        self.net.set_link_up(self.plan.interface(), device.mtu.into()).await?;
        self.device = device.clone();
        Ok(())
    }

    /// The mark that our own datagrams must have; 0 means none.
    pub(crate) fn fwmark(&self) -> u32 {
        self.plan.fwmark()
    }

    /// Applies another plan; if that fails, the one before.
    pub(crate) async fn apply(&mut self, new: RoutePlan) -> Result<(), NetError> {
        match self.net.apply(&self.plan, &new).await {
            Ok(changes) => {
                log(&changes);
                self.plan = new;
                Ok(())
            }
            Err(error) => {
                if let Err(back) = self.net.apply(&new, &self.plan).await {
                    tracing::error!("going back to the former routes: {back}");
                }
                Err(error)
            }
        }
    }

    /// Waits until the routes may have changed.
    pub(crate) async fn wait_for_change(&mut self) {
        loop {
            let due = self.check_at;
            tokio::select! {
                () = clock::reached(due) => {
                    self.check_at = None;
                    return;
                }
                change = next_change(&mut self.watch) => {
                    let wait = match change {
                        Some(change) => {
                            tracing::debug!("routes: {change:?}");
                            BURST_DELAY
                        }
                        None => {
                            tracing::warn!("the kernel's notifications about routes ended; subscribing again");
                            self.watch = None;
                            RETRY_INTERVAL
                        }
                    };
                    self.check_at.get_or_insert(clock::now() + wait);
                }
            }
        }
    }

    /// Restores what is missing, and emits an event if something was.
    pub(crate) async fn restore(&mut self, events: &Events) {
        if self.watch.is_none() {
            self.watch = self.net.watch(self.plan.interface()).ok();
        }
        match self.put_back().await {
            Ok(changes) if changes.is_empty() => self.failure = None,
            Ok(changes) => {
                self.failure = None;
                let routes = changes.added.into_iter().chain(changes.replaced).collect();
                events.emit(EventKind::RoutesRestored { routes });
            }
            Err(error) => {
                let text = error.to_string();
                if self.failure.as_ref() != Some(&text) {
                    tracing::error!("restoring routes: {text}");
                    self.failure = Some(text);
                }
                self.check_at = Some(clock::now() + RETRY_INTERVAL);
            }
        }
        if self.watch.is_none() {
            self.check_at = Some(clock::now() + RETRY_INTERVAL);
        }
    }

    /// Restores the device first, since routes need it up.
    async fn put_back(&self) -> Result<Changes, NetError> {
        let device = self
            .net
            .restore_device(self.plan.interface(), &self.device.addresses, self.device.mtu.into())
            .await?;
        let mut changes = self.net.restore(&self.plan).await?;
        changes.added.splice(0..0, device.added);
        Ok(changes)
    }

    /// Does what `on_stop` says at a clean stop.
    pub(crate) async fn close(self, on_stop: OnStop) {
        if on_stop == OnStop::Block {
            return;
        }
        for result in [self.net.remove_routes(&self.plan).await, self.net.unblock(&self.plan).await] {
            match result {
                Ok(changes) => log(&changes),
                Err(error) => tracing::error!("removing the routes at the stop: {error}"),
            }
        }
    }
}

/// Waits for the next change; for ever without a watch.
async fn next_change(watch: &mut Option<Watch>) -> Option<qvpn_net::Change> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

fn log(changes: &Changes) {
    for (what, list) in
        [("added", &changes.added), ("replaced", &changes.replaced), ("removed", &changes.removed)]
    {
        for route in list {
            tracing::info!("{what} {route}");
        }
    }
}
