//! The tunnel's routes and filter: first the block, then the device and its routes. The resident guard keeps
//! them in force if one runs; otherwise this daemon does, with the same code. The block stays when the daemon
//! ends, unless it is stopped and the config says `on_stop = "open"`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qvpn_api::config::OnStop;
use qvpn_api::events::EventKind;
use qvpn_net::{
    Change, Changes, ConnectedNetwork, DeviceState, Guard, GuardClient, GuardReply, IpNet, Local, Net,
    NetError, RoutePlan, TunnelStatus, Watch,
};
use tokio::time::Instant;

use crate::events::Events;

/// The addresses and the MTU of the TUN device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceSettings {
    pub(crate) addresses: Vec<IpNet>,
    /// In bytes.
    pub(crate) mtu: u16,
}

/// The delay until what could not be restored is tried again, and the interval at which a daemon without a
/// guard looks for one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Who keeps the block in force.
enum Keeper {
    Own(Box<Guard>),
    Resident(Box<GuardClient>, Option<TunnelStatus>),
}

/// The event that [`Routes::restore`] handles.
enum Pending {
    Changed,
    Report(GuardReply),
    GuardLost,
    GuardAppeared(GuardClient),
}

/// The routes and the filter of this daemon.
pub(crate) struct Routes {
    net: Net,
    keeper: Keeper,
    /// Where the guard's socket is.
    socket_dir: PathBuf,
    pending: Option<Pending>,
    look_for_guard_at: Instant,
    plan: RoutePlan,
    device: DeviceSettings,
    device_watch: Option<Watch>,
    device_state: DeviceState,
    /// The last failure, so that a lasting one is logged only once.
    failure: Option<String>,
}

impl Routes {
    /// Installs the block before there is a device. The guard's socket is expected in `socket_dir`.
    pub(crate) async fn block(plan: RoutePlan, socket_dir: &Path) -> Result<Self, NetError> {
        warn_of_nothing_blocked(&plan);
        let keeper = match resident(socket_dir, &plan).await {
            Some(keeper) => keeper,
            None => Keeper::Own(own(&plan).await?),
        };
        let net = Net::connect()?;
        warn_of_blocked_networks(&net, &plan).await;
        Ok(Self {
            net,
            keeper,
            socket_dir: socket_dir.to_owned(),
            pending: None,
            look_for_guard_at: Instant::now() + RETRY_INTERVAL,
            plan,
            device: DeviceSettings::default(),
            device_watch: None,
            device_state: DeviceState::Up,
            failure: None,
        })
    }

    /// Sets the device up and routes the allowed IPs into it.
    pub(crate) async fn open(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.set_device(device).await?;
        if let Keeper::Own(guard) = &mut self.keeper {
            guard.watch()?;
        }
        let name = self.plan.interface().to_owned();
        let index = self.net.devices([name.as_str()]).await?.get(&name).copied();
        self.device_watch = Some(self.net.watch_devices()?);
        self.set(self.plan.clone().on_device(index)).await
    }

    pub(crate) async fn set_device(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.net.set_addresses(self.plan.interface(), &device.addresses).await?;
        self.net.set_link_up(self.plan.interface(), device.mtu.into()).await?;
        self.device = device.clone();
        Ok(())
    }

    /// Returns the index of the tunnel's device, once it is open.
    pub(crate) fn device(&self) -> Option<u32> {
        self.plan.device()
    }

    /// Returns the mark that our own datagrams must have.
    pub(crate) fn fwmark(&self) -> u32 {
        self.plan.fwmark()
    }

    /// Returns the current state of both layers.
    pub(crate) fn status(&self) -> Option<TunnelStatus> {
        match &self.keeper {
            Keeper::Own(guard) => guard.status(self.plan.interface()),
            Keeper::Resident(_, status) => status.clone(),
        }
    }

    /// Returns the state of the device.
    pub(crate) fn device_state(&self) -> &DeviceState {
        &self.device_state
    }

    /// Applies another plan and keeps the block of the previous one; if that fails, restores the previous
    /// plan.
    pub(crate) async fn apply(&mut self, configured: &RoutePlan) -> Result<(), NetError> {
        let new = configured.clone();
        let new = new.on_device(self.plan.device()).keeping(&self.plan);
        let old = self.plan.clone();
        if old.filtered().next().is_some() {
            warn_of_nothing_blocked(&new);
        }
        if let Err(error) = self.set(new).await {
            if let Err(back) = self.set(old).await {
                tracing::error!("can't restore the former routes: {back}");
            }
            return Err(error);
        }
        let name = self.plan.interface();
        for prefix in self.kept(configured).iter().filter(|kept| !old.protect().contains(kept)) {
            tracing::warn!(
                "{prefix} stays blocked although the config no longer has it; `qvpn-ctl unblock {name} \
                 {prefix}` \
                 releases it"
            );
        }
        Ok(())
    }

    /// Returns the prefixes that stay blocked although `configured`, the plan of the config, does not have
    /// them.
    pub(crate) fn kept(&self, configured: &RoutePlan) -> Vec<IpNet> {
        let configured: BTreeSet<IpNet> = configured.filtered().collect();
        // The guard may still block prefixes from before this daemon started.
        let blocked = self.status().map(|status| status.protected).unwrap_or_default();
        blocked.into_iter().filter(|prefix| !configured.contains(prefix)).collect()
    }

    /// Releases the kept prefixes that lie inside `prefixes`, and returns them.
    ///
    /// # Errors
    /// If there is nothing to release, or the kernel or the guard refuses; in words.
    pub(crate) async fn unblock(
        &mut self,
        prefixes: &[IpNet],
        configured: &RoutePlan,
    ) -> Result<Vec<IpNet>, String> {
        let inside = |kept: &IpNet| prefixes.iter().any(|prefix| prefix.contains(kept));
        if let Some(wanted) = configured.filtered().find(|prefix| prefixes.contains(prefix)) {
            return Err(format!(
                "{wanted} is in the config of {}: take it out of `allowed_ips` or `protect` first, and \
                 reload",
                self.plan.interface()
            ));
        }
        let kept = self.kept(configured);
        let released: Vec<IpNet> = kept.iter().copied().filter(inside).collect();
        if released.is_empty() {
            let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
            let kept = if kept.is_empty() { "none".to_owned() } else { kept.join(", ") };
            return Err(format!("no such prefix is blocked in addition to the config; these are: {kept}"));
        }
        let plan = self.plan.clone().releasing(&released);
        self.set_and_release(plan, &released).await.map_err(|error| error.to_string())?;
        Ok(released)
    }

    async fn set(&mut self, plan: RoutePlan) -> Result<(), NetError> {
        self.set_and_release(plan, &[]).await
    }

    /// The guard keeps what its previous plan blocked, except prefixes in `release`.
    async fn set_and_release(&mut self, plan: RoutePlan, release: &[IpNet]) -> Result<(), NetError> {
        match &mut self.keeper {
            Keeper::Own(guard) => log(&guard.set(plan.clone()).await?),
            Keeper::Resident(client, status) => match client.set_and_release(&plan, release).await {
                Ok(GuardReply::Failed { error }) => return Err(NetError::Guard(error)),
                Ok(reply) => {
                    *status = status_of(reply);
                    // This daemon then does the same if the guard ends.
                    let local = status.iter().flat_map(|status| &status.local);
                    let local =
                        local.map(|(prefix, device)| Local { prefix: *prefix, device: device.clone() });
                    if plan.is_connected() {
                        self.plan = plan.clone().with_local(local.collect());
                        return Ok(());
                    }
                }
                Err(_) => {
                    let mut guard = own(&plan).await?;
                    guard.watch()?;
                    self.keeper = Keeper::Own(guard);
                }
            },
        }
        self.plan = plan;
        Ok(())
    }

    /// Waits until another program may have changed something, or the guard appeared or ended.
    pub(crate) async fn wait_for_change(&mut self) {
        let retry = self.failure.is_some();
        // A device with the tunnel's name may disappear and free the name.
        let only = self.plan.device().filter(|_| self.device_state == DeviceState::Up);
        let device = device_change(&mut self.device_watch, only);
        let pending = match &mut self.keeper {
            Keeper::Own(guard) => tokio::select! {
                () = guard.changed() => Pending::Changed,
                () = device => Pending::Changed,
                () = tokio::time::sleep(RETRY_INTERVAL), if retry => Pending::Changed,
                client = find_guard(&self.socket_dir, &mut self.look_for_guard_at) => {
                    Pending::GuardAppeared(client)
                }
            },
            Keeper::Resident(client, _) => tokio::select! {
                report = client.report() => report.map_or(Pending::GuardLost, Pending::Report),
                () = device => Pending::Changed,
                () = tokio::time::sleep(RETRY_INTERVAL), if retry => Pending::Changed,
            },
        };
        self.pending = Some(pending);
    }

    /// Restores what is missing, and emits events about it.
    pub(crate) async fn restore(&mut self, events: &Events) {
        let mut routes = Vec::new();
        let mut errors = Vec::new();
        match self.pending.take() {
            Some(Pending::Report(report)) => {
                if let Keeper::Resident(_, status) = &mut self.keeper
                    && let GuardReply::Report { challenges, restored, status: new } = report
                {
                    *status = new.map(TunnelStatus::from);
                    routes.extend(restored);
                    for (what, effect) in challenges {
                        events.emit(EventKind::GuardChallenged { what, effect });
                    }
                }
            }
            Some(Pending::GuardLost) => {
                tracing::warn!("the guard has ended; the daemon keeps its own block in force");
                errors.extend(self.take_over().await.err());
            }
            Some(Pending::GuardAppeared(client)) => {
                tracing::info!("the guard keeps the block in force from now on");
                errors.extend(self.give_to(client).await.err());
            }
            Some(Pending::Changed) | None => {}
        }
        match self.restore_device().await {
            Ok(changes) => routes.extend(changes.added),
            Err(error) => errors.push(error),
        }
        if let Keeper::Own(guard) = &mut self.keeper {
            let restored = guard.restore().await;
            for challenge in restored.challenges {
                events.emit(EventKind::GuardChallenged { what: challenge.what, effect: challenge.effect });
            }
            routes.extend(restored.changes.added.into_iter().chain(restored.changes.replaced));
            errors.extend(restored.errors);
        }
        if !routes.is_empty() {
            events.emit(EventKind::RoutesRestored { routes });
        }
        let failure = errors.iter().map(ToString::to_string).reduce(|all, one| format!("{all}; {one}"));
        if let Some(failure) = failure.as_ref().filter(|failure| self.failure.as_ref() != Some(failure)) {
            tracing::error!("restoring the block: {failure}");
        }
        self.failure = failure;
    }

    async fn restore_device(&mut self) -> Result<Changes, NetError> {
        if self.device_watch.is_none() {
            self.device_watch = Some(self.net.watch_devices()?);
        }
        let (state, changes) =
            self.net.restore_device(&self.plan, &self.device.addresses, self.device.mtu.into()).await?;
        let before = std::mem::replace(&mut self.device_state, state);
        if before == self.device_state {
            return Ok(changes);
        }
        let name = self.plan.interface();
        match &self.device_state {
            DeviceState::Missing => tracing::error!(
                "the device {name} was deleted or moved to another network namespace; its prefixes are \
                 blocked until the daemon is restarted"
            ),
            DeviceState::Renamed(now) => tracing::warn!(
                "the device {name} is now called {now}: another device has its name; the tunnel continues"
            ),
            DeviceState::Up => tracing::info!("the device {name} is back"),
        }
        if before == DeviceState::Missing {
            self.set(self.plan.clone()).await?;
        }
        Ok(changes)
    }

    async fn take_over(&mut self) -> Result<(), NetError> {
        let mut guard = own(&self.plan).await?;
        guard.watch()?;
        self.keeper = Keeper::Own(guard);
        Ok(())
    }

    async fn give_to(&mut self, mut client: GuardClient) -> Result<(), NetError> {
        // The guard can take the filter over once our connection to nf_tables is closed; the filter stays in
        // force in the meantime.
        let mut empty = Guard::connect()?;
        if let Keeper::Own(guard) = &mut self.keeper {
            std::mem::swap(guard.as_mut(), &mut empty);
        }
        drop(empty);
        match client.set(&self.plan).await {
            Ok(reply @ GuardReply::Done { .. }) => {
                self.keeper = Keeper::Resident(Box::new(client), status_of(reply));
                Ok(())
            }
            Ok(GuardReply::Failed { error }) => {
                self.take_over().await?;
                Err(NetError::Guard(error))
            }
            _ => self.take_over().await,
        }
    }

    /// Applies `on_stop` at a clean stop.
    pub(crate) async fn close(mut self, on_stop: OnStop) {
        if on_stop == OnStop::Block {
            return;
        }
        let released = match &mut self.keeper {
            Keeper::Own(guard) => guard.release(&self.plan).await.map(|changes| log(&changes)),
            Keeper::Resident(client, _) => match client.release().await {
                Ok(GuardReply::Failed { error }) => Err(NetError::Guard(error)),
                Ok(_) => Ok(()),
                Err(error) => Err(NetError::Guard(error.to_string())),
            },
        };
        if let Err(error) = released {
            tracing::error!("can't remove the block: {error}");
        }
    }
}

/// Connects to the resident guard, if one runs here and accepts the plan.
async fn resident(socket_dir: &Path, plan: &RoutePlan) -> Option<Keeper> {
    let mut client = GuardClient::connect(socket_dir).await.ok()?;
    match client.set(plan).await {
        Ok(reply @ GuardReply::Done { .. }) => Some(Keeper::Resident(Box::new(client), status_of(reply))),
        Ok(GuardReply::Failed { error }) => {
            tracing::warn!("the guard refused the block, so the daemon keeps it in force: {error}");
            None
        }
        _ => None,
    }
}

async fn own(plan: &RoutePlan) -> Result<Box<Guard>, NetError> {
    let mut guard = Box::new(Guard::connect()?);
    if let Some(reason) = guard.without_filter() {
        tracing::warn!("{reason}");
    }
    log(&guard.set(plan.clone()).await?);
    Ok(guard)
}

/// Warns if a config blocks nothing.
fn warn_of_nothing_blocked(plan: &RoutePlan) {
    if plan.filtered().next().is_none() && !plan.uses_guard_table() {
        tracing::warn!("nothing is blocked: `table` leaves the routes to others, and there is no `protect`");
    }
}

/// Warns of networks of this host that the block cuts off.
async fn warn_of_blocked_networks(net: &Net, plan: &RoutePlan) {
    let connected = match net.connected(&[]).await {
        Ok(connected) => connected,
        Err(error) => return tracing::warn!("{error}"),
    };
    for (network, around) in plan.blocked_networks(&connected) {
        let ConnectedNetwork { prefix, device, .. } = network;
        tracing::warn!(
            "{prefix} on {device} lies inside the protected {around} and is blocked; if it is this site's \
             own, write \
             `local = [{{ prefix = \"{prefix}\", device = \"{device}\" }}]` in [interface]"
        );
    }
}

/// Waits until something happens to the device with the index `only`, if given, or an address is removed.
async fn device_change(watch: &mut Option<Watch>, only: Option<u32>) {
    loop {
        let Some(open) = watch else { return std::future::pending().await };
        match open.changed().await {
            Some(Change::Device { index, .. }) if only.is_some_and(|only| only != index) => {}
            Some(_) => return,
            // It is opened again after this.
            None => {
                *watch = None;
                return;
            }
        }
    }
}

/// Waits until a guard answers.
async fn find_guard(socket_dir: &Path, at: &mut Instant) -> GuardClient {
    loop {
        tokio::time::sleep_until(*at).await;
        *at = Instant::now() + RETRY_INTERVAL;
        if let Ok(client) = GuardClient::connect(socket_dir).await {
            return client;
        }
    }
}

fn status_of(reply: GuardReply) -> Option<TunnelStatus> {
    match reply {
        GuardReply::Done { status, .. } | GuardReply::Report { status, .. } => status.map(TunnelStatus::from),
        GuardReply::Failed { .. } => None,
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
