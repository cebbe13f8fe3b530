//! `block`: the fail-closed block without a daemon, for operators. A failure doesn't stop the rest, because
//! each missing block is a leak.

use std::path::Path;

use qvpn_api::Config;
use qvpn_api::config::{OnStop, PartialConfig};
use qvpn_net::{Changes, Guard, NetError, RoutePlan, Table};

use crate::dirs::configs;
use crate::error::CtlError;
use crate::output;

pub(crate) fn block(file: Option<&Path>, config_dir: &Path, disown: bool) -> Result<(), CtlError> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => configs(config_dir)?,
    };
    with_guard(async |guard| {
        if disown {
            guard.disown();
        }
        let mut result = Ok(());
        for path in &files {
            if let Err(error) = block_one(guard, path, file.is_none()).await {
                // The last error ends the program; earlier ones are printed here.
                if let Err(earlier) = std::mem::replace(&mut result, Err(error)) {
                    output::print_error(&earlier);
                }
            }
        }
        result
    })
}

async fn block_one(guard: &mut Guard, file: &Path, skip_open: bool) -> Result<(), CtlError> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(errors) => {
            // No daemon will run on this config, so its traffic would leave in clear.
            block_partial(guard, file).await?;
            return Err(errors.into());
        }
    };
    let i = &config.interface;
    if skip_open && i.on_stop == OnStop::Open {
        return output::print(&format!(
            "{}: not blocked, because its config says on_stop = \"open\"\n",
            i.name
        ));
    }
    let plan = plan(&config)?;
    if plan.blocks().next().is_none() && i.table == Table::Off {
        return output::print(&format!(
            "{}: nothing is blocked, because its config says table = \"off\" and has no `protect`\n",
            i.name
        ));
    }
    report(&i.name, &set(guard, plan).await?, "blocked already")
}

/// Installs both layers. A running daemon owns its filter and keeps it in force.
async fn set(guard: &mut Guard, plan: RoutePlan) -> Result<Changes, CtlError> {
    match guard.set(plan).await {
        Err(NetError::FilterOwned { .. }) => Ok(Changes::default()),
        result => Ok(result?),
    }
}

/// Blocks the readable prefixes of a refused config. If its `[interface]` is unreadable, the defaults apply.
async fn block_partial(guard: &mut Guard, file: &Path) -> Result<(), CtlError> {
    let PartialConfig { interface, allowed_ips } = Config::load_partial(file);
    if allowed_ips.is_empty() {
        return Ok(());
    }
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let plan = match &interface {
        Some(i) => RoutePlan::new(&i.name, allowed_ips, i.table, i.fwmark, i.listen_port)
            .map(|plan| plan.with_local(i.local.clone()).with_protect(i.protect.iter().copied())),
        // Another config must not be used in its place.
        None => RoutePlan::new(&name, allowed_ips, Table::Auto, 0, 51820),
    };
    let plan = plan.map_err(|source| CtlError::Plan { file: file.to_owned(), source })?;
    let changes = set(guard, plan).await?;
    report(&name, &changes, "blocked already")?;
    output::note(&format!(
        "qvpn-ctl: {}: the config is refused; the readable part of its allowed_ips is blocked. After you \
         fix it, run `qvpn-ctl unblock` and `qvpn-ctl block --all`",
        file.display()
    ));
    Ok(())
}

/// Derives the routes of a config.
pub(crate) fn plan(config: &Config) -> Result<RoutePlan, CtlError> {
    RoutePlan::of(config).map_err(|source| CtlError::Plan { file: config.path.clone(), source })
}

pub(crate) fn with_guard(work: impl AsyncFnOnce(&mut Guard) -> Result<(), CtlError>) -> Result<(), CtlError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    runtime.block_on(async {
        let mut guard = Guard::connect()?;
        if let Some(reason) = guard.without_filter() {
            output::note(&format!("qvpn-ctl: warning: {reason}"));
        }
        work(&mut guard).await
    })
}

pub(crate) fn report(name: &str, changes: &Changes, nothing: &str) -> Result<(), CtlError> {
    for warning in &changes.warnings {
        output::note(&format!("qvpn-ctl: {name}: warning: {warning}"));
    }
    if changes.is_empty() {
        return output::print(&format!("{name}: {nothing}\n"));
    }
    let added = changes.added.iter().map(|what| format!("{name}: added {what}\n"));
    let replaced = changes.replaced.iter().map(|what| format!("{name}: replaced {what}\n"));
    let removed = changes.removed.iter().map(|what| format!("{name}: removed {what}\n"));
    output::print(&added.chain(replaced).chain(removed).collect::<String>())
}
