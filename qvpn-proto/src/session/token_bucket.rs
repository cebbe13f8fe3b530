//! Token buckets that limit a rate, one for all sources together and one for each source address.

use std::net::{IpAddr, SocketAddr};

use rand_core::CryptoRng;

use qvpn_types::Time;

/// A rate and a burst.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Tokens a second; not 0.
    pub(crate) a_second: u64,
    /// The maximum number of tokens at once; not 0.
    pub(crate) burst: u64,
}

impl Rate {
    /// Returns the nanoseconds for one token.
    fn every(self) -> u64 {
        1_000_000_000 / self.a_second
    }
}

/// A bucket, stored as the time at which it is full again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket(u64);

impl Bucket {
    /// Returns a bucket that is full at this time and has no token for long before.
    #[cfg(test)]
    pub(super) fn full_at(time: Time) -> Self {
        Self(time.as_nanos())
    }

    /// Fills the bucket if the clock went back so far that the bucket would stay empty for longer than it
    /// takes to fill.
    pub(crate) fn forgive(&mut self, now: Time, rate: Rate) {
        if self.0.saturating_sub(now.as_nanos()) > rate.every() * rate.burst {
            self.0 = 0;
        }
    }

    /// Whether there is a token.
    pub(crate) fn has(self, now: Time, rate: Rate) -> bool {
        self.0.saturating_sub(now.as_nanos()) <= rate.every() * (rate.burst - 1)
    }

    /// Takes a token. Returns whether there was one.
    pub(crate) fn take(&mut self, now: Time, rate: Rate) -> bool {
        let has = self.has(now, rate);
        if has {
            self.0 = self.0.max(now.as_nanos()) + rate.every();
        }
        has
    }
}

/// The base-2 logarithm of the number of buckets. Addresses may share a bucket by chance.
const INDEX_BITS: u32 = 10;

/// A bucket for each source. A source is an IPv4 address, or the /64 of an IPv6 address, since one host can
/// use any address in it.
pub(super) struct BySource {
    buckets: Box<[Bucket]>,
    /// Random, so that an attacker cannot choose an address that shares another one's bucket.
    factors: [u64; 2],
}

impl BySource {
    pub(super) fn new(rng: &mut impl CryptoRng) -> Self {
        // A multiplication by an odd factor loses no bit of the address.
        let factors = [rng.next_u64() | 1, rng.next_u64() | 1];
        Self { buckets: vec![Bucket::default(); 1 << INDEX_BITS].into(), factors }
    }

    /// Returns the bucket of an address, by a multiply-shift hash of its two halves.
    pub(super) fn of(&mut self, from: SocketAddr) -> &mut Bucket {
        let net = match from.ip() {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => u64::try_from(ip.to_bits() >> 64).unwrap_or(0),
        };
        let [low, high] = [net & 0xffff_ffff, net >> 32];
        let sum = low.wrapping_mul(self.factors[0]).wrapping_add(high.wrapping_mul(self.factors[1]));
        let place = usize::try_from(sum >> (64 - INDEX_BITS)).unwrap_or(0);
        &mut self.buckets[place]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { a_second: 20, burst: 5 };
        let mut bucket = Bucket::default();
        let mut now = Time::from_nanos(7);
        let mut taken = |now: Time, tries: usize| (0..tries).filter(|_| bucket.take(now, rate)).count();
        assert_eq!(taken(now, 100), 5);
        now = now + Duration::from_millis(49);
        assert_eq!(taken(now, 100), 0);
        now = now + Duration::from_millis(1);
        assert_eq!(taken(now, 100), 1);
        now = now + Duration::from_millis(100);
        assert_eq!(taken(now, 100), 2);
        now = now + Duration::from_secs(3600);
        assert_eq!(taken(now, 100), 5, "a long pause is no larger burst");
    }

    #[test]
    fn addresses_spread_over_the_buckets_and_a_net_of_ipv6_has_one() {
        let mut sources = BySource::new(&mut ChaCha20Rng::seed_from_u64(3));
        let start = sources.buckets.as_ptr().addr();
        let mut place =
            |from: SocketAddr| (std::ptr::from_mut(sources.of(from)).addr() - start) / size_of::<Bucket>();
        let v4: HashSet<usize> =
            (0..1000u32).map(|n| place((Ipv4Addr::from_bits(0xc000_0200 + n), 51820).into())).collect();
        assert!(v4.len() > 400, "{} places of 1,000 addresses", v4.len());
        let v6: HashSet<usize> =
            (0..1000u32).map(|n| place(format!("[2001:db8:0:{n:x}::1]:1").parse().unwrap())).collect();
        assert!(v6.len() > 400, "{} places of 1,000 nets", v6.len());
        let far: HashSet<usize> =
            (0..1000u32).map(|n| place(format!("[2001:{n:x}:0:1::1]:1").parse().unwrap())).collect();
        assert!(far.len() > 400, "{} places of 1,000 nets of others", far.len());
        let one = |last: u32| format!("[2001:db8::{last:x}]:1").parse().unwrap();
        assert_eq!(place(one(1)), place(one(77)));
    }
}
