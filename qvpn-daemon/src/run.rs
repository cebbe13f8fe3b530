//! The daemon's life: start in an order that never leaks, the loop that feeds the peers, reloads, and the stop.

use std::sync::Arc;
use std::time::Duration;

use getrandom::SysRng;
use qvpn_api::config::{self, EditError, PeerEdit};
use qvpn_api::control::{ErrorCode, ErrorReply, Reply, Request};
use qvpn_api::events::EventKind;
use qvpn_api::{Config, ConfigErrors};
use qvpn_dataplane::LaneEvent;
use qvpn_net::RoutePlan;
use qvpn_proto::session::Demux;
use qvpn_types::Time;
use rand_core::UnwrapErr;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::control_socket::{Asked, ControlSocket};
use crate::error::DaemonError;
use crate::events::Events;
use crate::kms_task::{Kmes, in_words};
use crate::lanes::{self, Marks};
use crate::metrics::{Histogram, KmeCounts};
use crate::metrics_listener::MetricsListener;
use crate::peers::Peers;
use crate::routes::Routes;
use crate::slot::Shared;
use crate::snapshot::Snapshots;
use crate::{clock, log, metrics, queues, reload, sandbox, status, translate};

/// Answers of tasks that may wait.
const ANSWERS: usize = 256;
/// Requests of control connections that may wait.
const REQUESTS: usize = 64;
/// Events of the lanes and of sessions that are taken in one go before anything else gets its turn.
const BATCH: usize = 64;
/// Datagrams of strangers that are taken in one go: a few, since each may cost a key exchange.
const FEW: usize = 8;
/// How often the peers hear what their lanes did.
const TICK: Duration = Duration::from_millis(500);

/// Runs the daemon until a signal stops it.
///
/// # Errors
/// If it can't start, or a lane fails. The block stays in place then.
pub(crate) async fn run(config: Config, socket: ControlSocket) -> Result<(), DaemonError> {
    let refused = |what| move |error| DaemonError::system(what, error);
    let mut hangup = signal(SignalKind::hangup()).map_err(refused("watch SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(refused("watch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refused("watch SIGINT"))?;

    let local = Arc::new(config.read_private_key()?);
    let psks = reload::read_psks(&config)?;
    let plan = RoutePlan::of(&config)?;
    let interface = config.interface.clone();
    let events = Arc::new(Events::new(&interface.name));
    let (answers, mut answered) = mpsc::channel(ANSWERS);
    let counts = Arc::new(KmeCounts::default());
    let kmes = Kmes::open(config.kms.as_ref(), plan.fwmark(), &events, &answers, &counts, &Kmes::default())?;

    // The block lies before there is a device, so nothing leaks whatever happens from here on.
    let mut routes = Routes::block(plan).await?;
    let demux = Demux::new(local.clone(), config.peers.len(), &mut UnwrapErr(SysRng));
    let (sink, mut queues) = queues::channel();
    let stats = Arc::default();
    let (lanes, mut marks) = lanes::start(&interface, routes.fwmark(), &demux, Arc::clone(&stats), sink)?;
    routes.open(&interface.address, translate::mtu(interface.mtu)).await?;

    let shared = Shared {
        lanes,
        stats,
        events: events.clone(),
        known: queues.known.clone(),
        answers,
        rng: UnwrapErr(SysRng),
        mtu_changed: false,
        rekeys: Histogram::default(),
    };
    let mut snapshots = Snapshots::watch();
    let (requests, mut asked) = mpsc::channel(REQUESTS);
    let mut metrics = MetricsListener::open(interface.metrics_listen, &requests).await?;
    let mut peers = Peers::new(config, local, psks, kmes, counts, demux, shared, clock::now());
    let server = tokio::spawn(socket.serve(interface.name.clone(), events.clone(), requests.clone()));
    let mut watchdog = Watchdog::asked_for();
    notify(&[NotifyState::Ready]);
    tracing::info!("{}: ready on UDP port {}", interface.name, interface.listen_port);

    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        let deadline = peers.next_timeout();
        tokio::select! {
            event = queues.sessions.recv() => {
                if let Err(error) = take(event, &mut queues.sessions, BATCH, &mut peers) {
                    break Err(error);
                }
            }
            event = queues.strangers.recv() => {
                if let Err(error) = take(event, &mut queues.strangers, FEW, &mut peers) {
                    break Err(error);
                }
            }
            () = snapshots.copied() => peers.start_anew(clock::now()),
            () = clock::reached(deadline) => peers.wake(clock::now()),
            Some(answer) = answered.recv() => peers.answer(answer, clock::now()),
            _ = tick.tick() => {
                watchdog.tick(clock::now());
                peers.tick(clock::now());
                log::tick(clock::now());
            }
            Some(Asked { request, answer }) = asked.recv() => {
                let mut parts = Parts { peers: &mut peers, routes: &mut routes, marks: &mut marks, metrics: &mut metrics, requests: &requests };
                let reply = reply(request, &mut parts).await;
                // It fails only when the client has gone.
                let _ = answer.send(reply);
            }
            _ = hangup.recv() => {
                let mut parts = Parts { peers: &mut peers, routes: &mut routes, marks: &mut marks, metrics: &mut metrics, requests: &requests };
                if let Err(error) = reload_all(&mut parts).await {
                    tracing::error!("reload: {error}");
                    error.details.iter().for_each(|line| tracing::error!("reload: {line}"));
                }
            }
            () = routes.need_a_look() => routes.restore(&events).await,
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
        }
        if peers.mtu_changed() {
            follow_paths(&peers, &mut routes).await;
        }
    };
    notify(&[NotifyState::Stopping]);
    tracing::info!("{}: stopping", interface.name);
    let on_stop = peers.config.interface.on_stop;
    peers.shut_down(clock::now());
    if result.is_ok() {
        routes.close(on_stop).await;
    }
    server.abort();
    // Cancelled, which is what was wanted; with it goes the socket's file.
    let _ = server.await;
    result
}

/// Puts what the paths take on the routes.
async fn follow_paths(peers: &Peers, routes: &mut Routes) {
    let applied = match RoutePlan::of(&peers.config) {
        Ok(plan) => routes.apply(peers.with_mtus(plan)).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = applied {
        tracing::error!("the MTU of a path can't be set on its routes: {error}; set `mtu` to a number");
    }
}

/// Hands an event to the peers, and up to as many more of its queue as make `most`.
fn take(
    first: Option<LaneEvent>,
    queue: &mut mpsc::Receiver<LaneEvent>,
    most: usize,
    peers: &mut Peers,
) -> Result<(), DaemonError> {
    let mut next = first;
    for left in (0..most).rev() {
        let Some(event) = next else { break };
        peers.lane_event(event, clock::now())?;
        next = if left > 0 { queue.try_recv().ok() } else { None };
    }
    Ok(())
}

/// What a request may change.
struct Parts<'a> {
    peers: &'a mut Peers,
    routes: &'a mut Routes,
    marks: &'a mut Marks,
    metrics: &'a mut MetricsListener,
    /// Where a new listener asks.
    requests: &'a mpsc::Sender<Asked>,
}

async fn reply(request: Request, parts: &mut Parts<'_>) -> Reply {
    let peers = &mut *parts.peers;
    match request {
        Request::Show => Reply::Show(status::status(peers, clock::now())),
        Request::Peers => Reply::Peers(peers.summaries()),
        Request::Rekey { peer } => peers.rekey(peer.as_deref(), clock::now()),
        Request::Metrics => Reply::Metrics { text: metrics::text(peers, clock::now()) },
        Request::Reload => match reload_all(parts).await {
            Ok(changes) => Reply::Reload { changes },
            Err(error) => Reply::Error(error),
        },
        Request::EditPeer { change } => match edit_peer(parts, &change).await {
            Ok(changes) => Reply::Reload { changes },
            Err(error) => Reply::Error(error),
        },
        // The control socket answers these itself.
        Request::Events { .. } | Request::Version => {
            Reply::Error(ErrorReply::new(ErrorCode::Failed, "this request is not for the peers"))
        }
    }
}

/// Reads the config again and takes over what changed; says what that was.
///
/// # Errors
/// As [`take_over`].
async fn reload_all(parts: &mut Parts<'_>) -> Result<Vec<String>, ErrorReply> {
    let new = Config::load(&parts.peers.config.path).map_err(wrong)?;
    within_reach(&new)?;
    take_over(parts, reload::checked(new).map_err(wrong)?).await
}

/// Changes one peer of the config that is in force; the file stays as it is.
///
/// # Errors
/// As [`take_over`], and if there is no such peer.
async fn edit_peer(parts: &mut Parts<'_>, change: &PeerEdit) -> Result<Vec<String>, ErrorReply> {
    let old = &parts.peers.config;
    let text = config::edit_peer(&old.text, change).map_err(|error| match error {
        EditError::NoPeer(_) => ErrorReply::new(ErrorCode::NoSuchPeer, error.to_string()),
        error => refuse(&error.to_string(), Vec::new()),
    })?;
    // Places in a text that is in no file would mislead.
    let wrong = |errors: ConfigErrors| {
        let details = errors.list().iter().map(|e| format!("{}; {}", e.what, e.fix)).collect();
        refuse("the change is refused", details)
    };
    let new = Config::parse(&old.path, &text).map_err(wrong)?;
    within_reach(&new)?;
    take_over(parts, reload::checked(new).map_err(wrong)?).await
}

/// Refuses files that the sandbox has shut off, in better words than the system's.
fn within_reach(new: &Config) -> Result<(), ErrorReply> {
    match sandbox::out_of_reach(new) {
        shut_off if shut_off.is_empty() => Ok(()),
        shut_off => Err(refuse("the config names files that this daemon has given up", shut_off)),
    }
}

fn refuse(message: &str, details: Vec<String>) -> ErrorReply {
    let message = format!("{message}; the former config stays in force");
    ErrorReply { code: ErrorCode::ConfigRefused, message, details }
}

fn wrong(errors: ConfigErrors) -> ErrorReply {
    refuse("the config is refused", errors.to_string().lines().map(str::to_owned).collect())
}

/// Goes over to `new`, and says what changed.
///
/// # Errors
/// If the config is refused, or the kernel refuses its routes. Nothing has changed then.
async fn take_over(parts: &mut Parts<'_>, new: Config) -> Result<Vec<String>, ErrorReply> {
    let Parts { peers, routes, marks, .. } = parts;
    let plan = RoutePlan::of(&new)
        .map_err(|error| refuse("the config's routes can't work", vec![error.to_string()]))?;
    let mut refused = reload::refused(&peers.config, &new);
    if new.read_private_key().map_err(wrong)?.public() != peers.local.public() {
        refused.push(
            "the private key is another one; restart the daemon for that, or put the former file back"
                .to_owned(),
        );
    }
    if !refused.is_empty() {
        return Err(refuse("the config changes what can't be changed at run time", refused));
    }
    let psks = reload::read_psks(&new).map_err(wrong)?;
    let events = peers.shared.events.clone();
    let answers = peers.shared.answers.clone();
    let counts = peers.kme_counts.clone();
    // A mark that no rule asks for any more does no harm.
    let (former_mark, mark) = (marks.mark(), if plan.fwmark() == 0 { marks.mark() } else { plan.fwmark() });
    let kmes = Kmes::open(new.kms.as_ref(), mark, &events, &answers, &counts, &peers.kmes)
        .map_err(|error| refuse("a KME can't be used", vec![in_words(&error)]))?;

    let listen = new.interface.metrics_listen;
    let metrics = match listen == parts.metrics.address() {
        true => None,
        false => Some(
            MetricsListener::open(listen, parts.requests)
                .await
                .map_err(|error| refuse("the metrics can't be served", vec![error.to_string()]))?,
        ),
    };

    let failed = |error: qvpn_net::NetError| {
        ErrorReply::new(ErrorCode::Failed, format!("{error}; the former config stays in force"))
    };
    let (old_interface, interface) = (peers.config.interface.clone(), new.interface.clone());
    // The mark before the rules that ask for it: a datagram without would go into the tunnel that it carries.
    if mark != former_mark {
        marks.set(mark).map_err(|error| {
            let what = format!("the firewall mark {mark:#x} can't be set on the sockets: {error}; the former config stays in force");
            ErrorReply::new(ErrorCode::Failed, what)
        })?;
    }
    if let Err(error) = routes.apply(peers.with_mtus(plan)).await {
        back_to(marks, former_mark);
        return Err(failed(error));
    }
    if (&old_interface.address, old_interface.mtu) != (&interface.address, interface.mtu)
        && let Err(error) = routes.device(&interface.address, translate::mtu(interface.mtu)).await
    {
        let back = RoutePlan::of(&peers.config);
        if let Ok(back) = back
            && let Err(error) = routes.apply(peers.with_mtus(back)).await
        {
            tracing::error!("going back to the former routes: {error}");
        }
        back_to(marks, former_mark);
        return Err(failed(error));
    }
    if let Some(metrics) = metrics {
        *parts.metrics = metrics;
    }
    log::configure(new.interface.log_level);
    let changes = reload::changes(&peers.config, &new);
    peers.reconfigure(new, psks, kmes, clock::now());
    events.emit(EventKind::ConfigReloaded { changes: changes.clone() });
    Ok(changes)
}

/// Tells systemd that this task is alive, where the unit asks for it (`WatchdogSec=`): a task that hangs is then ended and
/// started again. Lanes need none, since they stop by themselves when their keys end.
struct Watchdog {
    every: Option<Duration>,
    next: Option<Time>,
}

impl Watchdog {
    fn asked_for() -> Self {
        // Half the time that systemd allows is what it recommends; a third leaves room for a tick that comes late.
        Self { every: sd_notify::watchdog_enabled().map(|limit| limit / 3), next: None }
    }

    fn tick(&mut self, now: Time) {
        let Some(every) = self.every else { return };
        if self.next.is_none_or(|next| now >= next) {
            self.next = Some(now + every);
            notify(&[NotifyState::Watchdog]);
        }
    }
}

/// The mark of before; one that nobody asks for does no harm.
fn back_to(marks: &mut Marks, mark: u32) {
    if marks.mark() != mark
        && let Err(error) = marks.set(mark)
    {
        tracing::warn!("going back to the former firewall mark: {error}");
    }
}

/// Tells systemd; elsewhere nobody listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("telling systemd: {error}");
    }
}
