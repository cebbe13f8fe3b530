//! How a daemon asks the resident guard for its block: JSON lines over a Unix socket. While a connection is
//! open, the guard routes the tunnel's prefixes into the device that the daemon named; when it closes, only
//! the block stays.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use qvpn_api::config::{Local, Table};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::plan::RoutePlan;
use crate::tunnel_status::{Challenge, LayerState, TunnelStatus};

/// Bytes of the longest line: a plan with several ten thousand prefixes.
pub const MAX_LINE_BYTES: usize = 8 * 1024 * 1024;

/// Returns the guard's socket in the directory of the control sockets (whose names end in `.sock`).
#[must_use]
pub fn guard_socket(dir: &Path) -> PathBuf {
    dir.join("guard.socket")
}

/// Returns the network namespace of this process, as a number that two processes can compare.
///
/// # Errors
/// Without `/proc`.
pub fn network_namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/net")?.ino())
}

/// A request to the guard.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum GuardRequest {
    /// Puts this plan in force, replacing the previous one.
    Set {
        /// [`network_namespace`] of the daemon.
        netns: u64,
        /// The plan.
        plan: PlanText,
        /// Kept prefixes to release with it: those inside these prefixes.
        #[serde(default)]
        release: Vec<String>,
    },
    /// Releases what lies inside these prefixes and is in no config, or the whole block if there are no
    /// prefixes; for a tunnel whose daemon does not run.
    Unblock {
        /// [`network_namespace`] of the caller.
        netns: u64,
        /// The tunnel; all tunnels if absent.
        interface: Option<String>,
        /// The prefixes.
        prefixes: Vec<String>,
    },
    /// Reads the configs again, as SIGHUP does.
    Reload,
    /// Removes the block: the daemon stops under `on_stop = "open"`.
    Release,
}

/// The guard's answers, and its reports, which need no request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum GuardReply {
    /// The request is done; has the state of both layers.
    Done {
        /// What changed.
        changes: Vec<String>,
        /// The current state of the block.
        status: Option<StatusText>,
    },
    /// The request failed, at least in part.
    Failed {
        /// Why, in words.
        error: String,
    },
    /// Not a reply: another program interfered, or something was restored.
    Report {
        /// What other programs did, and the effect.
        challenges: Vec<(String, String)>,
        /// What was restored.
        restored: Vec<String>,
        /// The current state of the block.
        status: Option<StatusText>,
    },
}

/// A [`RoutePlan`] as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanText {
    interface: String,
    device: Option<u32>,
    /// `auto`, `off` or a number.
    table: String,
    fwmark: u32,
    ports: (u16, u16),
    kme_ports: Vec<u16>,
    allowed: Vec<(String, Option<u32>)>,
    /// Blocked like allowed IPs, but not routed into the tunnel.
    #[serde(default)]
    idle: Vec<String>,
    protect: Vec<String>,
    local: Vec<(String, String)>,
    /// Whether `local` has the remembered connected networks.
    #[serde(default)]
    connected: bool,
}

impl From<&RoutePlan> for PlanText {
    fn from(plan: &RoutePlan) -> Self {
        let text = |prefix: &IpNet| prefix.to_string();
        Self {
            interface: plan.interface().to_owned(),
            device: plan.device(),
            table: match plan.table() {
                Table::Auto => "auto".to_owned(),
                Table::Off => "off".to_owned(),
                Table::Id(number) => number.to_string(),
            },
            fwmark: plan.configured_fwmark(),
            ports: (*plan.ports().start(), *plan.ports().end()),
            kme_ports: plan.kme_ports().iter().copied().collect(),
            allowed: plan.routes().map(|route| (text(&route.prefix), route.mtu)).collect(),
            idle: plan.idle().iter().map(text).collect(),
            protect: plan.protect().iter().map(text).collect(),
            local: plan.local().iter().map(|local| (text(&local.prefix), local.device.clone())).collect(),
            connected: plan.is_connected(),
        }
    }
}

impl TryFrom<&PlanText> for RoutePlan {
    type Error = String;

    fn try_from(text: &PlanText) -> Result<Self, String> {
        let prefix = |text: &String| text.parse::<IpNet>().map_err(|error| format!("`{text}`: {error}"));
        let prefixes = |list: &[String]| list.iter().map(prefix).collect::<Result<Vec<_>, _>>();
        let table = match text.table.as_str() {
            "auto" => Table::Auto,
            "off" => Table::Off,
            number => Table::Id(number.parse().map_err(|error| format!("table `{number}`: {error}"))?),
        };
        let allowed: Vec<String> = text.allowed.iter().map(|(prefix, _)| prefix.clone()).collect();
        let allowed = prefixes(&allowed)?;
        let idle = prefixes(&text.idle)?;
        let all = allowed.iter().chain(&idle).copied();
        let plan = RoutePlan::new(&text.interface, all, table, text.fwmark, text.ports.0);
        let mut plan = plan
            .map_err(|error| error.to_string())?
            .with_idle(idle)
            .with_ports(text.ports.0..=text.ports.1, text.kme_ports.iter().copied())
            .with_protect(prefixes(&text.protect)?)
            .on_device(text.device);
        for (prefix, (_, mtu)) in allowed.iter().zip(&text.allowed) {
            if mtu.is_some() {
                plan = plan.with_mtu(&[*prefix], *mtu);
            }
        }
        let local =
            text.local.iter().map(|(net, device)| Ok(Local { prefix: prefix(net)?, device: device.clone() }));
        Ok(plan.with_local(local.collect::<Result<Vec<_>, String>>()?).with_connected(text.connected))
    }
}

/// A [`TunnelStatus`] as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusText {
    routes: String,
    filter: String,
    protected: Vec<String>,
    local: Vec<(String, String)>,
    dropped: Option<u64>,
    #[serde(default)]
    without_filter: Option<String>,
}

impl From<TunnelStatus> for StatusText {
    fn from(status: TunnelStatus) -> Self {
        Self {
            routes: status.routes.as_str().to_owned(),
            filter: status.filter.as_str().to_owned(),
            protected: status.protected.iter().map(ToString::to_string).collect(),
            local: status.local.into_iter().map(|(prefix, device)| (prefix.to_string(), device)).collect(),
            dropped: status.dropped,
            without_filter: status.without_filter,
        }
    }
}

impl From<StatusText> for TunnelStatus {
    fn from(text: StatusText) -> Self {
        let state = |word: &str| {
            let all = [LayerState::InForce, LayerState::Off];
            all.into_iter().find(|state| state.as_str() == word).unwrap_or(LayerState::Missing)
        };
        Self {
            routes: state(&text.routes),
            filter: state(&text.filter),
            protected: text.protected.iter().filter_map(|prefix| prefix.parse().ok()).collect(),
            local: text
                .local
                .into_iter()
                .filter_map(|(prefix, device)| Some((prefix.parse().ok()?, device)))
                .collect(),
            dropped: text.dropped,
            without_filter: text.without_filter,
        }
    }
}

/// A daemon's connection to the resident guard.
pub struct GuardClient {
    lines: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    netns: u64,
    /// The part of a line that has been received.
    partial: Vec<u8>,
    reports: Vec<GuardReply>,
}

impl GuardClient {
    /// Connects to the guard whose socket is in `dir`.
    ///
    /// # Errors
    /// If no guard runs.
    pub async fn connect(dir: &Path) -> io::Result<Self> {
        let netns = network_namespace()?;
        let (reader, writer) = UnixStream::connect(guard_socket(dir)).await?.into_split();
        let lines = BufReader::new(reader);
        Ok(Self { lines, writer, netns, partial: Vec::new(), reports: Vec::new() })
    }

    /// Asks the guard to put `plan` in force.
    ///
    /// # Errors
    /// If the connection ended. A refusal by the guard is its reply.
    pub async fn set(&mut self, plan: &RoutePlan) -> io::Result<GuardReply> {
        self.set_and_release(plan, &[]).await
    }

    /// As [`set`](Self::set); also releases what lies inside `release` and is not in `plan`.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn set_and_release(&mut self, plan: &RoutePlan, release: &[IpNet]) -> io::Result<GuardReply> {
        let release = release.iter().map(ToString::to_string).collect();
        self.request(&GuardRequest::Set { netns: self.netns, plan: plan.into(), release }).await
    }

    /// Asks the guard to release what no daemon holds; see [`GuardRequest::Unblock`].
    ///
    /// # Errors
    /// If the connection ended.
    pub async fn unblock(&mut self, interface: Option<&str>, prefixes: &[IpNet]) -> io::Result<GuardReply> {
        let interface = interface.map(str::to_owned);
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        self.request(&GuardRequest::Unblock { netns: self.netns, interface, prefixes }).await
    }

    /// Asks the guard to remove the block of the plan that was set.
    ///
    /// # Errors
    /// If the connection ended.
    pub async fn release(&mut self) -> io::Result<GuardReply> {
        self.request(&GuardRequest::Release).await
    }

    /// Waits for the next report. Cancel safe.
    ///
    /// # Errors
    /// If the connection ended.
    pub async fn report(&mut self) -> io::Result<GuardReply> {
        match self.reports.pop() {
            Some(report) => Ok(report),
            None => self.reply().await,
        }
    }

    /// Asks the guard to read the configs again.
    ///
    /// # Errors
    /// If the connection ended.
    pub async fn reload(&mut self) -> io::Result<GuardReply> {
        self.request(&GuardRequest::Reload).await
    }

    async fn request(&mut self, request: &GuardRequest) -> io::Result<GuardReply> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.writer.write_all(&line).await?;
        loop {
            match self.reply().await? {
                report @ GuardReply::Report { .. } => self.reports.insert(0, report),
                reply => return Ok(reply),
            }
        }
    }

    async fn reply(&mut self) -> io::Result<GuardReply> {
        // Keeps the received part if the future is dropped.
        self.lines.read_until(b'\n', &mut self.partial).await?;
        if !self.partial.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&std::mem::take(&mut self.partial))?)
    }
}

impl GuardReply {
    /// Makes a report of what happened to one tunnel.
    #[must_use]
    pub fn report(challenges: &[Challenge], restored: &[String], status: Option<TunnelStatus>) -> Self {
        Self::Report {
            challenges: challenges.iter().map(|c| (c.what.clone(), c.effect.clone())).collect(),
            restored: restored.to_vec(),
            status: status.map(StatusText::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_its_text() {
        let nets = |list: &[&str]| list.iter().map(|s| s.parse().unwrap()).collect::<Vec<IpNet>>();
        for table in [Table::Auto, Table::Off, Table::Id(77)] {
            let plan = RoutePlan::new("qvpn0", nets(&["10.20.0.0/16", "fd20::/64"]), table, 5, 51820)
                .unwrap()
                .with_ports(51820..=51823, [8443])
                .with_idle(nets(&["fd20::/64"]))
                .with_protect(nets(&["10.64.0.0/10"]))
                .with_local(vec![Local { prefix: "10.10.0.0/16".parse().unwrap(), device: "lan".into() }])
                .with_mtu(&nets(&["10.20.0.0/16"]), Some(1300))
                .on_device(Some(7));
            let text = serde_json::to_string(&PlanText::from(&plan)).unwrap();
            let back: PlanText = serde_json::from_str(&text).unwrap();
            assert_eq!(RoutePlan::try_from(&back).unwrap(), plan, "{text}");
        }
    }

    #[test]
    fn a_wrong_plan_is_refused_in_words() {
        let plan = RoutePlan::new("qvpn0", [], Table::Auto, 0, 1).unwrap();
        let good = PlanText::from(&plan);
        let bad = [
            PlanText { interface: "a/b".into(), ..good.clone() },
            PlanText { table: "main".into(), ..good.clone() },
            PlanText { protect: vec!["10.0.0.0/40".into()], ..good.clone() },
            PlanText { local: vec![("x".into(), "lan".into())], ..good.clone() },
        ];
        for text in bad {
            assert!(RoutePlan::try_from(&text).is_err(), "{text:?}");
        }
    }
}
