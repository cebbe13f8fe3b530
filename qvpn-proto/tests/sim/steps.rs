//! Restarts of either gateway, or of both, at every single step of an exchange.

use qvpn_proto::QkdPolicy;

use crate::clock::{MS, S};
use crate::network::CLEAN;
use crate::site::sites;
use crate::storm::settled;
use crate::world::World;

/// The number of steps from the start of a simulation: the first handshake, the first keys and three rekeys.
const STEPS: u64 = 190;

fn begin(seed: u64) -> World {
    let mut world = World::new(seed, sites(QkdPolicy::Required, S), CLEAN);
    world.traffic(20 * MS);
    world
}

#[test]
fn a_restart_at_every_step_ends_in_one_agreed_epoch() {
    let mut plain = begin(1);
    plain.run(4 * S);
    assert!(plain.steps >= STEPS && plain.rekeys() >= 3, "{} steps, {} rekeys", plain.steps, plain.rekeys());
    for step in 1..STEPS {
        let gateway = usize::try_from(step % 2).unwrap();
        let mut world = begin(1);
        world.restart_at = Some((step, gateway));
        world.run_until(10 * S, |w| w.restarts == 1);
        assert_eq!(world.restarts, 1);
        if step % 5 == 0 {
            world.restart_at = Some((world.steps + step % 17, 1 - gateway));
        }
        if !world.run_until(20 * S, settled) {
            world.fail(&format!("no agreed epoch after a restart of gateway {gateway} at step {step}"));
        }
    }
}
