//! The secret bits that a QKD link yields over time, and its error rate: constant, or by a model of the
//! channel. Pure functions of time and of the eavesdropper.

use std::time::Duration;

/// A link's supply of bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Supply {
    /// The rate.
    pub source: Source,
    /// The size of a block, since post-processing yields keys in blocks; 1 for an even flow.
    pub block_bits: u64,
    /// When it yields bits; always, if absent.
    pub passes: Option<Passes>,
}

/// A rate and the error rate that belongs to it.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A constant rate.
    Constant {
        /// Secret bits a second; 0 for a link that yields nothing beyond its initial keys.
        bits_per_s: u64,
        /// The error rate that is reported, a share of 1.
        qber: f64,
    },
    /// A fibre or free-space channel with BB84 and weak pulses.
    Optics(Optics),
}

/// A channel and its devices.
#[derive(Debug, Clone, PartialEq)]
pub struct Optics {
    /// Length of the fibre, km.
    pub length_km: f64,
    /// Its loss, dB/km.
    pub loss_db_per_km: f64,
    /// Loss of connectors, filters or the free-space part, dB.
    pub extra_loss_db: f64,
    /// Share of arriving photons that the detector sees.
    pub detector_efficiency: f64,
    /// Probability of a click without a photon, for each pulse (`Y0`).
    pub dark_count: f64,
    /// Photons in a pulse on average (`μ`).
    pub mean_photons: f64,
    /// Share of photons that go to the wrong detector (`e_d`).
    pub misalignment: f64,
    /// Pulses a second.
    pub pulses_per_s: f64,
    /// Share of the clicks that remains for the key after sifting, decoy states and finite-size effects.
    pub useful_share: f64,
    /// Leak of error correction, as a multiple of the least possible (`f`).
    pub error_correction: f64,
}

/// A satellite's passes. The first begins at the start of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// The duration of a pass.
    pub lasts: Duration,
    /// The interval between the beginnings of two passes.
    pub every: Duration,
}

/// A link's current rate and error rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct State {
    /// Secret bits a second.
    pub bits_per_s: f64,
    /// Share of sifted bits that differ.
    pub qber: f64,
}

impl Supply {
    /// Returns rate and error rate while an eavesdropper measures and resends `intercepted` of the pulses, a
    /// share of 1.
    #[must_use]
    pub fn state(&self, intercepted: f64) -> State {
        match &self.source {
            Source::Constant { bits_per_s, qber } => {
                let quiet = secret_share(*qber, Optics::ERROR_CORRECTION);
                let qber = disturbed(*qber, intercepted);
                let share = secret_share(qber, Optics::ERROR_CORRECTION);
                #[allow(clippy::cast_precision_loss, reason = "a rate beyond 2^53 bit/s has no meaning")]
                let rate = *bits_per_s as f64;
                // Exact without an eavesdropper.
                let factor = if intercepted > 0.0 && quiet > 0.0 { share / quiet } else { 1.0 };
                State { bits_per_s: rate * factor, qber }
            }
            Source::Optics(optics) => optics.state(intercepted),
        }
    }

    /// Returns the total time of its passes until `t`.
    #[must_use]
    pub fn active_until(&self, t: Duration) -> Duration {
        let Some(Passes { lasts, every }) = self.passes else { return t };
        let (whole, rest) = match (t.as_nanos(), every.as_nanos()) {
            (_, 0) => return t,
            (t, every) => (t / every, t % every),
        };
        let active = whole.saturating_mul(lasts.as_nanos()).saturating_add(rest.min(lasts.as_nanos()));
        Duration::from_nanos(u64::try_from(active).unwrap_or(u64::MAX))
    }

    /// Whether a pass is in progress at `t`.
    #[must_use]
    pub fn is_active(&self, t: Duration) -> bool {
        self.passes
            .is_none_or(|p| p.every.is_zero() || t.as_nanos() % p.every.as_nanos() < p.lasts.as_nanos())
    }
}

impl Optics {
    /// A typical leak of error correction.
    pub const ERROR_CORRECTION: f64 = 1.16;

    /// Computes `R = max(0, c·Q·(1 − h(E) − f·h(E)))` with `Q = Y0 + 1 − e^(−ημ)`, `η = 10^(−loss/10)·η_d`
    /// and `E = (Y0/2 + e_d(1 − e^(−ημ)))/Q`.
    fn state(&self, intercepted: f64) -> State {
        let loss_db = self.loss_db_per_km * self.length_km + self.extra_loss_db;
        let eta = 10f64.powf(-loss_db / 10.0) * self.detector_efficiency;
        let signal = -(-eta * self.mean_photons).exp_m1();
        let clicks = self.dark_count + signal;
        let qber =
            if clicks > 0.0 { (self.dark_count / 2.0 + self.misalignment * signal) / clicks } else { 0.5 };
        let qber = disturbed(qber, intercepted);
        let sifted = self.pulses_per_s * self.useful_share * clicks;
        State { bits_per_s: sifted * secret_share(qber, self.error_correction), qber }
    }
}

/// Returns the error rate when a share of the pulses is measured in a random basis and sent again, which
/// flips one bit in four.
fn disturbed(qber: f64, intercepted: f64) -> f64 {
    let flips = intercepted.clamp(0.0, 1.0) / 4.0;
    qber + flips - 2.0 * qber * flips
}

/// Returns the secret share of a sifted bit: 0 from about 11 % errors on, or less with the leak of real error
/// correction.
fn secret_share(qber: f64, error_correction: f64) -> f64 {
    (1.0 - (1.0 + error_correction) * entropy(qber)).max(0.0)
}

/// Returns the binary entropy.
fn entropy(p: f64) -> f64 {
    let p = p.clamp(0.0, 0.5);
    if p == 0.0 { 0.0 } else { -p * p.log2() - (1.0 - p) * (1.0 - p).log2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokyo() -> Optics {
        Optics {
            length_km: 45.0,
            loss_db_per_km: 14.5 / 45.0,
            extra_loss_db: 0.0,
            detector_efficiency: 0.2,
            dark_count: 1e-5,
            mean_photons: 0.4,
            misalignment: 0.035,
            pulses_per_s: 1e9,
            useful_share: 0.22,
            error_correction: 1.16,
        }
    }

    #[test]
    fn the_model_meets_a_published_link() {
        // 304 kb/s at 45 km and 14.5 dB.
        let state = Supply { source: Source::Optics(tokyo()), block_bits: 1, passes: None }.state(0.0);
        assert!((250e3..350e3).contains(&state.bits_per_s), "{state:?}");
        assert!((0.03..0.045).contains(&state.qber), "{state:?}");
    }

    #[test]
    fn loss_and_noise_stop_the_supply() {
        let rate = |optics: &Optics| optics.state(0.0).bits_per_s;
        let mut optics = tokyo();
        let mut last = f64::INFINITY;
        for km in (0..300).step_by(20) {
            optics.length_km = f64::from(km);
            assert!(rate(&optics) <= last, "{km} km");
            last = rate(&optics);
        }
        assert_eq!(last, 0.0);
        assert_eq!(rate(&Optics { misalignment: 0.12, ..tokyo() }), 0.0);
        assert!(rate(&Optics { misalignment: 0.08, ..tokyo() }) > 0.0);
        assert_eq!(entropy(0.5), 1.0);
    }

    #[test]
    fn an_eavesdropper_raises_the_errors_until_nothing_comes() {
        for source in [Source::Optics(tokyo()), Source::Constant { bits_per_s: 1000, qber: 0.02 }] {
            let supply = Supply { source, block_bits: 1, passes: None };
            let states: Vec<State> = (0..=10).map(|n| supply.state(f64::from(n) / 10.0)).collect();
            assert!(states.windows(2).all(|w| w[0].qber < w[1].qber && w[0].bits_per_s >= w[1].bits_per_s));
            assert!(states[0].bits_per_s > 0.0 && states[1].bits_per_s > 0.0);
            assert_eq!(states[10].bits_per_s, 0.0);
            assert!((0.24..0.28).contains(&states[10].qber), "intercept and resend: {:?}", states[10]);
        }
    }

    #[test]
    fn passes_come_and_go() {
        let passes = Passes { lasts: Duration::from_secs(5), every: Duration::from_secs(60) };
        let supply = Supply {
            source: Source::Constant { bits_per_s: 1, qber: 0.0 },
            block_bits: 1,
            passes: Some(passes),
        };
        let active = |s| supply.active_until(Duration::from_secs(s)).as_secs();
        assert_eq!([0, 3, 5, 30, 60, 62, 66, 600].map(active), [0, 3, 5, 5, 5, 7, 10, 50]);
        assert!(supply.is_active(Duration::from_secs(61)) && !supply.is_active(Duration::from_secs(59)));
    }
}
