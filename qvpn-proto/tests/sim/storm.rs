//! The storm of one seed: sites, clocks and faults drawn from it, in rounds. After each round, everything
//! must recover within a bounded time, and traffic must then flow without a gap.

use std::time::Duration;

use qvpn_identity::Psk;
use qvpn_proto::{PeerState, QkdPolicy, Role};
use qvpn_types::Suite;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::Arc;

use crate::clock::{BEGIN, Clock, MS, S};
use crate::kms::{GOOD, KmsFaults};
use crate::network::{CLEAN, Faults, below, chance, up_to};
use crate::site::{Site, sites};
use crate::world::World;

/// With good KMEs, there is an epoch within this time after the faults end: the peer's silence is detected
/// after 5 s, handshakes are 5 s apart, an attempt takes up to 5 s and the next one waits up to 10 s.
const RECOVERY_LIMIT: Duration = Duration::from_secs(40);
/// The stock may hold twice its target in keys that one KME never gets: each is given up after 120 s.
/// Unusable keys are replaced after growing delays of up to 10 s.
const RECOVERY_LIMIT_WITH_BAD_KEYS: Duration = Duration::from_secs(170);

/// The counts of a storm.
#[derive(Default, Clone, Copy, Debug)]
pub struct StormCounts {
    pub seeds: u64,
    pub rekeys: u64,
    pub packets: u64,
    pub opened: u64,
    pub restarts: u64,
    pub steps: u64,
    pub simulated: Duration,
    /// The longest recovery, with good and with bad keys.
    pub slowest: [Duration; 2],
}

impl StormCounts {
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.rekeys += other.rekeys;
        self.packets += other.packets;
        self.opened += other.opened;
        self.restarts += other.restarts;
        self.steps += other.steps;
        self.simulated += other.simulated;
        for (slowest, other) in self.slowest.iter_mut().zip(other.slowest) {
            *slowest = (*slowest).max(other);
        }
    }
}

fn pick<T: Copy>(of: &[T], rng: &mut ChaCha20Rng) -> T {
    of[below(of.len(), rng)]
}

/// Draws compatible sites.
fn draw_sites(interval: Duration, rng: &mut ChaCha20Rng) -> [Site; 2] {
    use QkdPolicy::{Off, Preferred, Required};
    let policies = [
        [Required, Required],
        [Required, Required],
        [Required, Required],
        [Preferred, Preferred],
        [Preferred, Preferred],
        [Required, Preferred],
        [Preferred, Required],
        [Off, Off],
        [Preferred, Off],
        [Off, Preferred],
    ];
    let policies = pick(&policies, rng);
    let mut both = sites(policies[0], interval);
    both[1].policy = policies[1];
    if chance(200, rng) {
        both[1].interval = interval * 2;
    }
    let suite = pick(&[Suite::ChaCha20Poly1305, Suite::Aes256Gcm], rng);
    let psk = chance(300, rng).then(|| Arc::new(Psk::generate(&mut ChaCha20Rng::seed_from_u64(5))));
    for site in &mut both {
        site.suite = suite;
        site.psk = psk.clone();
        site.lanes = pick(&[1, 1, 2], rng);
        site.stock = 1 + below(8, rng);
    }
    match below(5, rng) {
        0 => both[0].knows_endpoint = false,
        1 => both[1].knows_endpoint = false,
        _ => {}
    }
    both
}

fn draw_network(rng: &mut ChaCha20Rng) -> Faults {
    let mut some =
        |most: u32| if chance(500, rng) { u32::try_from(below(most as usize, rng)).unwrap() } else { 0 };
    Faults {
        loss: some(400),
        duplicate: some(300),
        corrupt: some(100),
        replay: some(50),
        delay: MS * (1 + some(300)),
        jitter: MS * some(500),
    }
}

fn draw_kms(rng: &mut ChaCha20Rng) -> KmsFaults {
    let mut some =
        |most: u32| if chance(300, rng) { u32::try_from(below(most as usize, rng)).unwrap() } else { 0 };
    KmsFaults {
        delay: MS * (1 + some(3000)),
        jitter: MS * some(5000),
        lag: MS * some(5000),
        lost: some(200),
        wrong: some(100),
        short: some(50),
        again: some(100),
    }
}

/// Returns the longest interval of all sides, which is an upper bound for each tunnel's.
fn longest_interval(world: &World) -> Duration {
    world.sites.iter().map(|site| site.interval).max().unwrap()
}

struct Storm {
    world: World,
    rng: ChaCha20Rng,
    /// The random source for path MTUs.
    paths: ChaCha20Rng,
    roams: bool,
    bad_keys: bool,
    tally: StormCounts,
}

/// Runs one seed. It panics, and prints the last steps, if a property does not hold.
pub fn storm(seed: u64) -> StormCounts {
    let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 0x5715_0a1d);
    let tunnels = if chance(200, &mut rng) { 3 } else { 1 };
    let intervals = [100 * MS, 100 * MS, 300 * MS, S, S, 2 * S, 5 * S, 10 * S, 60 * S];
    let interval = pick(&intervals, &mut rng);
    let mut tunnels: Vec<_> = (0..tunnels).map(|_| draw_sites(interval, &mut rng)).collect();
    let mut paths = ChaCha20Rng::seed_from_u64(seed ^ 0x9a75);
    for site in tunnels.iter_mut().flatten() {
        site.measures = chance(500, &mut paths);
    }
    let mut world = World::with(seed, tunnels, CLEAN);
    for gateway in &mut world.gateways {
        let drift = i64::try_from(below(2001, &mut rng)).unwrap() - 1000;
        gateway.clock = Clock { at_begin: rng.next_u64() % (1 << 50), drift };
    }
    if chance(100, &mut rng) {
        world.packet_limit = Some(20 + rng.next_u64() % 200);
    }
    let roams = chance(500, &mut rng);
    for gateway in (0..world.gateways.len()).filter(|_| roams) {
        // These sites are behind NATs whose outer ports differ from the forwarded ones. Without forwarded
        // ports, no site could reach another once all had moved.
        world.gateways[gateway].forwards = true;
        world.rebind(gateway);
    }
    // The clocks were changed, so every site starts again under them.
    for gateway in 0..world.gateways.len() {
        world.restart(gateway);
    }
    world.restarts = 0;
    world.traffic((interval / 6).clamp(20 * MS, 500 * MS));
    let mut storm = Storm {
        world,
        rng,
        paths,
        roams,
        bad_keys: false,
        tally: StormCounts { seeds: 1, ..StormCounts::default() },
    };
    storm.calm_down();
    for _ in 0..4 {
        storm.round();
        storm.calm_down();
    }
    let Storm { world, mut tally, .. } = storm;
    tally.rekeys = world.epochs / 2;
    tally.packets = world.data_sent;
    tally.opened = world.data_opened;
    tally.restarts = world.restarts;
    tally.steps = world.steps;
    tally.simulated = world.now.since(BEGIN);
    tally
}

impl Storm {
    /// Runs one round of faults.
    fn round(&mut self) {
        let rng = &mut self.rng;
        let world = &mut self.world;
        if chance(700, rng) {
            world.faults = draw_network(rng);
        }
        if chance(300, rng) {
            world.lane_jitter = up_to(200 * MS, rng);
        }
        for tunnel in 0..world.kms.len() {
            if chance(400, rng) {
                world.kms[tunnel].faults = draw_kms(rng);
                self.bad_keys = true;
            }
            if chance(300, rng) {
                world.kms[tunnel].up = [chance(400, rng), chance(400, rng)];
            }
        }
        if chance(300, &mut self.paths) {
            world.path = 1200 + below(300, &mut self.paths);
        }
        let (faults, lanes) = (world.faults, world.lane_jitter);
        world.tell(|| format!("TROUBLE: {faults:?}, lanes {lanes:?}"));
        for tunnel in 0..world.kms.len() {
            let (faults, up) = (world.kms[tunnel].faults, world.kms[tunnel].up);
            world.tell(|| format!("TROUBLE: KMEs of tunnel {tunnel} up {up:?}, {faults:?}"));
        }
        let span = (longest_interval(world) * 4).max(5 * S).min(60 * S);
        let weak = world.sites.iter().any(|site| site.policy == QkdPolicy::Preferred);
        if weak && chance(500, rng) {
            // The KMEs stay down until epochs without QKD start.
            for kms in &mut world.kms {
                kms.up = [false; 2];
                kms.forget();
            }
            world.run((longest_interval(world) * 12).min(90 * S));
        }
        for _ in 0..below(5, rng) {
            world.run(up_to(span / 4, rng));
            Self::strike(world, rng, self.roams);
        }
        world.run(up_to(span, rng));
    }

    /// Applies one fault at once.
    fn strike(world: &mut World, rng: &mut ChaCha20Rng, roams: bool) {
        let gateway = below(world.gateways.len(), rng);
        let side = below(world.sides.len(), rng);
        let now = world.now;
        match below(15, rng) {
            0..=2 => {
                // The restart happens at any of the next steps.
                world.restart_at = Some((world.steps + rng.next_u64() % 40, gateway));
            }
            3 => {
                for side in (0..world.sides.len()).filter(|side| side.is_multiple_of(2) == (gateway == 0)) {
                    world.say_bye(side);
                }
                for gateway in 0..world.gateways.len().min(if gateway == 0 { 1 } else { usize::MAX }) {
                    world.restart(gateway);
                }
            }
            4 if roams => world.rebind(gateway),
            5 if !roams => {
                // The wall clock goes back by years, with a restart, and nobody sets it right.
                let wall = &mut world.gateways[gateway].wall;
                *wall -= 1 << 55;
                world.restart(gateway);
            }
            6 => world.gateways[gateway].busy_until = now + up_to(5 * S, rng),
            7 => {
                let until = now + up_to(30 * S, rng);
                world.tell(|| format!("gateway {gateway} sleeps until {:?}", until.since(BEGIN)));
                world.gateways[gateway].asleep_until = until;
            }
            8 => world.rekey(side),
            9 => {
                let both = chance(300, rng);
                world.tell(|| format!("CUT from end {side}, both ways: {both}"));
                world.cut[side] = true;
                world.cut[side ^ 1] |= both;
            }
            10 => world.kms[side / 2].forget(),
            14 => {
                // A typo that is reloaded and then corrected.
                let right = world.sites[side].clone();
                let site = &mut world.sites[side];
                match below(3, rng) {
                    0 => site.sae = "SITE-X".to_owned(),
                    1 => site.sae_other = "SITE-Y".to_owned(),
                    _ if site.role == Role::Initiator => site.role = Role::Responder,
                    _ => site.role = Role::Initiator,
                }
                world.reconfigure(side);
                world.run(up_to(3 * S, rng));
                world.sites[side] = right;
                world.reconfigure(side);
            }
            11 | 12 => {
                let fits = world.sites[side ^ 1].policy != QkdPolicy::Off;
                let site = &mut world.sites[side];
                site.policy = match site.policy {
                    QkdPolicy::Preferred if fits => QkdPolicy::Required,
                    QkdPolicy::Required => QkdPolicy::Preferred,
                    other => other,
                };
                world.reconfigure(side);
            }
            _ => {
                world.sites[side].interval = pick(&[100 * MS, S, 2 * S, 10 * S], rng);
                world.reconfigure(side);
            }
        }
    }

    /// Ends all faults. Everything must then recover within a bounded time, and stay up.
    fn calm_down(&mut self) {
        let world = &mut self.world;
        world.tell(|| "NO MORE FAULTS".to_owned());
        world.faults = CLEAN;
        world.lane_jitter = Duration::ZERO;
        world.cut.fill(false);
        world.path = 9000;
        world.restart_at = None;
        // The faults end when the last gateway wakes.
        let awake = world.gateways.iter().map(|g| g.busy_until.max(g.asleep_until)).max().unwrap();
        world.run(awake.since(world.now));
        for tunnel in 0..world.kms.len() {
            world.kms[tunnel].faults = GOOD;
            let back = world.kms[tunnel].up;
            world.kms[tunnel].up = [true; 2];
            for side in [0, 1] {
                if !back[side] && chance(500, &mut self.rng) {
                    world.on_kms_recovered(tunnel * 2 + side);
                }
            }
        }
        let begun = world.now;
        let bound = if self.bad_keys { RECOVERY_LIMIT_WITH_BAD_KEYS } else { RECOVERY_LIMIT };
        let stocked = self.bad_keys;
        if !world.run_until(bound, |w| settled(w) && (!stocked || has_keys(w))) {
            world.fail(&format!("progress: no agreed epoch {bound:?} after the trouble ended"));
        }
        let took = world.now.since(begun);
        let slowest = &mut self.tally.slowest[usize::from(self.bad_keys)];
        *slowest = took.max(*slowest);
        self.flows();
        self.bad_keys = false;
    }

    /// Checks that epochs follow each other and that no packet waits.
    fn flows(&mut self) {
        let world = &mut self.world;
        // Attempts that failed during the faults delay the next one, and the stock must fill again.
        world.run(12 * S);
        let (before, blocked) = (counts(world), world.data_blocked);
        let (sent, opened) = (world.data_sent, world.data_opened);
        let longest = longest_interval(world);
        world.run(longest * 2 + S);
        let stuck = counts(world).iter().zip(&before).position(|(now, before)| now <= before);
        if let Some(side) = stuck {
            world.fail(&format!("progress: no epoch at end {side} in two quiet intervals"));
        }
        let chained = |side: &usize| world.view(*side).sources.is_some_and(|sources| sources.chain);
        if let Some(side) = (0..world.sides.len()).find(|side| !chained(side)) {
            world.fail(&format!("the chain: end {side}'s epoch rests on none though nothing is wrong"));
        }
        if world.packet_limit.is_some() {
            return;
        }
        if world.data_blocked > blocked {
            world.fail("traffic waits though nothing is wrong");
        }
        let under_way = 4 * u64::try_from(world.sides.len()).unwrap();
        let (sent, opened) = (world.data_sent - sent, world.data_opened - opened);
        if opened + under_way < sent {
            world.fail(&format!("{opened} of {sent} packets open though nothing is wrong"));
        }
    }
}

fn counts(world: &World) -> Vec<u64> {
    (0..world.sides.len()).map(|side| world.view(side).rekeys).collect()
}

/// Whether every side that uses QKD has a key.
fn has_keys(world: &World) -> bool {
    (0..world.sides.len()).all(|side| {
        let off = [side, side ^ 1].iter().any(|side| world.sites[*side].policy == QkdPolicy::Off);
        off || world.view(side).qkd_stock != Some(0)
    })
}

/// Whether each tunnel has an epoch that is in force at both sides.
pub fn settled(world: &World) -> bool {
    (0..world.sides.len()).step_by(2).all(|side| {
        let views = [world.view(side), world.view(side + 1)];
        let flows = views.iter().all(|v| matches!(v.state, PeerState::Up | PeerState::Degraded));
        flows && views[0].epoch == views[1].epoch
    })
}
