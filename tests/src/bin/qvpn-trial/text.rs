//! Numbers and times as the page shows them.

use crate::story::SCALE;

/// Formats `12345` as `12,345`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Formats real seconds since the beginning as the simulated day and time.
pub fn clock(seconds: f64) -> String {
    let minutes = (seconds.max(0.0) * SCALE / 60.0) as u64;
    format!("Day {}, {:02}:{:02}", minutes / 1440 + 1, minutes / 60 % 24, minutes % 60)
}

/// Formats real seconds as simulated time.
pub fn simulated(seconds: f64) -> String {
    let minutes = seconds * SCALE / 60.0;
    if minutes < 90.0 { format!("{minutes:.0} min") } else { format!("{:.1} h", minutes / 60.0) }
}
