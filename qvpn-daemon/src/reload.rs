//! A reload: [`Change::prepare`] compares what two configs mean and refuses what a running daemon can't
//! change; [`Change::commit`] applies what differs.

use std::sync::Arc;

use qvpn_api::config::{self, KeyChange, Peer, QkdPolicy};
use qvpn_api::control::{ErrorCode, ErrorReply};
use qvpn_api::events::{Caller, EventKind};
use qvpn_api::{Config, ConfigErrors};
use qvpn_identity::SecretIdentity;
use qvpn_net::NetError;

use crate::access::Rules;
use crate::config_files::ConfigKeys;
use crate::daemon::Daemon;
use crate::events::Events;
use crate::kms_task::{Kmes, in_words};
use crate::metrics_listener::MetricsListener;
use crate::settings::{PeerSettings, Settings};
use crate::{clock, config_files, log, sandbox};

/// A config that can be put in force, with everything that was opened for it.
pub(crate) struct Change {
    config: Config,
    settings: Settings,
    local: Arc<SecretIdentity>,
    /// The changes in words.
    words: Vec<String>,
    kmes: Kmes,
    /// The mark that the lanes' sockets need.
    fwmark: u32,
    /// The new listener, if `metrics_listen` changed.
    metrics: Option<MetricsListener>,
}

/// Checks the files that `new` names, and opens everything that it needs. Nothing changes yet. `words` makes
/// the reply of a refused config.
///
/// # Errors
/// What the operator must change, as a reply to them.
pub(crate) async fn prepare(
    daemon: &Daemon,
    new: Config,
    words: &impl Fn(&ConfigErrors) -> ErrorReply,
) -> Result<Change, ErrorReply> {
    // The sandbox denies these files; this message is better than the system's.
    let outside = sandbox::denied_files(&new);
    if !outside.is_empty() {
        return Err(refused("the config names files that this daemon can no longer open", outside));
    }
    let new = config_files::check(new).map_err(|errors| words(&errors))?;
    Change::prepare(daemon, new).await
}

impl Change {
    /// Derives and opens everything that `new` needs. Nothing changes yet.
    ///
    /// # Errors
    /// What the operator must change, as a reply to them.
    async fn prepare(daemon: &Daemon, new: Config) -> Result<Self, ErrorReply> {
        let keys = ConfigKeys::read(&new).map_err(|errors| config_refused(&errors))?;
        let settings = Settings::derive(&new, &keys)
            .map_err(|error| refused("the config's routes can't work", vec![error.to_string()]))?;
        let mut words = compare((&daemon.config, &daemon.settings), (&new, &settings))
            .map_err(|details| refused("the config changes what can't be changed at run time", details))?;
        words.extend(daemon.peers.losing_their_key(&settings).into_iter().map(|name| {
            format!("peer {name} loses its key in use: traffic ends until it uses the other one")
        }));
        let fwmark = settings.routes.fwmark();
        let reporting = daemon.peers.kme_reporting();
        let kmes = Kmes::open(&settings.kmes, fwmark, &reporting, daemon.peers.kmes())
            .map_err(|error| refused("a KME can't be used", vec![in_words(&error)]))?;
        let metrics = match settings.metrics_listen == daemon.settings.metrics_listen {
            true => None,
            false => Some(
                MetricsListener::open(settings.metrics_listen, &daemon.requests)
                    .await
                    .map_err(|error| refused("the metrics can't be served", vec![error.to_string()]))?,
            ),
        };
        Ok(Self { config: new, settings, local: keys.local, words, kmes, fwmark, metrics })
    }

    /// Puts the config in force. Returns what changed, in words.
    ///
    /// # Errors
    /// If the kernel refuses something. The former config is in force then.
    pub(crate) async fn commit(
        self,
        daemon: &mut Daemon,
        caller: &Caller,
    ) -> Result<Vec<String>, ErrorReply> {
        let keys = self.keys(daemon);
        let former_mark = daemon.marks.mark();
        // Set the mark before the rules that match it: an unmarked datagram would go into the tunnel that it
        // carries.
        if self.fwmark != former_mark {
            daemon.marks.set(self.fwmark).map_err(|error| {
                let mark = self.fwmark;
                failed(&format!("the firewall mark {mark:#x} can't be set on the sockets: {error}"))
            })?;
        }
        if let Err(error) = apply_network(daemon, &self.settings).await {
            if daemon.marks.mark() != former_mark
                && let Err(error) = daemon.marks.set(former_mark)
            {
                tracing::warn!("can't restore the former firewall mark: {error}");
            }
            return Err(failed(&error.to_string()));
        }
        if let Some(metrics) = self.metrics {
            daemon.metrics = metrics;
        }
        log::configure(self.settings.log_level);
        if self.settings.access != daemon.settings.access {
            daemon.access.set(Rules::new(self.settings.access.as_ref()));
        }
        daemon.peers.reconfigure(&self.settings, &self.local, self.kmes, clock::now());
        daemon.audit.set_epochs(self.settings.audit_epochs);
        daemon.state.set_owner(&self.settings.fixed.interface, self.local.public());
        daemon.local = self.local;
        daemon.config = self.config;
        daemon.settings = self.settings;
        keys.into_iter().for_each(|change| report(change, caller, &daemon.events));
        daemon.events.emit(EventKind::ConfigReloaded { changes: self.words.clone() });
        Ok(self.words)
    }

    /// Returns each key that changes, with both values; for our private key the fingerprints, and for a
    /// pre-shared key only that it changes.
    pub(crate) fn keys(&self, daemon: &Daemon) -> Vec<KeyChange> {
        let mut keys = config::changes(&daemon.config, &self.config);
        if daemon.settings.public_key != self.settings.public_key {
            keys.push(KeyChange {
                peer: None,
                key: "interface.private_key".to_owned(),
                from: Some(daemon.settings.public_key.fingerprint()),
                to: Some(self.settings.public_key.fingerprint()),
            });
        }
        let changed = self.settings.peers.iter().filter(|peer| {
            let former = daemon.settings.peers.iter().find(|p| p.config.shares_key(&peer.config));
            former.is_some_and(|former| !former.same_psk(peer))
        });
        keys.extend(changed.map(|peer| KeyChange {
            peer: Some(peer.config.name.clone()),
            key: "preshared_key".to_owned(),
            from: None,
            to: Some("changed".to_owned()),
        }));
        keys
    }
}

/// Reports one changed key; a weaker policy is also reported as a warning.
fn report(change: KeyChange, caller: &Caller, events: &Events) {
    let strength = |word: &Option<String>| word.as_deref().and_then(QkdPolicy::from_name);
    if let (Some(peer), "qkd", Some(from), Some(to)) =
        (&change.peer, change.key.as_str(), strength(&change.from), strength(&change.to))
        && to < from
    {
        let (from, to) = (from.name().to_owned(), to.name().to_owned());
        let (caller, peer) = (caller.clone(), peer.clone());
        events.emit(EventKind::PolicyDegraded { caller, peer, from, to });
    }
    events.emit(EventKind::ConfigChanged { caller: caller.clone(), change });
}

/// Sets routes and device, or leaves both unchanged.
async fn apply_network(daemon: &mut Daemon, new: &Settings) -> Result<(), NetError> {
    daemon.routes.apply(&daemon.peers.with_mtus(new.routes.clone())).await?;
    if new.device == daemon.settings.device {
        return Ok(());
    }
    let result = daemon.routes.set_device(&new.device).await;
    if result.is_err() {
        let former = daemon.peers.with_mtus(daemon.settings.routes.clone());
        if let Err(error) = daemon.routes.apply(&former).await {
            tracing::error!("can't restore the former routes: {error}");
        }
    }
    result
}

/// The prefix of the keys of `[interface]` in a [`KeyChange`].
const INTERFACE: &str = "interface.";

fn restart_needed(change: &KeyChange) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "its default".to_owned());
    let key = change.key.strip_prefix(INTERFACE).unwrap_or(&change.key);
    let (from, to) = (value(&change.from), value(&change.to));
    format!("{key} goes from {from} to {to}; restart the daemon for that, or write the former value")
}

/// Returns what differs between two configs, in words.
///
/// # Errors
/// What can't be changed while the daemon runs, one line each.
fn compare(old: (&Config, &Settings), new: (&Config, &Settings)) -> Result<Vec<String>, Vec<String>> {
    let at_restart = config::changes_at_restart(old.0, new.0);
    let mut refusals: Vec<_> = at_restart.iter().map(restart_needed).collect();
    if old.0.access.is_some() != new.0.access.is_some() {
        // The mode of the socket is set when the socket is created.
        refusals.push("[access] is added or removed; restart the daemon for that".to_owned());
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let mut words = Vec::new();
    for change in config::changes(old.0, new.0) {
        words.extend(change.key.strip_prefix(INTERFACE).map(|key| format!("[interface] {key} changed")));
    }
    if old.1.public_key != new.1.public_key {
        let [from, to] = [old, new].map(|(_, settings)| settings.public_key.fingerprint());
        words.push(format!("the private key is another one: the fingerprint goes from {from} to {to}"));
    }
    if old.0.kms != new.0.kms {
        words.push("[kms] changed".to_owned());
    }
    if old.0.access != new.0.access {
        words.push("[access] changed".to_owned());
    }
    if old.0.audit_epochs != new.0.audit_epochs {
        words.push("[audit] changed".to_owned());
    }
    let switched = switched_peers(old.0, new.0);
    words.extend(switched.iter().map(|(peer, verb)| format!("peer {} {verb}", peer.name)));
    let key_is_switched = |peer: &&PeerSettings| switched.iter().any(|(p, _)| p.shares_key(&peer.config));
    let rest = |list: &[PeerSettings]| {
        list.iter().filter(|peer| !key_is_switched(peer)).cloned().collect::<Vec<_>>()
    };
    words.extend(peer_changes(&rest(&old.1.peers), &rest(&new.1.peers)));
    Ok(words)
}

/// Returns the peers that the new config disables or enables.
fn switched_peers<'c>(old: &'c Config, new: &'c Config) -> Vec<(&'c Peer, &'static str)> {
    let of = |config: &'c Config, peer: &Peer| config.peers.iter().find(|p| p.shares_key(peer));
    let verb = |peer: &Peer| match (of(old, peer), peer.disabled) {
        (Some(before), true) if before.disabled => (before != peer).then_some("changed"),
        (Some(_), true) => Some("disabled"),
        (Some(before), false) if before.disabled => Some("enabled"),
        // Disabled peers are not among the running ones.
        (None, true) => Some("added, disabled"),
        _ => None,
    };
    let gone = old.peers.iter().filter(|peer| peer.disabled && of(new, peer).is_none());
    let changed = new.peers.iter().filter_map(|peer| Some((peer, verb(peer)?)));
    changed.chain(gone.map(|peer| (peer, "removed"))).collect()
}

fn peer_changes(old: &[PeerSettings], new: &[PeerSettings]) -> Vec<String> {
    let find = |list: &'_ [PeerSettings], peer: &PeerSettings| {
        list.iter().find(|p| p.config.shares_key(&peer.config)).cloned()
    };
    let mut words = Vec::new();
    for peer in old {
        let name = &peer.config.name;
        match find(new, peer) {
            None => words.push(format!("peer {name} removed")),
            Some(now) if now.config.name != *name => {
                words.push(format!("peer {name} is now called {}", now.config.name));
            }
            Some(now) if now.config != peer.config || !now.same_psk(peer) => {
                words.push(format!("peer {name} changed"));
            }
            Some(_) => {}
        }
    }
    for peer in new.iter().filter(|peer| find(old, peer).is_none()) {
        words.push(format!("peer {} added", peer.config.name));
    }
    words
}

pub(crate) fn refused(message: &str, details: Vec<String>) -> ErrorReply {
    let message = format!("{message}; the former config stays in force");
    ErrorReply { code: ErrorCode::ConfigRefused, message, details }
}

pub(crate) fn config_refused(errors: &ConfigErrors) -> ErrorReply {
    refused("the config is refused", errors.to_string().lines().map(str::to_owned).collect())
}

fn failed(message: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::Failed, format!("{message}; the former config stays in force"))
}

#[cfg(test)]
mod tests;
