//! The tunnel's routes: the block before the device is there, the routes after, and back again when somebody deletes
//! them or takes the device's addresses away. At the daemon's end the block stays, however it ends, unless the config says `open`.

use std::time::Duration;

use qvpn_api::config::OnStop;
use qvpn_api::events::EventKind;
use qvpn_net::{Changes, IpNet, Net, NetError, RoutePlan, Watch};
use qvpn_types::Time;

use crate::clock;
use crate::events::Events;

/// Notifications come in bursts; one look serves them all.
const SETTLE: Duration = Duration::from_millis(20);
/// Until what could not be restored is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The routes of this daemon.
pub(crate) struct Routes {
    net: Net,
    watch: Option<Watch>,
    plan: RoutePlan,
    /// What the device shall have.
    addresses: Vec<IpNet>,
    mtu: u16,
    look_at: Option<Time>,
    /// The last failure, so that one that lasts is logged once.
    trouble: Option<String>,
}

impl Routes {
    /// Puts the block in place, before there is a device.
    pub(crate) async fn block(plan: RoutePlan) -> Result<Self, NetError> {
        let net = Net::connect()?;
        log(&net.block(&plan).await?);
        Ok(Self { net, watch: None, plan, addresses: Vec::new(), mtu: 0, look_at: None, trouble: None })
    }

    /// Takes the device up, and leads the allowed IPs into it.
    pub(crate) async fn open(&mut self, addresses: &[IpNet], mtu: u16) -> Result<(), NetError> {
        self.device(addresses, mtu).await?;
        self.watch = Some(self.net.watch(self.plan.interface())?);
        log(&self.net.add_routes(&self.plan).await?);
        Ok(())
    }

    /// Sets the device's addresses and MTU.
    pub(crate) async fn device(&mut self, addresses: &[IpNet], mtu: u16) -> Result<(), NetError> {
        self.net.set_addresses(self.plan.interface(), addresses).await?;
        self.net.set_link_up(self.plan.interface(), mtu.into()).await?;
        self.addresses = addresses.to_vec();
        self.mtu = mtu;
        Ok(())
    }

    /// The mark that our own datagrams must have; 0 is none.
    pub(crate) fn fwmark(&self) -> u32 {
        self.plan.fwmark()
    }

    /// Goes over to another plan; if that fails, back to the one before.
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

    /// Waits until the routes need a look.
    pub(crate) async fn need_a_look(&mut self) {
        loop {
            let due = self.look_at;
            tokio::select! {
                () = clock::reached(due) => {
                    self.look_at = None;
                    return;
                }
                change = next_change(&mut self.watch) => {
                    let wait = match change {
                        Some(change) => {
                            tracing::debug!("routes: {change:?}");
                            SETTLE
                        }
                        None => {
                            tracing::warn!("the kernel's notifications about routes ended; asking for them anew");
                            self.watch = None;
                            AGAIN
                        }
                    };
                    self.look_at.get_or_insert(clock::now() + wait);
                }
            }
        }
    }

    /// Puts back what is missing, and says so.
    pub(crate) async fn restore(&mut self, events: &Events) {
        if self.watch.is_none() {
            self.watch = self.net.watch(self.plan.interface()).ok();
        }
        match self.put_back().await {
            Ok(changes) if changes.is_empty() => self.trouble = None,
            Ok(changes) => {
                self.trouble = None;
                let routes = changes.added.into_iter().chain(changes.replaced).collect();
                events.emit(EventKind::RoutesRestored { routes });
            }
            Err(error) => {
                let text = error.to_string();
                if self.trouble.as_ref() != Some(&text) {
                    tracing::error!("restoring routes: {text}");
                    self.trouble = Some(text);
                }
                self.look_at = Some(clock::now() + AGAIN);
            }
        }
        if self.watch.is_none() {
            self.look_at = Some(clock::now() + AGAIN);
        }
    }

    /// The device first, since routes need it up.
    async fn put_back(&self) -> Result<Changes, NetError> {
        let device = self.net.restore_device(self.plan.interface(), &self.addresses, self.mtu.into()).await?;
        let mut changes = self.net.restore(&self.plan).await?;
        changes.added.splice(0..0, device.added);
        Ok(changes)
    }

    /// The end of a clean stop.
    pub(crate) async fn close(self, on_stop: OnStop) {
        if on_stop == OnStop::Block {
            return;
        }
        for result in [self.net.remove_routes(&self.plan).await, self.net.unblock(&self.plan).await] {
            match result {
                Ok(changes) => log(&changes),
                Err(error) => tracing::error!("opening the routes at the stop: {error}"),
            }
        }
    }
}

/// The next change, or never where nobody watches.
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
