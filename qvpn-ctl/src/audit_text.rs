//! The state of the audit log in words.

use qvpn_api::status::AuditStatus;

use crate::output::Tone;

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
