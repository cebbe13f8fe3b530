//! A wall-clock time as RFC 3339 in UTC with milliseconds.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// The last second that four digits of a year can say.
const MAX_UNIX_SECONDS: u64 = 253_402_300_799;

/// `time`, moved into the years 1970 to 9999 where a broken clock is outside them.
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
