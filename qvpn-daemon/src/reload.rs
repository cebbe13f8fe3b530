//! Reads the config and says what of it can be taken over without a restart. A config that is refused changes nothing.

use std::path::Path;
use std::sync::Arc;

use qvpn_api::config::Peer;
use qvpn_api::{Config, ConfigErrors};

use crate::peers::Psks;

/// Reads the config at `path` and looks at all files that it names.
///
/// # Errors
/// All that is wrong with it.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigErrors> {
    checked(Config::load(path)?)
}

/// Looks at all files that `config` names.
///
/// # Errors
/// All that is wrong with them.
pub(crate) fn checked(config: Config) -> Result<Config, ConfigErrors> {
    config.check_files()?;
    // Another namespace's config may lie in the same folder, so the daemon only warns; in one namespace the kernel refuses.
    if let Err(shared) = config.check_neighbours(&config.neighbours()) {
        tracing::warn!("{shared}");
    }
    Ok(config)
}

/// Reads the pre-shared keys of all peers, in their order.
///
/// # Errors
/// All files that can't be used.
pub(crate) fn read_psks(config: &Config) -> Result<Psks, ConfigErrors> {
    let mut psks = Psks::new();
    let mut errors: Option<ConfigErrors> = None;
    for peer in &config.peers {
        match config.read_psk(peer) {
            Ok(psk) => psks.push(psk.map(Arc::new)),
            Err(error) => {
                errors = Some(match errors.take() {
                    Some(before) => before.and(error),
                    None => error,
                })
            }
        }
    }
    errors.map_or(Ok(psks), Err)
}

/// What can't be changed while the daemon runs, one line each.
pub(crate) fn refused(old: &Config, new: &Config) -> Vec<String> {
    let (a, b) = (&old.interface, &new.interface);
    let mut refused = Vec::new();
    let mut check = |same: bool, what: String| {
        if !same {
            refused.push(format!("{what}; restart the daemon for that, or write the former value"));
        }
    };
    check(a.name == b.name, format!("[interface] name goes from {} to {}", a.name, b.name));
    check(
        a.private_key_file == b.private_key_file,
        format!(
            "private_key_file goes from {} to {}",
            a.private_key_file.display(),
            b.private_key_file.display()
        ),
    );
    check(
        a.listen_port == b.listen_port,
        format!("listen_port goes from {} to {}", a.listen_port, b.listen_port),
    );
    check(a.lanes == b.lanes, format!("lanes goes from {} to {}", a.lanes, b.lanes));
    check(a.dscp == b.dscp, "dscp changes".to_owned());
    refused
}

/// What differs, in words.
pub(crate) fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changes = Vec::new();
    let (a, b) = (&old.interface, &new.interface);
    for (same, what) in [
        (a.address == b.address, "address"),
        (a.mtu == b.mtu, "mtu"),
        (a.suite == b.suite, "suite"),
        (a.rekey_interval == b.rekey_interval, "rekey_interval"),
        (a.table == b.table, "table"),
        (a.fwmark == b.fwmark, "fwmark"),
        (a.on_stop == b.on_stop, "on_stop"),
        (a.metrics_listen == b.metrics_listen, "metrics_listen"),
        (a.log_level == b.log_level, "log_level"),
    ] {
        if !same {
            changes.push(format!("[interface] {what} changed"));
        }
    }
    if old.kms != new.kms {
        changes.push("[kms] changed".to_owned());
    }
    let find =
        |config: &Config, peer: &Peer| config.peers.iter().find(|p| p.public_key == peer.public_key).cloned();
    for peer in &old.peers {
        match find(new, peer) {
            None => changes.push(format!("peer {} removed", peer.name)),
            Some(now) if now.name != peer.name => {
                changes.push(format!("peer {} is now called {}", peer.name, now.name))
            }
            Some(now) if now != *peer => changes.push(format!("peer {} changed", peer.name)),
            Some(_) => {}
        }
    }
    for peer in new.peers.iter().filter(|peer| find(old, peer).is_none()) {
        changes.push(format!("peer {} added", peer.name));
    }
    changes
}

#[cfg(test)]
mod tests {
    use qvpn_identity::SecretIdentity;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    fn config(interface: &str, peers: &[(&str, u64, &str)]) -> Config {
        let mut text = format!(
            "[interface]\nname = \"qvpn0\"\nprivate_key_file = \"/k\"\naddress = [\"10.77.0.1/30\"]\n{interface}\n"
        );
        for (name, seed, rest) in peers {
            let key = SecretIdentity::generate(&mut ChaCha20Rng::seed_from_u64(*seed));
            let key = key.public();
            text += &format!(
                "[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nqkd = \"off\"\nallowed_ips = [\"10.{seed}.0.0/16\"]\n{rest}\n"
            );
        }
        Config::parse(Path::new("/etc/qvpn/qvpn0.toml"), &text).unwrap()
    }

    #[test]
    fn only_what_differs_is_named() {
        let old = config("listen_port = 1", &[("b", 2, ""), ("c", 3, ""), ("d", 4, "")]);
        assert!(changes(&old, &old.clone()).is_empty());
        let new = config(
            "listen_port = 1\nmtu = 1400",
            &[("bb", 2, ""), ("c", 3, "persistent_keepalive = \"25s\""), ("e", 5, "")],
        );
        assert_eq!(
            changes(&old, &new),
            [
                "[interface] mtu changed",
                "peer b is now called bb",
                "peer c changed",
                "peer d removed",
                "peer e added"
            ]
        );
        assert!(refused(&old, &new).is_empty());
    }

    #[test]
    fn what_needs_a_restart_is_refused_in_words() {
        let old = config("listen_port = 1", &[]);
        let new = config("listen_port = 2\nlanes = 2", &[]);
        let refused = refused(&old, &new);
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(refused[0].contains("listen_port goes from 1 to 2; restart the daemon"));
        assert!(refused[1].contains("lanes goes from 1 to 2"));
        assert!(super::refused(&old, &old.clone()).is_empty());
    }
}
