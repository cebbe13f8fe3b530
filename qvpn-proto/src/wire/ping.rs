//! `Ping` and `Pong`: whether the peer answers, over which path, and whether it receives our packets.

use std::time::Duration;

use super::codec::{ParseError, Reader};

/// The body of a `Ping`, and of the `Pong` that answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Random for each `Ping`; its `Pong` repeats it.
    pub nonce: [u8; 8],
    /// The sender's number of the path; a `Pong` repeats it. 0 until there are several.
    pub path: u8,
    /// The time since the sender last received an authenticated packet of the receiver, before this exchange;
    /// `None` is never.
    pub heard_ago: Option<Duration>,
}

/// `heard_ago` on the wire if there was never a packet.
const NEVER: u32 = u32::MAX;

impl Ping {
    /// The size of a body in bytes.
    pub const SIZE: usize = 13;

    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let milliseconds = |ago: Duration| u32::try_from(ago.as_millis()).unwrap_or(NEVER).min(NEVER - 1);
        let [a, b, c, d] = self.heard_ago.map_or(NEVER, milliseconds).to_be_bytes();
        let [n0, n1, n2, n3, n4, n5, n6, n7] = self.nonce;
        [n0, n1, n2, n3, n4, n5, n6, n7, self.path, a, b, c, d]
    }

    /// Parses the whole message.
    ///
    /// # Errors
    /// [`ParseError`] if the length is another one.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let nonce = r.array("nonce")?;
        let path = r.u8("path")?;
        let heard = r.u32("heard")?;
        r.end()?;
        let heard_ago = (heard != NEVER).then(|| Duration::from_millis(heard.into()));
        Ok(Self { nonce, path, heard_ago })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_travels_in_thirteen_bytes() {
        let ping = |heard_ago| Ping { nonce: *b"12345678", path: 7, heard_ago };
        let long = Duration::from_millis(u64::from(NEVER) - 1);
        for heard_ago in [None, Some(Duration::ZERO), Some(Duration::from_millis(2345)), Some(long)] {
            assert_eq!(Ping::parse(&ping(heard_ago).to_bytes()), Ok(ping(heard_ago)));
        }
        assert_eq!(ping(Some(Duration::from_millis(258))).to_bytes(), *b"12345678\x07\0\0\x01\x02");
        assert_eq!(ping(None).to_bytes()[9..], [0xff; 4]);
        let years = Ping::parse(&ping(Some(Duration::from_secs(1 << 40))).to_bytes());
        assert_eq!(years, Ok(ping(Some(long))), "a longer time is the longest one, not never");
        for wrong in [&[][..], &[0; 12], &[0; 14]] {
            assert!(Ping::parse(wrong).is_err());
        }
    }
}
