//! A config on trial (`qvpn-ctl reload --confirm`): it is in force, and the former one is restored unless
//! somebody confirms it in time. The config file holds the former text in the meantime, so a restart also
//! restores it.

use std::time::Duration;

use qvpn_api::Config;
use qvpn_api::config::unconfirmed_path;
use qvpn_api::control::{ErrorCode, ErrorReply, MAX_CONFIRM_S, Reply};
use qvpn_api::events::{Caller, EventKind};
use qvpn_types::Time;

use crate::daemon::Daemon;
use crate::trial::Trial;
use crate::{caller, clock, reload};

/// The delay before the next attempt, if the former config can't be restored.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Returns the time at which the former config is restored, if a config is on trial.
pub(crate) fn deadline(daemon: &Daemon) -> Option<Time> {
    daemon.trial.as_ref().map(|trial| trial.deadline)
}

/// Returns the text in force, and the time left to confirm it.
pub(crate) fn config(daemon: &Daemon) -> Reply {
    Reply::Config {
        path: daemon.config.path.clone(),
        text: daemon.config.self_contained_text(),
        confirm_in_s: daemon.trial.as_ref().map(|trial| trial.deadline.since(clock::now()).as_secs()),
    }
}

/// Refuses another change while a config is on trial, since restoring the former config would undo it too.
pub(crate) fn refuse_during(daemon: &Daemon) -> Result<(), ErrorReply> {
    let Some(trial) = &daemon.trial else { return Ok(()) };
    let left = trial.deadline.since(clock::now()).as_secs();
    let message = format!(
        "the config in force waits {left} s for its confirmation, so nothing else may change; \
         `qvpn-ctl confirm` keeps it, `qvpn-ctl confirm --undo` goes back at once"
    );
    Err(ErrorReply::new(ErrorCode::Busy, message))
}

/// Applies the unconfirmed config.
///
/// # Errors
/// As a reload.
pub(crate) async fn start(
    daemon: &mut Daemon,
    within_s: u64,
    caller: &Caller,
) -> Result<Vec<String>, ErrorReply> {
    refuse_during(daemon)?;
    if !(1..=MAX_CONFIRM_S).contains(&within_s) {
        let message = format!("a config waits 1 to {MAX_CONFIRM_S} s for its confirmation, not {within_s} s");
        return Err(ErrorReply::new(ErrorCode::Failed, message));
    }
    let former = daemon.config.text.clone();
    let path = &daemon.config.path;
    let new =
        Config::load_as(path, &unconfirmed_path(path)).map_err(|errors| reload::config_refused(&errors))?;
    let words = reload::prepare(daemon, new, &reload::config_refused).await?.commit(daemon, caller).await?;
    let deadline = clock::now() + Duration::from_secs(within_s);
    tracing::info!("the config of {} is on trial for {within_s} s", caller.by);
    daemon.trial = Some(Trial { former, deadline });
    Ok(words)
}

/// Keeps the config on trial.
///
/// # Errors
/// If there is none.
pub(crate) fn confirm(daemon: &mut Daemon) -> Result<(), ErrorReply> {
    daemon.trial.take().map(drop).ok_or_else(no_trial)
}

/// Restores the former config.
///
/// # Errors
/// If no config is on trial, or the former one can't be used any more. The one on trial then stays.
pub(crate) async fn go_back(daemon: &mut Daemon, caller: &Caller) -> Result<Vec<String>, ErrorReply> {
    let former = daemon.trial.as_ref().ok_or_else(no_trial)?.former.clone();
    let former =
        Config::parse(&daemon.config.path, &former).map_err(|errors| reload::config_refused(&errors))?;
    let words =
        reload::prepare(daemon, former, &reload::config_refused).await?.commit(daemon, caller).await?;
    daemon.trial = None;
    daemon.events.emit(EventKind::ConfigReverted { caller: caller.clone() });
    Ok(words)
}

/// Handles a trial that nobody confirmed in time.
pub(crate) async fn expired(daemon: &mut Daemon) {
    let Err(error) = go_back(daemon, &caller::named("timeout")).await else { return };
    let seconds = RETRY_INTERVAL.as_secs();
    tracing::error!(
        "the unconfirmed config stays in force, since the former one can't be used: {error}; the next \
         try is in {seconds} s"
    );
    error.details.iter().for_each(|line| tracing::error!("the former config: {line}"));
    if let Some(trial) = &mut daemon.trial {
        trial.deadline = clock::now() + RETRY_INTERVAL;
    }
}

fn no_trial() -> ErrorReply {
    let message = "no config waits for a confirmation: it was confirmed already, or the former one is in \
                   force again; `qvpn-ctl events --kind config` says which";
    ErrorReply::new(ErrorCode::Failed, message)
}
