//! Answers the requests of control connections.

use qvpn_api::config::{self, EditError, PeerEdit};
use qvpn_api::control::{ErrorCode, ErrorReply, PeerSummary, Reply, Request};
use qvpn_api::events::Caller;
use qvpn_api::{Config, ConfigErrors};

use crate::daemon::Daemon;
use crate::reload::{self, Change};
use crate::{caller, clock, config_files, sandbox};

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
        Request::Metrics => Reply::Metrics { text: daemon.metrics_text(clock::now()) },
        Request::Reload => match reload(daemon, &caller::user(uid)).await {
            Ok(changes) => Reply::Reload { changes },
            Err(error) => Reply::Error(error),
        },
        Request::PlanReload => match prepare_reload(daemon).await {
            Ok(change) => Reply::Plan { changes: change.keys(daemon) },
            Err(error) => Reply::Error(error),
        },
        Request::EditPeer { change } => match edit_peer(daemon, &change, &caller::user(uid)).await {
            Ok(changes) => Reply::Reload { changes },
            Err(error) => Reply::Error(error),
        },
        // The control socket answers these itself.
        Request::Events { .. } | Request::Version => {
            Reply::Error(ErrorReply::new(ErrorCode::Failed, "this request is not for the peers"))
        }
    }
}

fn summary(peer: &config::Peer) -> PeerSummary {
    PeerSummary {
        name: peer.name.clone(),
        public_key: peer.public_key.to_string(),
        fingerprint: peer.public_key.fingerprint(),
        endpoint: peer.endpoint.as_ref().map(ToString::to_string),
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
        qkd: peer.qkd,
        role: peer.role,
        suite: peer.suite,
    }
}

/// Starts a fresh epoch with one peer, or with all.
fn rekey(daemon: &mut Daemon, name_or_key: Option<&str>) -> Reply {
    let wanted: Vec<&config::Peer> = match name_or_key {
        None => daemon.config.peers.iter().collect(),
        Some(text) => match daemon.config.find_peer(text) {
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
    let new = Config::load(&daemon.config.path).map_err(|errors| reload::config_refused(&errors))?;
    within_allowed_paths(&new)?;
    let new = config_files::check(new).map_err(|errors| reload::config_refused(&errors))?;
    Change::prepare(daemon, new).await
}

/// Changes one peer of the config that is in force; the file stays as it is.
///
/// # Errors
/// As [`reload`], and if there is no such peer.
async fn edit_peer(
    daemon: &mut Daemon,
    change: &PeerEdit,
    caller: &Caller,
) -> Result<Vec<String>, ErrorReply> {
    let old = &daemon.config;
    let text = config::edit_peer(&old.text, change).map_err(|error| match error {
        EditError::NoPeer(_) => ErrorReply::new(ErrorCode::NoSuchPeer, error.to_string()),
        error => reload::refused(&error.to_string(), Vec::new()),
    })?;
    // Lines and columns of a text that is in no file would mislead.
    let refused = |errors: ConfigErrors| {
        let details = errors.list().iter().map(|e| format!("{}; {}", e.what, e.fix)).collect();
        reload::refused("the change is refused", details)
    };
    let new = Config::parse(&old.path, &text).map_err(refused)?;
    within_allowed_paths(&new)?;
    let new = config_files::check(new).map_err(refused)?;
    Change::prepare(daemon, new).await?.commit(daemon, caller).await
}

/// Refuses files that the sandbox does not allow, with a better message than the system's.
fn within_allowed_paths(new: &Config) -> Result<(), ErrorReply> {
    match sandbox::denied_files(new) {
        outside if outside.is_empty() => Ok(()),
        outside => {
            Err(reload::refused("the config names files that this daemon can no longer open", outside))
        }
    }
}
