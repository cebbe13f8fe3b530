//! The tunnel's routes and filter: first the block, then the device and its routes. The resident guard
//! keeps them in force where one runs; else this daemon does, with the same code. The block stays when the
//! daemon ends, unless it is stopped and the config says `on_stop = "open"`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use qvpn_api::config::OnStop;
use qvpn_api::events::EventKind;
use qvpn_net::{Changes, Guard, GuardClient, GuardReply, IpNet, Net, NetError, RoutePlan, TunnelStatus};
use tokio::time::Instant;

use crate::events::Events;

/// The addresses and the MTU of the TUN device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeviceSettings {
    pub(crate) addresses: Vec<IpNet>,
    /// In bytes.
    pub(crate) mtu: u16,
}

/// Until what could not be restored is tried again, and how often a daemon without a guard looks for one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Who keeps the block in force.
enum Keeper {
    Own(Box<Guard>),
    Resident(GuardClient, Option<TunnelStatus>),
}

/// What [`Routes::restore`] has to deal with.
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
    /// The last failure, so that one that lasts is logged once.
    failure: Option<String>,
}

impl Routes {
    /// Puts the block in place, before there is a device. The guard's socket is looked for in `socket_dir`.
    pub(crate) async fn block(plan: RoutePlan, socket_dir: &Path) -> Result<Self, NetError> {
        if plan.filtered().next().is_none() && !plan.uses_guard_table() {
            tracing::warn!(
                "nothing is blocked: `table` leaves the routes to others, and there is no `protect`"
            );
        }
        let keeper = match resident(socket_dir, &plan).await {
            Some(keeper) => keeper,
            None => Keeper::Own(own(&plan).await?),
        };
        Ok(Self {
            net: Net::connect()?,
            keeper,
            socket_dir: socket_dir.to_owned(),
            pending: None,
            look_for_guard_at: Instant::now() + RETRY_INTERVAL,
            plan,
            device: DeviceSettings::default(),
            failure: None,
        })
    }

    /// Takes the device up, and leads the allowed IPs into it.
    pub(crate) async fn open(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.set_device(device).await?;
        if let Keeper::Own(guard) = &mut self.keeper {
            guard.watch()?;
        }
        let name = self.plan.interface().to_owned();
        let index = self.net.devices([name.as_str()]).await?.get(&name).copied();
        self.set(self.plan.clone().on_device(index)).await
    }

    pub(crate) async fn set_device(&mut self, device: &DeviceSettings) -> Result<(), NetError> {
        self.net.set_addresses(self.plan.interface(), &device.addresses).await?;
        self.net.set_link_up(self.plan.interface(), device.mtu.into()).await?;
        self.device = device.clone();
        Ok(())
    }

    /// Index of the tunnel's device, once it is open.
    pub(crate) fn device(&self) -> Option<u32> {
        self.plan.device()
    }

    /// The mark that our own datagrams must have.
    pub(crate) fn fwmark(&self) -> u32 {
        self.plan.fwmark()
    }

    /// Both layers as they are now.
    pub(crate) fn status(&self) -> Option<TunnelStatus> {
        match &self.keeper {
            Keeper::Own(guard) => guard.status(self.plan.interface()),
            Keeper::Resident(_, status) => status.clone(),
        }
    }

    /// Applies another plan, and keeps blocked what the plan before blocked; if that fails, goes back to
    /// the plan before.
    pub(crate) async fn apply(&mut self, new: RoutePlan) -> Result<(), NetError> {
        let new = new.on_device(self.plan.device()).keeping(&self.plan);
        let old = self.plan.clone();
        if let Err(error) = self.set(new).await {
            if let Err(back) = self.set(old).await {
                tracing::error!("going back to the former routes: {back}");
            }
            return Err(error);
        }
        for prefix in self.plan.protect().difference(old.protect()) {
            tracing::warn!(
                "{prefix} stays blocked; to release it, stop the daemon and qvpn-guard, then run `qvpn-ctl \
                 unblock`"
            );
        }
        Ok(())
    }

    async fn set(&mut self, plan: RoutePlan) -> Result<(), NetError> {
        match &mut self.keeper {
            Keeper::Own(guard) => log(&guard.set(plan.clone()).await?),
            Keeper::Resident(client, status) => match client.set(&plan).await {
                Ok(GuardReply::Failed { error }) => return Err(NetError::Guard(error)),
                Ok(reply) => *status = status_of(reply),
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
        let pending = match &mut self.keeper {
            Keeper::Own(guard) => tokio::select! {
                () = guard.changed() => Pending::Changed,
                () = tokio::time::sleep(RETRY_INTERVAL), if retry => Pending::Changed,
                client = find_guard(&self.socket_dir, &mut self.look_for_guard_at) => {
                    Pending::GuardAppeared(client)
                }
            },
            Keeper::Resident(client, _) => tokio::select! {
                report = client.report() => report.map_or(Pending::GuardLost, Pending::Report),
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
        let device =
            self.net.restore_device(&self.plan, &self.device.addresses, self.device.mtu.into()).await;
        match device {
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

    async fn take_over(&mut self) -> Result<(), NetError> {
        let mut guard = own(&self.plan).await?;
        guard.watch()?;
        self.keeper = Keeper::Own(guard);
        Ok(())
    }

    async fn give_to(&mut self, mut client: GuardClient) -> Result<(), NetError> {
        // The filter is free for the guard once our connection to nf_tables is closed; it stays in force
        // meanwhile.
        let mut empty = Guard::connect()?;
        if let Keeper::Own(guard) = &mut self.keeper {
            std::mem::swap(guard.as_mut(), &mut empty);
        }
        drop(empty);
        match client.set(&self.plan).await {
            Ok(reply @ GuardReply::Done { .. }) => {
                self.keeper = Keeper::Resident(client, status_of(reply));
                Ok(())
            }
            Ok(GuardReply::Failed { error }) => {
                self.take_over().await?;
                Err(NetError::Guard(error))
            }
            _ => self.take_over().await,
        }
    }

    /// Does what `on_stop` says at a clean stop.
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
            tracing::error!("removing the block at the stop: {error}");
        }
    }
}

/// The resident guard, if one runs here and takes the plan.
async fn resident(socket_dir: &Path, plan: &RoutePlan) -> Option<Keeper> {
    let mut client = GuardClient::connect(socket_dir).await.ok()?;
    match client.set(plan).await {
        Ok(reply @ GuardReply::Done { .. }) => Some(Keeper::Resident(client, status_of(reply))),
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
