//! `unblock`: releases a block. The process that keeps it in force must do that, since it would restore what
//! somebody else removes: first the daemon of the interface is asked, then the guard, and otherwise the
//! kernel directly.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use qvpn_api::Config;
use qvpn_api::control::{Reply, Request};
use qvpn_net::{Guard, GuardClient, GuardReply, IpNet};

use crate::client::{self, Client};
use crate::dirs::{Dirs, configs};
use crate::error::CtlError;
use crate::output;
use crate::routes::{plan, report, with_guard};

/// A config, given by its file or by the name of its interface.
pub(crate) struct Target {
    pub(crate) interface: String,
    pub(crate) file: PathBuf,
}

impl Target {
    pub(crate) fn of(text: &str, config_dir: &Path) -> Self {
        if !text.contains('/') && !text.ends_with(".toml") {
            let file = config_dir.join(format!("{text}.toml"));
            return Self { interface: text.to_owned(), file };
        }
        let file = PathBuf::from(text);
        let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // A refused config can be blocked as well.
        let interface = Config::load_partial(&file).interface.map_or_else(stem, |interface| interface.name);
        Self { interface, file }
    }
}

pub(crate) fn unblock(dirs: &Dirs, target: Option<&str>, prefixes: &[IpNet]) -> Result<(), CtlError> {
    let target = target.map(|text| Target::of(text, &dirs.config_dir));
    match &target {
        Some(target) if !prefixes.is_empty() => release_prefixes(dirs, target, prefixes),
        _ => release_block(dirs, target.as_ref()),
    }
}

/// Releases prefixes that stay blocked although the config no longer has them.
fn release_prefixes(dirs: &Dirs, target: &Target, prefixes: &[IpNet]) -> Result<(), CtlError> {
    let name = target.interface.as_str();
    match Client::connect(&dirs.socket_dir, name) {
        Ok(mut client) => {
            let prefixes = prefixes.iter().map(ToString::to_string).collect();
            return match client.ask(&Request::Unblock { prefixes })? {
                Reply::Unblocked { prefixes } => released(name, &prefixes),
                _ => Err(client.unexpected()),
            };
        }
        Err(CtlError::NotRunning { .. } | CtlError::Gone { .. }) => {}
        Err(error) => return Err(error),
    }
    if ask_guard(&dirs.socket_dir, Some(name), prefixes)? {
        return Ok(());
    }
    let config = Config::load(&target.file)?;
    refuse_configured(&dirs.config_dir, &config, prefixes)?;
    with_guard(async |guard| release_kept(guard, &config, prefixes).await)
}

/// Refuses prefixes that some config of the host has.
fn refuse_configured(config_dir: &Path, config: &Config, prefixes: &[IpNet]) -> Result<(), CtlError> {
    let others = configs(config_dir).unwrap_or_default();
    let others =
        others.iter().filter(|file| **file != config.path).filter_map(|file| Config::load(file).ok());
    for known in std::iter::once(config.clone()).chain(others) {
        let plan = plan(&known)?;
        if let Some(prefix) = plan.filtered().find(|prefix| prefixes.contains(prefix)) {
            return Err(CtlError::StillConfigured { prefix, file: known.path });
        }
    }
    Ok(())
}

async fn release_kept(guard: &mut Guard, config: &Config, prefixes: &[IpNet]) -> Result<(), CtlError> {
    let plan = plan(config)?;
    let configured: BTreeSet<IpNet> = plan.filtered().collect();
    let blocked = guard.net().blocked(&plan).await?;
    let kept: Vec<IpNet> = blocked.into_iter().filter(|prefix| !configured.contains(prefix)).collect();
    let inside = |kept: &&IpNet| prefixes.iter().any(|prefix| prefix.contains(*kept));
    let chosen: Vec<IpNet> = kept.iter().filter(inside).copied().collect();
    if chosen.is_empty() {
        return Err(CtlError::NothingKept(kept));
    }
    // First read the block as it is, so that the second step removes nothing but what is released.
    let present = plan.with_protect(kept);
    guard.set(present.clone()).await?;
    guard.set(present.releasing(&chosen)).await?;
    released(&config.interface.name, &chosen.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// Releases the whole block of one interface or of all.
fn release_block(dirs: &Dirs, target: Option<&Target>) -> Result<(), CtlError> {
    let name = target.map(|target| target.interface.as_str());
    let answers = |name: &String| Client::connect(&dirs.socket_dir, name).is_ok();
    let running = client::running(&dirs.socket_dir).unwrap_or_default();
    let running: Vec<String> =
        running.into_iter().filter(|one| name.is_none_or(|name| one == name) && answers(one)).collect();
    if !running.is_empty() {
        return Err(CtlError::DaemonBlocks(running));
    }
    let plan = target.map(|target| plan(&Config::load(&target.file)?)).transpose()?;
    let asked = ask_guard(&dirs.socket_dir, name, &[])?;
    if asked && name.is_some() {
        return Ok(());
    }
    with_guard(async |guard| {
        let changes = match &plan {
            Some(plan) => guard.release(plan).await?,
            None => guard.release_all().await?,
        };
        if asked && changes.is_empty() {
            return Ok(());
        }
        report(name.unwrap_or("all interfaces"), &changes, "nothing was blocked")
    })
}

/// Asks the resident guard; returns `false` if none runs here.
fn ask_guard(socket_dir: &Path, name: Option<&str>, prefixes: &[IpNet]) -> Result<bool, CtlError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    runtime.block_on(async {
        let Ok(mut guard) = GuardClient::connect(socket_dir).await else { return Ok(false) };
        match guard.unblock(name, prefixes).await {
            Ok(GuardReply::Done { changes, .. }) => {
                let about = name.unwrap_or("all interfaces");
                if changes.is_empty() {
                    output::print(&format!("{about}: nothing was blocked\n"))?;
                }
                output::print(
                    &changes.iter().map(|what| format!("{about}: removed {what}\n")).collect::<String>(),
                )?;
                if prefixes.is_empty() {
                    output::note("qvpn-guard blocks it again when it is reloaded or restarted");
                }
                Ok(true)
            }
            Ok(GuardReply::Failed { error }) => Err(qvpn_net::NetError::Guard(error).into()),
            Ok(GuardReply::Report { .. }) | Err(_) => Ok(false),
        }
    })
}

fn released(name: &str, prefixes: &[String]) -> Result<(), CtlError> {
    let line = |prefix: &String| format!("{name}: {} is no longer blocked\n", output::clean(prefix));
    output::print(&prefixes.iter().map(line).collect::<String>())
}
