//! Numbers for people, in the style of `wg show`.

/// Units of time in seconds, largest first.
const TIME: [(u64, &str); 4] = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];

/// Formats a duration in its two largest units: `2 minutes, 5 seconds`; below ten seconds with a tenth.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "an unknown time".to_owned();
    }
    let seconds = seconds.abs().min(1e12);
    let tenths = whole(seconds * 10.0);
    if tenths < 100 && !tenths.is_multiple_of(10) {
        return format!("{}.{} seconds", tenths / 10, tenths % 10);
    }
    let mut rest = whole(seconds);
    let mut parts = Vec::new();
    for (unit, name) in TIME {
        let n = rest / unit;
        rest %= unit;
        if n > 0 {
            parts.push(format!("{n} {name}{}", if n == 1 { "" } else { "s" }));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0 seconds".to_owned() } else { parts.join(", ") }
}

/// Formats a time to come: `in 5 seconds`, or `now` if it is due.
pub(crate) fn from_now(seconds: f64) -> String {
    if seconds <= 0.0 { "now".to_owned() } else { format!("in {}", duration(seconds)) }
}

/// Formats the time of an epoch that is due: `in 5 seconds`, `now`, or, since an exchange takes a moment,
/// from a second on `overdue for 5 seconds`.
pub(crate) fn due(seconds: f64) -> String {
    if seconds < -1.0 { format!("overdue for {}", duration(seconds)) } else { from_now(seconds) }
}

/// Formats a past time: `5 seconds ago`.
pub(crate) fn ago(seconds: f64) -> String {
    format!("{} ago", duration(seconds))
}

/// Formats bytes with a binary unit: `1.50 KiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    // Hundredths of the largest unit that is not above the value.
    let power = (n.ilog2() / 10).min(6);
    let hundredths = (u128::from(n) * 100) >> (10 * power);
    let unit = UNITS.get(usize::try_from(power).unwrap_or(1) - 1).unwrap_or(&"EiB");
    format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100)
}

/// Formats a count: `1 key`, `2 keys`.
pub(crate) fn count(n: u64, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Returns `x` without its fraction; the caller makes sure that it is small and not negative.
fn whole(x: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // bounded by the caller, and `as` saturates
    let n = x.floor() as u64;
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let rows = [
            (0.0, "0 seconds"),
            (0.04, "0 seconds"),
            (0.25, "0.2 seconds"),
            (1.0, "1 second"),
            (9.99, "9.9 seconds"),
            (59.9, "59 seconds"),
            (60.0, "1 minute"),
            (125.0, "2 minutes, 5 seconds"),
            (3600.0, "1 hour"),
            (3605.0, "1 hour"),
            (90_061.0, "1 day, 1 hour"),
            (1e300, "11574074 days, 1 hour"),
            (f64::NAN, "an unknown time"),
        ];
        for (seconds, text) in rows {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
        assert_eq!(from_now(-1.0), "now");
        assert_eq!(
            (due(3.0), due(-0.5), due(-9.0)),
            ("in 3 seconds".to_owned(), "now".to_owned(), "overdue for 9 seconds".to_owned())
        );
        assert_eq!(ago(60.0), "1 minute ago");
    }

    #[test]
    fn bytes_are_binary() {
        let rows = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (1 << 20, "1.00 MiB"),
            (u64::MAX, "15.99 EiB"),
        ];
        for (n, text) in rows {
            assert_eq!(bytes(n), text);
        }
        assert_eq!((count(1, "key"), count(2, "key")), ("1 key".to_owned(), "2 keys".to_owned()));
    }
}
