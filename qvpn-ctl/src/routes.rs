//! `block` and `unblock`: the fail-closed routes of a config, with no daemon running.

use std::path::{Path, PathBuf};

use qvpn_api::{Config, config};
use qvpn_net::{Changes, Net, NetError, RoutePlan, Table};

use crate::Failure;
use crate::check::refused;
use crate::keys::print;

const CONFIGS: &str = "/etc/qvpn";

pub(crate) fn block(file: Option<&Path>) -> Result<(), Failure> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => all_configs()?,
    };
    // A file with errors must not leave the others open.
    let mut failures = Vec::new();
    for file in files {
        if let Err(failure) = block_one(&file) {
            failures.push(failure);
        }
    }
    match failures.iter().map(|f| f.code).max() {
        None => Ok(()),
        Some(code) => {
            let text = failures.into_iter().map(|f| f.text).collect::<Vec<_>>().join("\n");
            Err(Failure { code, text })
        }
    }
}

fn block_one(file: &Path) -> Result<(), Failure> {
    let plan = plan(&Config::load(file).map_err(refused)?)?;
    let changes = on_net(async |net| net.block(&plan).await)?;
    tell(plan.interface(), "blocked", &changes)
}

pub(crate) fn unblock(file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else {
        let changes = on_net(async |net| net.unblock_all().await)?;
        return tell("all tunnels", "unblocked", &changes);
    };
    let plan = plan(&Config::load(file).map_err(refused)?)?;
    let changes = on_net(async |net| net.unblock(&plan).await)?;
    tell(plan.interface(), "unblocked", &changes)
}

fn all_configs() -> Result<Vec<PathBuf>, Failure> {
    let entries =
        std::fs::read_dir(CONFIGS).map_err(|e| Failure::new(format!("cannot read {CONFIGS}: {e}")))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    Ok(files)
}

fn plan(config: &Config) -> Result<RoutePlan, Failure> {
    let interface = &config.interface;
    let table = match interface.table {
        config::Table::Auto => Table::Auto,
        config::Table::Off => Table::Off,
        config::Table::Id(number) => Table::Number(number),
    };
    let allowed = config.peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied());
    RoutePlan::new(&interface.name, allowed, table, interface.fwmark, interface.listen_port)
        .map_err(|e| Failure::new(e.to_string()))
}

fn on_net(work: impl AsyncFnOnce(&Net) -> Result<Changes, NetError>) -> Result<Changes, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(e.to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed(&e))?;
    runtime.block_on(async {
        let net = Net::connect().map_err(|e| failed(&e))?;
        work(&net).await.map_err(|e| failed(&e))
    })
}

fn tell(what: &str, done: &str, changes: &Changes) -> Result<(), Failure> {
    for warning in &changes.warnings {
        eprintln!("warning: {warning}");
    }
    let lines = changes
        .added
        .iter()
        .map(|r| format!("  + {r}"))
        .chain(changes.removed.iter().map(|r| format!("  - {r}")));
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() {
        print(&format!("{what}: {done} already"))
    } else {
        print(&format!("{what}: {done}\n{}", lines.join("\n")))
    }
}
