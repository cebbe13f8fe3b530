//! How many secret bits a QKD link yields over time. A model is a pure function of the time that the link was active,
//! so a link can be asked at any moment without a task of its own that fills it.

use std::time::Duration;

/// A model of a link's yield.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supply {
    /// So many bits a second, evenly.
    Constant {
        /// Secret bits a second; 0 for a link that yields nothing beyond its initial keys.
        bits_per_s: u64,
    },
}

impl Supply {
    /// The bits yielded after `active` time in all; never fewer at a later time.
    #[must_use]
    pub fn bits_after(&self, active: Duration) -> u64 {
        match self {
            Self::Constant { bits_per_s } => {
                let bits = u128::from(*bits_per_s).saturating_mul(active.as_nanos()) / 1_000_000_000;
                u64::try_from(bits).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_rate_loses_no_fraction_between_two_looks() {
        let supply = Supply::Constant { bits_per_s: 3 };
        assert_eq!(supply.bits_after(Duration::from_millis(333)), 0);
        assert_eq!(supply.bits_after(Duration::from_millis(334)), 1);
        assert_eq!(supply.bits_after(Duration::from_secs(1000)), 3000);
        assert_eq!(Supply::Constant { bits_per_s: u64::MAX }.bits_after(Duration::MAX), u64::MAX);
        assert_eq!(Supply::Constant { bits_per_s: 0 }.bits_after(Duration::from_secs(9)), 0);
    }
}
