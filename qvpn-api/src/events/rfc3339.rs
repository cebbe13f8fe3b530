//! A wall-clock time as RFC 3339 in UTC with milliseconds.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// The last second of the year 9999, the last year with four digits.
const MAX_UNIX_SECONDS: u64 = 253_402_300_799;

/// Clamps `time` to the years 1970 to 9999, for a clock that is wrong.
pub(super) fn in_range(time: SystemTime) -> SystemTime {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(MAX_UNIX_SECONDS);
    time.clamp(SystemTime::UNIX_EPOCH, last)
}

pub(super) fn serialize<S: Serializer>(time: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&humantime::format_rfc3339_millis(in_range(*time)))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SystemTime, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
    humantime::parse_rfc3339(&text).map_err(D::Error::custom)
}
