//! Checks the daemon of a config, and the certificates that it uses with KMEs.

use qvpn_api::Config;
use qvpn_api::config::KmeAccess;
use qvpn_api::control::{Reply, Request};

use super::finding::Finding;
use super::machine;
use crate::client::Client;
use crate::dirs::Dirs;
use crate::error::CtlError;
use crate::units::duration;

/// A certificate that ends sooner must be renewed, in seconds.
const RENEW_BEFORE_SECONDS: i64 = 30 * 86_400;

pub(super) fn look(dirs: &Dirs, config: &Config) -> Vec<Finding> {
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

fn certificates(config: &Config) -> Vec<Finding> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let mut findings = Vec::new();
    for kme in config.kms.iter().flat_map(|kms| &kms.kmes) {
        let (KmeAccess::Etsi014(server) | KmeAccess::Skip(server)) = &kme.access else { continue };
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
