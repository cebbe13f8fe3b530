//! Answers the requests of control connections.

use qvpn_api::config::{self, EditError, IpNet, PeerEdit};
use qvpn_api::control::{ErrorCode, ErrorReply, PeerSummary, Reply, Request};
use qvpn_api::events::Caller;
use qvpn_api::{Config, ConfigErrors};

use crate::daemon::Daemon;
use crate::reload::{self, Change};
use crate::{caller, clock, standby, try_config};

/// Answers `request` of the user `uid`, and reports it as an event if it changes something.
pub(crate) async fn reply(request: Request, uid: Option<u32>, daemon: &mut Daemon) -> Reply {
    let reported = request.changes_something().then(|| request.clone());
    let reply = answer(request, uid, daemon).await;
    if let Some(request) = reported {
        let result = match &reply {
            Reply::Error(error) => format!("refused: {}", error.message),
            _ => "done".to_owned(),
        };
        daemon.events.emit(caller::used(uid, &request, &result));
    }
    reply
}

async fn answer(request: Request, uid: Option<u32>, daemon: &mut Daemon) -> Reply {
    match request {
        Request::Show => Reply::Show(daemon.status(clock::now())),
        Request::Peers => Reply::Peers(daemon.config.peers.iter().map(summary).collect()),
        Request::Rekey { peer } => rekey(daemon, peer.as_deref()),
        Request::Standby => standby::stand_by(daemon, clock::now()).await,
        Request::Activate => standby::activate(daemon, clock::now()),
        Request::Metrics => Reply::Metrics { text: daemon.metrics_text(clock::now()) },
        Request::PlanReload => match prepare_reload(daemon).await {
            Ok(change) => Reply::Plan { changes: change.keys(daemon) },
            Err(error) => Reply::Error(error),
        },
        Request::Config => try_config::config(daemon),
        Request::Confirm => try_config::confirm(daemon).map_or_else(Reply::Error, |()| Reply::Confirmed),
        Request::Reload | Request::TryConfig { .. } | Request::GoBack | Request::EditPeer { .. } => {
            let before = kept(daemon);
            let result = put_in_force(request, &caller::user(uid), daemon).await;
            reload_reply(result, &before, daemon)
        }
        Request::Unblock { prefixes } => match unblock(daemon, &prefixes).await {
            Ok(prefixes) => Reply::Unblocked { prefixes },
            Err(error) => Reply::Error(ErrorReply::new(ErrorCode::Failed, error)),
        },
        // The control socket answers these itself.
        Request::Events { .. } | Request::Version => {
            Reply::Error(ErrorReply::new(ErrorCode::Failed, "this request is not for the peers"))
        }
    }
}

/// Carries out a request for another config.
async fn put_in_force(
    request: Request,
    caller: &Caller,
    daemon: &mut Daemon,
) -> Result<Vec<String>, ErrorReply> {
    match request {
        Request::TryConfig { within_s } => try_config::start(daemon, within_s, caller).await,
        Request::GoBack => try_config::go_back(daemon, caller).await,
        Request::EditPeer { change } => edit_peer(daemon, &change, caller).await,
        _ => reload(daemon, caller).await,
    }
}

/// Returns the prefixes that stay blocked although the config no longer has them.
fn kept(daemon: &Daemon) -> Vec<String> {
    daemon.routes.kept(&daemon.settings.routes).iter().map(ToString::to_string).collect()
}

fn reload_reply(result: Result<Vec<String>, ErrorReply>, before: &[String], daemon: &Daemon) -> Reply {
    match result {
        Ok(changes) => {
            let kept = kept(daemon).into_iter().filter(|prefix| !before.contains(prefix)).collect();
            Reply::Reload { changes, kept }
        }
        Err(error) => Reply::Error(error),
    }
}

async fn unblock(daemon: &mut Daemon, prefixes: &[String]) -> Result<Vec<String>, String> {
    let parse = |text: &String| text.parse::<IpNet>().map_err(|error| format!("`{text}`: {error}"));
    let prefixes = prefixes.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let released = daemon.routes.unblock(&prefixes, &daemon.settings.routes).await?;
    Ok(released.iter().map(ToString::to_string).collect())
}

fn summary(peer: &config::Peer) -> PeerSummary {
    PeerSummary {
        name: peer.name.clone(),
        public_key: peer.public_key.to_string(),
        fingerprint: peer.public_key.fingerprint(),
        other_public_key: peer.second_key.as_ref().map(ToString::to_string),
        endpoint: peer.endpoint.as_ref().map(ToString::to_string),
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
        qkd: peer.qkd,
        role: peer.role,
        suite: peer.suite,
    }
}

/// Starts a fresh epoch with one peer, or with all.
fn rekey(daemon: &mut Daemon, name_or_key: Option<&str>) -> Reply {
    if daemon.peers.in_standby() {
        let name = &daemon.config.interface.name;
        let message = format!("this gateway is in standby; `qvpn-ctl activate {name}` ends that");
        return Reply::Error(ErrorReply::new(ErrorCode::Failed, message));
    }
    let wanted: Vec<&config::Peer> = match name_or_key {
        None => daemon.config.peers.iter().filter(|peer| !peer.disabled).collect(),
        Some(text) => match daemon.config.find_peer(text) {
            Ok(peer) if peer.disabled => {
                let message =
                    format!("peer {0} is disabled; enable it first: `qvpn-ctl peer enable`", peer.name);
                return Reply::Error(ErrorReply::new(ErrorCode::Failed, message));
            }
            Ok(peer) => vec![peer],
            Err(error) => return Reply::Error(ErrorReply::new(ErrorCode::NoSuchPeer, error.to_string())),
        },
    };
    daemon.peers.rekey(wanted.iter().map(|peer| &peer.public_key), clock::now());
    Reply::Rekey { peers: wanted.into_iter().map(|peer| peer.name.clone()).collect() }
}

/// Reloads the config file. Returns what changed, in words.
///
/// # Errors
/// If the new config is refused, or the kernel refuses its routes. Nothing has changed then.
pub(crate) async fn reload(daemon: &mut Daemon, caller: &Caller) -> Result<Vec<String>, ErrorReply> {
    prepare_reload(daemon).await?.commit(daemon, caller).await
}

/// Reads the config file and opens what it needs; changes nothing.
async fn prepare_reload(daemon: &Daemon) -> Result<Change, ErrorReply> {
    try_config::refuse_during(daemon)?;
    let new = Config::load(&daemon.config.path).map_err(|errors| reload::config_refused(&errors))?;
    reload::prepare(daemon, new, &reload::config_refused).await
}

/// Changes one peer of the config that is in force; the file stays as it is.
///
/// # Errors
/// As [`reload()`], and if there is no such peer.
async fn edit_peer(
    daemon: &mut Daemon,
    change: &PeerEdit,
    caller: &Caller,
) -> Result<Vec<String>, ErrorReply> {
    try_config::refuse_during(daemon)?;
    let old = &daemon.config;
    let text = config::edit_peer(&old.text, change).map_err(|error| match error {
        EditError::NoPeer(_) => ErrorReply::new(ErrorCode::NoSuchPeer, error.to_string()),
        error => reload::refused(&error.to_string(), Vec::new()),
    })?;
    // Lines and columns of a text that is not in a file would be misleading.
    let refused = |errors: &ConfigErrors| {
        let details = errors.list().iter().map(|e| format!("{}; {}", e.what, e.fix)).collect();
        reload::refused("the change is refused", details)
    };
    let mut new = Config::parse(&old.path, &text).map_err(|errors| refused(&errors))?;
    if new.interface.local_connected && old.interface.local_connected {
        new.interface.local.clone_from(&old.interface.local);
    }
    reload::prepare(daemon, new, &refused).await?.commit(daemon, caller).await
}
