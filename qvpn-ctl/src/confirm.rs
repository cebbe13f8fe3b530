//! `reload --confirm` and `confirm`: a config on trial. Its text moves to a file beside the config file,
//! which holds the former text until the new one is confirmed, so that a crash, a restart or a reboot
//! restores the former config.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qvpn_api::config::unconfirmed_path;
use qvpn_api::control::{Reply, Request};

use crate::client::Client;
use crate::error::CtlError;
use crate::{config_file, output, reload};

/// The config that the daemon runs.
struct Running {
    path: PathBuf,
    text: String,
    confirm_in_s: Option<u64>,
}

fn running(client: &mut Client) -> Result<Running, CtlError> {
    match client.ask(&Request::Config)? {
        Reply::Config { path, text, confirm_in_s } => Ok(Running { path, text, confirm_in_s }),
        _ => Err(client.unexpected()),
    }
}

/// Applies the config file for `within`.
pub(crate) fn try_config(dir: &Path, interface: &str, within: Duration) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    let former = running(&mut client)?;
    let failed = |source| CtlError::Save { file: former.path.clone(), source };
    // If it is a symbolic link, its target changes.
    let file = fs::canonicalize(&former.path).map_err(failed)?;
    let lock = File::open(&file).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let new = fs::read_to_string(&file).map_err(failed)?;
    // The daemon refuses a bad file, and any file while another one is on trial, before anything is written.
    let Reply::Plan { changes } = client.ask(&Request::PlanReload)? else { return Err(client.unexpected()) };
    if changes.is_empty() {
        return output::print("nothing changed, so there is nothing to confirm\n");
    }
    let waiting = unconfirmed_path(&former.path);
    config_file::replace(&waiting, &new, &lock).map_err(failed)?;
    config_file::replace(&file, &former.text, &lock).map_err(failed)?;
    let within_s = within.as_secs();
    let changes = match client.ask(&Request::TryConfig { within_s }) {
        Ok(Reply::Reload { changes, .. }) => changes,
        other => {
            config_file::replace(&file, &new, &lock).map_err(failed)?;
            let _ = fs::remove_file(&waiting);
            return Err(other.err().unwrap_or_else(|| client.unexpected()));
        }
    };
    output::print(&reload::changed(&changes))?;
    output::note(&format!(
        "{} is in force for {}; `qvpn-ctl confirm {interface}` keeps it, else the former config comes \
         back, which is in {} until then",
        waiting.display(),
        humantime::format_duration(Duration::from_secs(within_s)),
        file.display(),
    ));
    Ok(())
}

/// Keeps the config on trial, also in its file.
pub(crate) fn confirm(dir: &Path, interface: &str) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    let new = running(&mut client)?;
    let failed = |source| CtlError::Save { file: new.path.clone(), source };
    if new.confirm_in_s.is_none() {
        // The daemon's answer says why.
        return confirmed(&mut client);
    }
    let file = fs::canonicalize(&new.path).map_err(failed)?;
    let lock = File::open(&file).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let former = fs::read_to_string(&file).map_err(failed)?;
    // Of a config that includes files, the config's own text is in the file of the one on trial.
    let kept = match fs::read_to_string(unconfirmed_path(&new.path)) {
        Ok(text) if text != new.text && !text.is_empty() => text,
        _ => new.text.clone(),
    };
    config_file::replace(&file, &kept, &lock).map_err(failed)?;
    if let Err(error) = confirmed(&mut client) {
        // Another session was faster, or the time has run out.
        let now = running(&mut client)?;
        if now.text != new.text {
            config_file::replace(&file, &former, &lock).map_err(failed)?;
        }
        return Err(error);
    }
    let _ = fs::remove_file(unconfirmed_path(&new.path));
    output::print(&format!("confirmed, and saved in {}\n", file.display()))
}

fn confirmed(client: &mut Client) -> Result<(), CtlError> {
    match client.ask(&Request::Confirm)? {
        Reply::Confirmed => Ok(()),
        _ => Err(client.unexpected()),
    }
}

/// Restores the former config at once.
pub(crate) fn undo(dir: &Path, interface: &str) -> Result<(), CtlError> {
    let mut client = Client::connect(dir, interface)?;
    let trial = running(&mut client)?;
    let Reply::Reload { changes, .. } = client.ask(&Request::GoBack)? else {
        return Err(client.unexpected());
    };
    output::print(&reload::changed(&changes))?;
    let waiting = unconfirmed_path(&trial.path);
    output::note(&format!("the former config is in force; the other one is still in {}", waiting.display()));
    Ok(())
}
