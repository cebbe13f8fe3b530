//! The tunnel's routes and filter: first the block, then the device and its routes. It restores what other programs change.
//! The block stays when the daemon ends, unless it is stopped and the config says `on_stop = "open"`.

use std::time::Duration;

use qvpn_api::config::OnStop;
use qvpn_api::events::EventKind;
use qvpn_net::{Changes, Guard, IpNet, NetError, RoutePlan};

use crate::events::Events;

/// The addresses and the MTU of the TUN device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceSettings {
    pub(crate) addresses: Vec<IpNet>,
    /// In bytes.
    pub(crate) mtu: u16,
}

/// Until what could not be restored is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The routes and the filter of this daemon.
pub(crate) struct Routes {
    guard: Guard,
    plan: RoutePlan,
    device: DeviceSettings,
    /// The last failure, so that one that lasts is logged once.
    failure: Option<String>,
}

impl Routes {
    /// Puts the block in place, before there is a device.
    pub(crate) async fn block(plan: RoutePlan) -> Result<Self, NetError> {
        let mut guard = Guard::connect()?;
        if let Some(reason) = guard.without_filter() {
            tracing::warn!("{reason}");
        }
        if plan.filtered().next().is_none() && !plan.uses_guard_table() {
            tracing::warn!(
                "nothing is blocked: `table` leaves the routes to others, and there is no `protect`"
            );
        }
        log(&guard.set(plan.clone()).await?);
        Ok(Self { guard, plan, device: DeviceSettings::default(), failure: None })
    }

    /// Takes the device up, and leads the allowed IPs into it.
    pub(crate) async fn open(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.set_device(device).await?;
        self.guard.watch()?;
        let name = self.plan.interface().to_owned();
        let index = self.guard.net().devices([name.as_str()]).await?.get(&name).copied();
        self.plan = self.plan.clone().on_device(index);
        log(&self.guard.set(self.plan.clone()).await?);
        Ok(())
    }

    pub(crate) async fn set_device(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.guard.net().set_addresses(self.plan.interface(), &device.addresses).await?;
        self.guard.net().set_link_up(self.plan.interface(), device.mtu.into()).await?;
        self.device = device.clone();
        Ok(())
    }

    /// The mark that our own datagrams must have.
    pub(crate) fn fwmark(&self) -> u32 {
        self.plan.fwmark()
    }

    /// Applies another plan, and keeps blocked what the plan before blocked; if that fails, goes back to the plan before.
    pub(crate) async fn apply(&mut self, new: RoutePlan) -> Result<(), NetError> {
        let new = new.on_device(self.plan.device()).keeping(&self.plan);
        match self.guard.set(new.clone()).await {
            Ok(changes) => {
                log(&changes);
                for prefix in new.protect().difference(self.plan.protect()) {
                    tracing::warn!(
                        "{prefix} stays blocked; stop the daemon and run `qvpn-ctl unblock` to release it"
                    );
                }
                self.plan = new;
                Ok(())
            }
            Err(error) => {
                if let Err(back) = self.guard.set(self.plan.clone()).await {
                    tracing::error!("going back to the former routes: {back}");
                }
                Err(error)
            }
        }
    }

    /// Waits until another program may have changed something.
    pub(crate) async fn wait_for_change(&mut self) {
        let retry = self.failure.is_some();
        tokio::select! {
            () = self.guard.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if retry => {}
        }
    }

    /// Restores what is missing, and emits events about it.
    pub(crate) async fn restore(&mut self, events: &Events) {
        let mut errors = Vec::new();
        let device =
            self.guard.net().restore_device(&self.plan, &self.device.addresses, self.device.mtu.into()).await;
        let mut routes = match device {
            Ok(changes) => changes.added,
            Err(error) => {
                errors.push(error);
                Vec::new()
            }
        };
        let restored = self.guard.restore().await;
        for challenge in restored.challenges {
            events.emit(EventKind::GuardChallenged { what: challenge.what, effect: challenge.effect });
        }
        routes.extend(restored.changes.added.into_iter().chain(restored.changes.replaced));
        if !routes.is_empty() {
            events.emit(EventKind::RoutesRestored { routes });
        }
        errors.extend(restored.errors);
        let failure = errors.iter().map(ToString::to_string).reduce(|all, one| format!("{all}; {one}"));
        if let Some(failure) = failure.as_ref().filter(|failure| self.failure.as_ref() != Some(failure)) {
            tracing::error!("restoring the block: {failure}");
        }
        self.failure = failure;
    }

    /// Does what `on_stop` says at a clean stop.
    pub(crate) async fn close(mut self, on_stop: OnStop) {
        if on_stop == OnStop::Block {
            return;
        }
        match self.guard.release(&self.plan).await {
            Ok(changes) => log(&changes),
            Err(error) => tracing::error!("removing the block at the stop: {error}"),
        }
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
