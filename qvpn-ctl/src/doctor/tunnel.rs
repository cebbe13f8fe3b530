//! Checks the daemon of a config, and the certificates that it uses with KMEs.

use std::collections::BTreeMap;

use qvpn_api::Config;
use qvpn_api::control::{Reply, Request};
use qvpn_api::status::{InterfaceStatus, KmeState, KmeStatus, PeerState, PeerStatus};

use super::finding::Finding;
use super::machine;
use crate::advice::advice;
use crate::client::Client;
use crate::dirs::Dirs;
use crate::error::CtlError;
use crate::interface_text::audit_text;
use crate::output::Tone;
use crate::render::{block_text, device_text, unresolved};
use crate::units::duration;

/// A certificate that expires within this time must be renewed, in seconds.
const RENEW_BEFORE_SECONDS: i64 = 30 * 86_400;

/// The maximum number of names of a group that are listed.
const MAX_NAMES: usize = 5;

pub(super) fn findings(dirs: &Dirs, config: &Config) -> Vec<Finding> {
    let mut findings = daemon(dirs, config);
    findings.extend(certificates(config));
    findings
}

fn daemon(dirs: &Dirs, config: &Config) -> Vec<Finding> {
    let name = &config.interface.name;
    let restart = format!("systemctl restart qvpn@{name}");
    let asked = Client::connect(&dirs.socket_dir, name).and_then(|mut client| client.ask(&Request::Version));
    match asked {
        Ok(Reply::Version { daemon, pid, .. }) => {
            let mut findings = vec![if daemon == env!("CARGO_PKG_VERSION") {
                Finding::ok("daemon", format!("it runs, version {daemon}, process {pid}"))
            } else {
                let ours = env!("CARGO_PKG_VERSION");
                Finding::warning(
                    "daemon",
                    format!("it is of version {daemon}, and this program of {ours}"),
                    restart,
                )
            }];
            findings.extend(machine::process(pid, name));
            findings.extend(state(dirs, name));
            findings
        }
        Ok(_) => vec![Finding::bad("daemon", "its reply doesn't belong to the request", restart)],
        Err(error) => {
            let fix = match &error {
                CtlError::NotRunning { .. } => format!("systemctl enable --now qvpn@{name}"),
                CtlError::NotPermitted(_) => format!("sudo qvpn-ctl doctor {name}"),
                CtlError::Foreign { path, .. } => {
                    format!("ss -xlp | grep {} # and stop what is there", path.display())
                }
                _ => restart,
            };
            vec![Finding::bad("daemon", error.to_string(), fix)]
        }
    }
}

/// Reports the peers and KMEs as the daemon sees them, grouped by cause.
fn state(dirs: &Dirs, name: &str) -> Vec<Finding> {
    let asked = Client::connect(&dirs.socket_dir, name).and_then(|mut client| client.ask(&Request::Show));
    match asked {
        Ok(Reply::Show(status)) => {
            let all = |i| [device(i), block(i), audit(i), peers(i), routes(i), kmes(i)].concat();
            status.interfaces.iter().flat_map(all).collect()
        }
        Ok(_) => Vec::new(),
        Err(error) => vec![Finding::unknown("peers", error.to_string(), format!("qvpn-ctl show {name}"))],
    }
}

fn device(i: &InterfaceStatus) -> Vec<Finding> {
    let name = &i.name;
    let Some(device) = &i.device else { return Vec::new() };
    let found = device_text(device, name).map(|(text, tone)| (format!("the tunnel's device: {text}"), tone));
    vec![match found {
        None => Finding::ok("device", format!("{name} is there, is up and has its addresses")),
        Some((text, Tone::Bad)) => Finding::bad("device", text, format!("systemctl restart qvpn@{name}")),
        // The daemon restores the name once it is free.
        Some((text, _)) => Finding::warning(
            "device",
            text,
            format!("ip link set dev {name} down && ip link set dev {name} name {}-old", clipped(name)),
        ),
    }]
}

/// Returns as much of `name` as leaves room for a suffix of four bytes.
fn clipped(name: &str) -> &str {
    (0..=11).rev().find_map(|end| name.get(..end)).unwrap_or_default()
}

fn audit(i: &InterfaceStatus) -> Vec<Finding> {
    let Some(audit) = &i.audit else { return Vec::new() };
    vec![match audit_text(audit) {
        None => {
            let text = "no audit log is set up, so who changed what is in the journal alone";
            Finding::warning("audit", text, format!("qvpn-ctl audit setup {}", i.name))
        }
        Some((text, Tone::Plain)) => Finding::ok("audit", format!("the audit log is written: {text}")),
        Some((text, Tone::Bad)) => {
            Finding::bad("audit", format!("the audit log is {text}"), format!("df {}", qvpn_audit::LOG_DIR))
        }
        Some((text, _)) => Finding::warning(
            "audit",
            format!("the audit log has {text}"),
            format!("df {}", qvpn_audit::LOG_DIR),
        ),
    }]
}

fn block(i: &InterfaceStatus) -> Vec<Finding> {
    let Some(guard) = i.guard.as_ref().filter(|guard| !guard.protected.is_empty()) else { return Vec::new() };
    let (text, tone) = block_text(guard);
    let fix = format!("journalctl -u qvpn-guard -u qvpn@{} # it is tried again each second", i.name);
    vec![match tone {
        Tone::Bad => Finding::bad("guard", text, fix),
        _ => Finding::ok("guard", text),
    }]
}

fn peers(i: &InterfaceStatus) -> Vec<Finding> {
    let up = i.peers.iter().filter(|p| p.state == PeerState::Up).count();
    let mut causes: BTreeMap<(PeerState, String), Vec<&PeerStatus>> = BTreeMap::new();
    for p in i.peers.iter().filter(|p| p.state != PeerState::Up && !p.state.is_set_aside()) {
        let cause = p.reason.clone().or_else(|| advice(p, i)).unwrap_or_default();
        causes.entry((p.state, cause)).or_default().push(p);
    }
    let mut findings = Vec::new();
    if causes.is_empty() && !i.peers.is_empty() {
        findings.push(Finding::ok("peers", format!("{up} of {} peers are up", i.peers.len())));
    }
    for ((state, cause), peers) in causes {
        let names: Vec<&str> = peers.iter().take(MAX_NAMES).map(|p| p.name.as_str()).collect();
        let more = peers.len().saturating_sub(names.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let names = names.join(", ");
        let text = format!(
            "{} of {} peers {state}: {names}{more}: {cause}",
            peers.len(),
            i.peers.len(),
            state = state.as_str()
        );
        let first = peers.first().map(|p| p.name.clone()).unwrap_or_default();
        let advice = peers.first().and_then(|p| advice(p, i)).map(|advice| format!(" # {advice}"));
        let fix = format!("qvpn-ctl show {} --peer {first}{}", i.name, advice.unwrap_or_default());
        findings.push(match state {
            PeerState::Degraded => Finding::warning("peers", text, fix),
            _ => Finding::bad("peers", text, fix),
        });
    }
    findings
}

/// Reports, under `routes = "kernel"`, which routes lead to which peer, and which to none.
fn routes(i: &InterfaceStatus) -> Vec<Finding> {
    let Some(routing) = &i.routing else { return Vec::new() };
    let table = if routing.table == 254 { "main".to_owned() } else { routing.table.to_string() };
    let show = format!("ip route show table {table} dev {0}; ip -6 route show table {table} dev {0}", i.name);
    let mut findings = Vec::new();
    if let Some(error) = &routing.error {
        findings.push(Finding::bad("routes", error, format!("systemctl restart qvpn@{}", i.name)));
    }
    if let Some(unresolved) = unresolved(routing) {
        let text = format!(
            "{} of {} kernel routes lead to no peer, and their packets are dropped: {unresolved}",
            routing.unresolved_routes, routing.routes
        );
        let fix = format!("{show} # and give each next hop to a peer's `tunnel_address`");
        findings.push(Finding::bad("routes", text, fix));
    }
    let idle: Vec<&str> =
        routing.peers.iter().filter(|peer| peer.routes == 0).map(|peer| peer.peer.as_str()).collect();
    if !idle.is_empty() {
        let names = idle.iter().take(MAX_NAMES).copied().collect::<Vec<_>>().join(", ");
        let text = format!("no kernel route has a next hop of {} peers: {names}", idle.len());
        findings.push(Finding::warning("routes", text, show));
    } else if findings.is_empty() {
        let text = format!("{} kernel routes of table {table}, each leads to a peer", routing.routes);
        findings.push(Finding::ok("routes", text));
    }
    findings
}

fn kmes(i: &InterfaceStatus) -> Vec<Finding> {
    let of = |kme: &KmeStatus| {
        let fix = format!("qvpn-ctl kms check --no-take /etc/qvpn/{}.toml", i.name);
        match kme.state {
            Some(KmeState::Up) => Finding::ok("kme", format!("KME {} works", kme.name)),
            Some(KmeState::Down) => {
                let error = kme.last_error.as_deref().unwrap_or("it doesn't work");
                Finding::bad("kme", format!("KME {}: {error}", kme.name), fix)
            }
            None => Finding::warning("kme", format!("KME {} was not asked yet", kme.name), fix),
        }
    };
    i.kmes.iter().map(of).collect()
}

fn certificates(config: &Config) -> Vec<Finding> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let mut findings = Vec::new();
    for kme in config.kms.iter().flat_map(|kms| &kms.kmes) {
        let Some(server) = kme.server() else { continue };
        let open = match kms_client::Source::open(kme, 0) {
            Ok(open) => open,
            Err(error) => {
                let fix = format!("qvpn-ctl kms check --no-take {}", config.path.display());
                findings.push(Finding::bad(
                    "certificate",
                    format!("KME {}: {error}; {}", kme.name, error.advice()),
                    fix,
                ));
                continue;
            }
        };
        let certificates = open.certificates();
        for (file, end) in
            [(&server.cert_file, certificates.own_not_after), (&server.ca_file, certificates.ca_not_after)]
        {
            let Some(end) = end else { continue };
            let left = end.saturating_sub(now);
            let file = file.display();
            let seconds = std::time::Duration::from_secs(left.unsigned_abs()).as_secs_f64();
            let fix = format!(
                "openssl x509 -noout -subject -enddate -in {file} # renew it; the daemon takes the new \
                 file by itself"
            );
            findings.push(match left {
                ..=0 => Finding::bad("certificate", format!("{file} ended {} ago", duration(seconds)), fix),
                1..RENEW_BEFORE_SECONDS => {
                    Finding::warning("certificate", format!("{file} ends in {}", duration(seconds)), fix)
                }
                _ => Finding::ok("certificate", format!("{file} ends in {}", duration(seconds))),
            });
        }
    }
    findings
}
