//! `reload`: applies the config file, or prints what that would change.

use std::path::Path;

use qvpn_api::config::KeyChange;
use qvpn_api::control::{Reply, Request};

use crate::client::Client;
use crate::error::CtlError;
use crate::output::{self, clean};

pub(crate) fn reload(dir: &Path, interface: &str) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::Reload)? {
        Reply::Reload { changes, kept } => {
            output::print(&changed(&changes))?;
            note_kept(interface, &kept);
            Ok(())
        }
        _ => Err(client.unexpected()),
    }
}

/// Prints the changes, one line each.
pub(crate) fn changed(changes: &[String]) -> String {
    match changes {
        [] => "nothing changed\n".to_owned(),
        changes => changes.iter().map(|change| format!("{}\n", clean(change))).collect(),
    }
}

/// Names the prefixes that stay blocked although the config no longer has them, and how to release them.
pub(crate) fn note_kept(interface: &str, kept: &[String]) {
    for prefix in kept {
        output::note(&format!("{prefix} stays blocked; `qvpn-ctl unblock {interface} {prefix}` releases it"));
    }
}

pub(crate) fn dry_run(dir: &Path, interface: &str) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    match client.ask(&Request::PlanReload)? {
        Reply::Plan { changes } => output::print(&plan(&changes)),
        _ => Err(client.unexpected()),
    }
}

/// Prints one line for each key, followed by what the change does to traffic.
fn plan(changes: &[KeyChange]) -> String {
    if changes.is_empty() {
        return "nothing would change\n".to_owned();
    }
    let mut text = String::new();
    for change in changes {
        text += &format!("{}\n", clean(&change.to_string()));
        if let Some(effect) = change.effect() {
            text += &format!("    {effect}\n");
        }
    }
    text + "nothing was changed; `qvpn-ctl reload` does it\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_values_and_effects_and_escapes_what_it_shows() {
        let change = |peer: Option<&str>, key: &str, from: Option<&str>, to: Option<&str>| KeyChange {
            peer: peer.map(str::to_owned),
            key: key.to_owned(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        let changes = [
            change(None, "interface.log_level", Some("info"), Some("debug")),
            change(Some("b\u{1b}[2J"), "qkd", Some("required"), Some("off")),
        ];
        let text = plan(&changes);
        assert!(text.starts_with("interface.log_level: info -> debug\npeer b"), "{text}");
        assert!(
            text.contains("qkd: required -> off\n    the next key with this peer has no QKD part\n"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert_eq!(plan(&[]), "nothing would change\n");
    }
}
