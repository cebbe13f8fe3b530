//! Reads the time that `--since` names.

use std::time::SystemTime;

/// An age, or a time of RFC 3339.
pub(crate) fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let age = humantime::parse_duration(text).ok().and_then(|age| SystemTime::now().checked_sub(age));
    age.ok_or_else(|| "write an age such as 10m or a time such as 2026-12-01T10:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_an_age_or_a_date() {
        let age = |text: &str| {
            let then = since(text).unwrap();
            SystemTime::now().duration_since(then).unwrap().as_secs()
        };
        assert!((600..620).contains(&age("10m")) && (86_400..86_420).contains(&age("1d")));
        let date = since("1970-01-01T00:01:00Z").unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(date.as_secs(), 60);
        for bad in ["", "10", "yesterday", "-5m", "10m ago", "99999999999999y"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
