//! Starts the daemon in an order that never leaks, runs the loop of the task that owns the peers, and stops.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use getrandom::SysRng;
use qvpn_api::{Config, ConfigErrors};
use qvpn_dataplane::LaneEvent;
use qvpn_net::Net;
use qvpn_proto::session::Demux;
use rand_core::UnwrapErr;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::access::SharedRules;
use crate::audit::AuditTrail;
use crate::config_files::{ConfigKeys, SharedPrefixes};
use crate::context::DaemonContext;
use crate::control_socket::{ControlSocket, PendingRequest};
use crate::daemon::Daemon;
use crate::error::DaemonError;
use crate::events::Events;
use crate::histogram::Histogram;
use crate::kernel_routes::{KernelRouting, RouteUpdates};
use crate::kme_counts::KmeCounts;
use crate::kms_task::{KmeReporting, Kmes};
use crate::lanes;
use crate::metrics_listener::MetricsListener;
use crate::peers::Peers;
use crate::queues::{self, Queues};
use crate::routes::Routes;
use crate::settings::Settings;
use crate::snapshot::Snapshots;
use crate::state_file::StateFile;
use crate::takeovers::Takeovers;
use crate::task_result::TaskResult;
use crate::watchdog::{Watchdog, notify};
use crate::{caller, clock, log, requests, standby, try_config};

const MAX_QUEUED_RESULTS: usize = 256;
const MAX_QUEUED_REQUESTS: usize = 64;
/// The maximum number of events of lanes and sessions that are handled before anything else gets its turn.
const SESSION_BATCH: usize = 64;
/// The same for datagrams from unknown sources: few, since each may cost a key exchange.
const UNKNOWN_BATCH: usize = 8;
const TICK_INTERVAL: Duration = Duration::from_millis(500);

/// How the command line says to start.
pub(crate) struct Start<'a> {
    /// Of the control socket, and of the state file.
    pub(crate) dirs: [&'a Path; 2],
    /// Whether it begins in standby.
    pub(crate) standby: bool,
}

/// Runs the daemon until a signal stops it.
///
/// # Errors
/// If it can't start, or a lane fails. The block stays in place then.
pub(crate) async fn run(
    config: Config,
    shared: Vec<SharedPrefixes>,
    socket: ControlSocket,
    start_as: Start<'_>,
) -> Result<(), DaemonError> {
    let mut signals = Signals::watch()?;
    refuse_prefixes_of_running_tunnels(shared).await?;
    let (requests, pending_requests) = mpsc::channel(MAX_QUEUED_REQUESTS);
    let (daemon, inputs) =
        start(config, start_as, socket.rules(), requests.clone(), pending_requests).await?;
    let interface = daemon.config.interface.name.clone();
    let server = tokio::spawn(socket.serve(interface.clone(), daemon.events.clone(), requests));
    notify(NotifyState::Ready);
    tracing::info!("{interface}: ready on UDP port {}", daemon.config.interface.listen_port);

    let mut daemon = daemon;
    let result = serve(&mut daemon, inputs, &mut signals).await;

    notify(NotifyState::Stopping);
    tracing::info!("{interface}: stopping");
    daemon.stop(result.is_ok(), clock::now()).await;
    server.abort();
    // The cancelled task removes the socket's file.
    let _ = server.await;
    result
}

/// A prefix leads into only one tunnel. Another network namespace may have it too, so only tunnels that run
/// in this one count.
async fn refuse_prefixes_of_running_tunnels(shared: Vec<SharedPrefixes>) -> Result<(), DaemonError> {
    if shared.is_empty() {
        return Ok(());
    }
    let net = Net::connect()?;
    let running = net.devices(shared.iter().map(|other| other.interface.as_str())).await?;
    let running = shared.into_iter().filter(|other| running.contains_key(&other.interface));
    match running.map(|other| other.errors).reduce(ConfigErrors::and) {
        Some(errors) => Err(errors.into()),
        None => Ok(()),
    }
}

/// The signals that the daemon reacts to.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> Result<Self, DaemonError> {
        let watch = |kind, what| signal(kind).map_err(|error| DaemonError::system(what, error));
        Ok(Self {
            hangup: watch(SignalKind::hangup(), "watch SIGHUP")?,
            terminate: watch(SignalKind::terminate(), "watch SIGTERM")?,
            interrupt: watch(SignalKind::interrupt(), "watch SIGINT")?,
        })
    }
}

/// What the loop waits for.
struct Inputs {
    queues: Queues,
    results: mpsc::Receiver<TaskResult>,
    requests: mpsc::Receiver<PendingRequest>,
    snapshots: Snapshots,
    route_updates: RouteUpdates,
}

/// Builds everything that runs.
async fn start(
    config: Config,
    Start { dirs: [socket_dir, state_dir], standby }: Start<'_>,
    access: SharedRules,
    requests: mpsc::Sender<PendingRequest>,
    pending_requests: mpsc::Receiver<PendingRequest>,
) -> Result<(Daemon, Inputs), DaemonError> {
    let keys = ConfigKeys::read(&config)?;
    let settings = Settings::derive(&config, &keys)?;
    let audit = AuditTrail::start(&config.interface.name, config.audit_epochs)?;
    let events = Arc::new(Events::audited(&config.interface.name, audit.sink()));
    let (results, task_results) = mpsc::channel(MAX_QUEUED_RESULTS);
    let counts = Arc::new(KmeCounts::default());
    let reporting = KmeReporting { events: events.clone(), results: results.clone(), counts: counts.clone() };
    let kmes = Kmes::open(&settings.kmes, settings.routes.fwmark(), &reporting, &Kmes::default())?;

    // The block comes before the device, so nothing leaks if a later step fails.
    let mut routes = Routes::block(settings.routes.clone(), socket_dir).await?;
    let demux = Demux::new(keys.local.clone(), config.peers.len(), &mut UnwrapErr(SysRng));
    let (sink, queues) = queues::channel();
    let stats = Arc::default();
    let (lanes, marks) = lanes::start(&config.interface, routes.fwmark(), &demux, Arc::clone(&stats), sink)?;
    routes.open(&settings.device).await?;

    let context = DaemonContext {
        lanes,
        stats,
        events: events.clone(),
        control_sources: queues.control_sources.clone(),
        results,
        rng: UnwrapErr(SysRng),
        mtu_changed: false,
        rekeys: Histogram::default(),
    };
    let routing = settings.fixed.routes_table.map(KernelRouting::new);
    let route_updates = match (&routing, routes.device()) {
        (Some(routing), Some(device)) => routing.follow(device)?,
        _ => RouteUpdates::none(),
    };
    let snapshots = Snapshots::watch();
    let metrics = MetricsListener::open(settings.metrics_listen, &requests).await?;
    let local = keys.local;
    let (state, stored) = StateFile::open(state_dir, &config.interface.name, local.public());
    let mut peers = Peers::new(&settings, routing, (kmes, counts), demux, context, clock::now());
    if !standby {
        peers.activate(&stored, settings.device.mtu, clock::now());
    }
    let daemon = Daemon {
        config,
        settings,
        local,
        events,
        audit,
        peers,
        state,
        takeovers: Takeovers::new(standby),
        routes,
        marks,
        metrics,
        requests,
        access,
        trial: None,
    };
    let requests = pending_requests;
    Ok((daemon, Inputs { queues, results: task_results, requests, snapshots, route_updates }))
}

/// Passes inputs to the peers until a signal arrives.
///
/// # Errors
/// If a lane fails.
async fn serve(daemon: &mut Daemon, mut inputs: Inputs, signals: &mut Signals) -> Result<(), DaemonError> {
    let Inputs { queues, results, requests, snapshots, route_updates } = &mut inputs;
    let mut watchdog = Watchdog::from_environment();
    let mut tick = tokio::time::interval(TICK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let deadline = daemon.peers.next_timeout();
        let active_at = daemon.takeovers.deadline();
        let unconfirmed_until = try_config::deadline(daemon);
        tokio::select! {
            event = queues.sessions.recv() => {
                handle_batch(event, || queues.sessions.try_recv(), SESSION_BATCH, &mut daemon.peers)?;
            }
            event = queues.unknown.recv() => {
                handle_batch(event, || queues.unknown.try_recv().ok(), UNKNOWN_BATCH, &mut daemon.peers)?;
            }
            Some(table) = route_updates.changed() => daemon.peers.routes_changed(table),
            () = snapshots.copied() => daemon.peers.machine_copied(daemon.settings.device.mtu, clock::now()),
            () = clock::reached(deadline) => daemon.peers.on_timeout(clock::now()),
            Some(result) = results.recv() => daemon.peers.task_result(result, clock::now()),
            _ = tick.tick() => {
                watchdog.tick(clock::now());
                daemon.peers.tick(clock::now());
                daemon.save_state(clock::now()).await;
                log::tick(clock::now());
            }
            Some(PendingRequest { request, uid, answer }) = requests.recv() => {
                let reply = requests::reply(request, uid, daemon).await;
                // It fails only if the client is gone.
                let _ = answer.send(reply);
            }
            _ = signals.hangup.recv() => {
                if let Err(error) = requests::reload(daemon, &caller::named("SIGHUP")).await {
                    tracing::error!("reload: {error}");
                    error.details.iter().for_each(|line| tracing::error!("reload: {line}"));
                }
            }
            () = clock::reached(active_at) => {
                standby::activate(daemon, clock::now());
            }
            () = clock::reached(unconfirmed_until) => try_config::expired(daemon).await,
            () = daemon.routes.wait_for_change() => daemon.routes.restore(&daemon.events).await,
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
        }
        if daemon.peers.take_mtu_changed() {
            daemon.follow_path_mtus().await;
        }
    }
}

/// Passes an event to the peers, and more from its queue: at most `max` in all.
fn handle_batch(
    first: Option<LaneEvent>,
    mut more: impl FnMut() -> Option<LaneEvent>,
    max: usize,
    peers: &mut Peers,
) -> Result<(), DaemonError> {
    let mut next = first;
    for left in (0..max).rev() {
        let Some(event) = next else { break };
        peers.lane_event(event, clock::now())?;
        next = if left > 0 { more() } else { None };
    }
    Ok(())
}
