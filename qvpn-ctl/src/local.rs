//! `local = "connected"`: which networks are exempt and remembered; and `local accept`, the only way to add
//! one.

use std::net::IpAddr;
use std::path::Path;

use qvpn_api::Config;
use qvpn_api::config::{Local, networks_file, remember_local, remembered_local};
use qvpn_api::control::Request;
use qvpn_net::{GuardClient, IpNet, Net, RoutePlan};

use crate::client::Client;
use crate::dirs::{Dirs, configs};
use crate::error::CtlError;
use crate::output;

/// Returns `plan` with the remembered networks. The first time, these are the networks that this host is
/// connected to, except those that another host chose or that lead to the WAN.
pub(crate) async fn remembered(plan: RoutePlan, net: &Net, config_dir: &Path) -> RoutePlan {
    let name = plan.interface().to_owned();
    match remembered_local(&name) {
        Ok(Some(local)) => plan.with_local(local),
        Ok(None) => {
            let taken = take(&plan, net, config_dir).await;
            if taken.is_empty() {
                return plan.with_local(taken);
            }
            match remember_local(&name, &taken) {
                Ok(()) => {
                    let list: Vec<String> =
                        taken.iter().map(|local| format!("{} dev {}", local.prefix, local.device)).collect();
                    output::note(&format!(
                        "{name}: local = \"connected\" stands for {} from now on",
                        list.join(", ")
                    ));
                    plan.with_local(taken)
                }
                Err(error) => not_remembered(plan, &error),
            }
        }
        Err(error) => not_remembered(plan, &error),
    }
}

fn not_remembered(plan: RoutePlan, error: &std::io::Error) -> RoutePlan {
    let name = plan.interface();
    let file = networks_file(name);
    output::note(&format!(
        "qvpn-ctl: {name}: {}: {error}; networks of this site stay blocked",
        file.display()
    ));
    plan.with_local(Vec::new())
}

async fn take(plan: &RoutePlan, net: &Net, config_dir: &Path) -> Vec<Local> {
    let connected = match net.connected(&endpoints(plan.interface(), config_dir)).await {
        Ok(connected) => connected,
        Err(error) => {
            output::note(&format!("qvpn-ctl: {error}"));
            return Vec::new();
        }
    };
    // Uplinks have already been left out.
    let blocked = plan.blocked_networks(&connected).into_iter().filter(|(network, _)| !network.dynamic);
    blocked.map(|(network, _)| Local { prefix: network.prefix, device: network.device.clone() }).collect()
}

fn endpoints(interface: &str, config_dir: &Path) -> Vec<IpAddr> {
    let files = configs(config_dir).unwrap_or_default();
    let all = files.iter().filter_map(|file| Config::load(file).ok());
    let own = all.filter(|config| config.interface.name == interface);
    own.flat_map(|config| config.peers).filter_map(|peer| peer.endpoint?.ip()).collect()
}

/// Adds a network that this host is connected to.
pub(crate) fn accept(dirs: &Dirs, interface: &str, prefix: IpNet) -> Result<(), CtlError> {
    let config = Config::load(&dirs.config_dir.join(format!("{interface}.toml")))?;
    if !config.interface.local_connected {
        return Err(CtlError::LocalIsAList(config.path));
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    let endpoints = endpoints(interface, &dirs.config_dir);
    let connected = runtime.block_on(async { Net::connect()?.connected(&endpoints).await })?;
    let Some(network) = connected.iter().find(|n| n.prefix == prefix.trunc() && n.device != interface) else {
        return Err(CtlError::NotConnected(prefix));
    };
    if network.uplink || network.dynamic {
        output::note(&format!(
            "qvpn-ctl: warning: {} leads to the WAN, or another host chose its network",
            network.device
        ));
    }
    let file = networks_file(interface);
    let failed = |source| CtlError::State { file: file.clone(), source };
    let mut local = remembered_local(interface).map_err(failed)?.unwrap_or_default();
    let new = Local { prefix: network.prefix, device: network.device.clone() };
    if !local.contains(&new) {
        local.push(new);
        remember_local(interface, &local).map_err(failed)?;
    }
    runtime.block_on(async {
        if let Ok(mut guard) = GuardClient::connect(&dirs.socket_dir).await {
            // If no guard answers, it reads the file when it starts.
            let _ = guard.reload().await;
        }
    });
    if let Ok(mut client) = Client::connect(&dirs.socket_dir, interface) {
        client.ask(&Request::Reload)?;
    }
    output::print(&format!("{interface}: {} dev {} is local\n", network.prefix, network.device))
}
