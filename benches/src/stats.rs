//! Minimum, median and maximum of a few rounds, and percentiles of many samples.

/// The summary of a few rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle value, or the mean of the two middle values.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Summarises `values`. Values that are not finite are left out. Returns `None` if there are no others.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            sorted[middle - 1].midpoint(sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self { min, median, max })
    }

    /// Summarises `ours` divided by `theirs`, round by round, so that numbers of the same moment are
    /// compared.
    #[must_use]
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// Returns the smallest sample that at least the share `share` (0 to 1) of all samples doesn't exceed, or
/// `None` if there are no samples. Sorts the list.
#[must_use]
pub fn percentile(samples: &mut [u64], share: f64) -> Option<u64> {
    samples.sort_unstable();
    let last = samples.len().checked_sub(1)?;
    // The smallest rank with at least this share of samples at or below it.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the list")]
    let rank = (share * samples.len() as f64).ceil() as usize;
    Some(samples[rank.saturating_sub(1).min(last)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_takes_the_middle_and_leaves_failures_out() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[f64::NAN]), None);
        assert_eq!(Spread::of(&[3.0, 1.0, f64::NAN, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 2.0]), Some(Spread { min: 2.0, median: 3.0, max: 4.0 }));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let spread = Spread::of_ratios(&[2.0, 9.0, 8.0], &[1.0, 3.0, 4.0]);
        assert_eq!(spread, Some(Spread { min: 2.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of_ratios(&[2.0, f64::NAN], &[f64::NAN, 1.0]), None);
    }

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let mut hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut hundred, 0.5), Some(50));
        assert_eq!(percentile(&mut hundred, 0.99), Some(99));
        assert_eq!(percentile(&mut hundred, 1.0), Some(100));
        assert_eq!(percentile(&mut [7], 0.99), Some(7));
        assert_eq!(percentile(&mut [], 0.5), None);
    }
}
