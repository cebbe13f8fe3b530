//! The result of one check.

use serde::Serialize;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// There is nothing to do.
    Ok,
    /// It works but may be unintended, or it could not be checked.
    Warning,
    /// It keeps a tunnel from working.
    Bad,
}

/// One check; `docs/schemas/doctor.json` describes its JSON form.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    /// The check, one word of a fixed list.
    pub(super) check: &'static str,
    /// The interface; absent for the machine.
    pub(super) interface: Option<String>,
    pub(super) result: Verdict,
    pub(super) text: String,
    /// The command that fixes it, or that checks what this program can't; present unless `ok`.
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, interface: None, result: Verdict::Ok, text: text.into(), fix: None }
    }

    pub(super) fn warning(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: Verdict::Warning, fix: Some(fix.into()), ..Self::ok(check, text) }
    }

    pub(super) fn bad(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { result: Verdict::Bad, fix: Some(fix.into()), ..Self::ok(check, text) }
    }

    /// Makes a finding about something that can't be checked from here; `how` is a command that can check it.
    pub(super) fn unknown(check: &'static str, text: impl Into<String>, how: impl Into<String>) -> Self {
        Self::warning(check, text, how)
    }
}
