//! The states of the config, of the audit log and of a gateway of a pair in words.

use qvpn_api::status::{AuditStatus, ConfigStatus, GatewayStatus};

use crate::output::Tone;
use crate::units::{count, duration};

/// The audit log, unless none is set up.
pub(crate) fn audit_text(audit: &AuditStatus) -> Option<(String, Tone)> {
    let lost = match audit.lost {
        0 => String::new(),
        n => format!("; {n} records were lost"),
    };
    match (audit.state.as_str(), &audit.reason) {
        ("on", _) => {
            let lines = audit.next_line.map_or_else(|| "written".to_owned(), |n| format!("{n} lines"));
            Some((format!("{lines}{lost}"), if lost.is_empty() { Tone::Plain } else { Tone::Warn }))
        }
        ("off", _) => None,
        (_, reason) => Some((format!("not written: {}{lost}", reason.as_deref().unwrap_or("?")), Tone::Bad)),
    }
}

/// The config's hash, and when the former one comes back.
pub(crate) fn config_text(config: &ConfigStatus) -> (String, Tone) {
    let hash = config.hash.get(..12).unwrap_or(&config.hash);
    let include = config.include.as_ref().map(|pattern| format!(", with {pattern}")).unwrap_or_default();
    match config.confirm_in_s {
        None => (format!("sha256 {hash}{include}"), Tone::Plain),
        Some(left) => {
            let left = duration(left);
            let text = format!(
                "sha256 {hash}{include}; on trial: the former one comes back in {left} unless `qvpn-ctl \
                 confirm` keeps it"
            );
            (text, Tone::Warn)
        }
    }
}

/// Describes whether it carries traffic; `None` if it always did.
pub(crate) fn gateway_text(gateway: &GatewayStatus) -> Option<(String, Tone)> {
    let takeovers = count(gateway.takeovers, "takeover");
    match (gateway.state.as_str(), gateway.active_in_s) {
        ("active", _) if gateway.takeovers == 0 => None,
        ("waiting", Some(wait)) => {
            let text = format!(
                "after {takeovers} it waits, since each spends QKD keys; active in {}",
                duration(wait)
            );
            Some((text, Tone::Warn))
        }
        (state, _) => Some((format!("{state}, {takeovers}"), Tone::Plain)),
    }
}
