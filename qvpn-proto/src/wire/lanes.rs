//! `Lanes`: the lanes on which the sender receives nothing, so that the peer stops sending on them.

use super::codec::{ParseError, Reader};

/// A set of lanes: bit *i* is lane *i*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LaneSet(pub u16);

impl LaneSet {
    #[must_use]
    pub fn to_bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }

    /// Parses the whole message.
    ///
    /// # Errors
    /// [`ParseError`] if the length is not two bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(bytes);
        let set = u16::from_be_bytes(r.array("lanes")?);
        r.end()?;
        Ok(Self(set))
    }

    /// Whether the set contains a lane.
    #[must_use]
    pub fn has(self, lane: u8) -> bool {
        self.0.checked_shr(lane.into()).is_some_and(|rest| rest & 1 == 1)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Removes a lane. Returns whether it was in the set.
    pub fn remove(&mut self, lane: u8) -> bool {
        let had = self.has(lane);
        self.0 &= !1u16.checked_shl(lane.into()).unwrap_or(0);
        had
    }

    /// Adds a lane, which must be below [`MAX_LANES`](super::limits::MAX_LANES).
    pub fn add(&mut self, lane: u8) {
        self.0 |= 1u16.checked_shl(lane.into()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_lanes_travels_in_two_bytes() {
        let mut lanes = LaneSet::default();
        for lane in [0, 9, 15, 16, 255] {
            lanes.add(lane);
        }
        assert_eq!(lanes.to_bytes(), [0x82, 0x01]);
        assert_eq!(LaneSet::parse(&lanes.to_bytes()), Ok(lanes));
        assert_eq!((0..=255).filter(|lane| lanes.has(*lane)).collect::<Vec<_>>(), [0, 9, 15]);
        for wrong in [&[][..], &[1], &[0, 0, 0]] {
            assert!(LaneSet::parse(wrong).is_err());
        }
    }
}
