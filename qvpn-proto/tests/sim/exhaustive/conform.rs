//! Runs traces of the model on real [`Peer`](qvpn_proto::Peer)s. A random walk chooses each step, and the
//! model and two real peers both do it. After each step they must seal in the same epochs, and the real peers
//! must have sent nothing that the model did not send.

use qvpn_proto::wire::{Accept, Confirm, Hello, MessageType, Propose as WirePropose, Reject, RejectReason};
use qvpn_proto::{PeerState, QkdPolicy};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use super::{Action, Attempt, Body, Bounds, HelloId, Message, State, To};
use crate::clock::{MS, S};
use crate::network::{CLEAN, below, chance, up_to};
use crate::site::sites;
use crate::world::{HeldData, HeldMessage, Manual, Occurred, World};
use qvpn_types::EpochNumber;
use stateright::Model as _;

/// Bounds that no walk reaches.
const WIDE: Bounds = Bounds {
    required: true,
    turns: false,
    attempts: 250,
    restarts: 250,
    keys: 250,
    hellos: 250,
    sessions: true,
};
/// No key arrives, no side restarts, and each reload switches the QKD requirement of its side on or off.
const TURNS: Bounds = Bounds { required: false, turns: true, ..WIDE };

struct Walk {
    bounds: Bounds,
    world: World,
    model: State,
    rng: ChaCha20Rng,
    trace: Vec<String>,
    /// The instance and the number in each `Propose`, by message ID.
    proposes: Vec<([u8; 8], (u8, u8))>,
    /// Each `Accept` of the responder, in order: its instance, the number, and the bytes.
    accepts: Vec<(u32, u64, Vec<u8>)>,
    /// Messages that were compared with the model's.
    seen: Vec<(usize, [u8; 8])>,
    /// The number of steps that both did.
    steps: u64,
    /// The number of steps after which both sides were in one epoch.
    agreed: u64,
}

fn to(from: usize) -> To {
    if from == 0 { To::Responder } else { To::Initiator }
}

impl Walk {
    fn new(seed: u64, bounds: Bounds) -> Self {
        let policy = if bounds.required { QkdPolicy::Required } else { QkdPolicy::Preferred };
        let mut both = sites(policy, 100 * S);
        both.iter_mut().for_each(|site| site.stock = 1);
        let mut world = World::new(seed, both, CLEAN);
        world.kms[0].up = [false; 2];
        world.manual = Some(Manual::default());
        // `preferred` does without QKD after two intervals.
        world.run(if bounds.required { S + S / 2 } else { 201 * S });
        Self {
            model: State::new(bounds.required),
            bounds,
            world,
            rng: ChaCha20Rng::seed_from_u64(seed),
            trace: Vec::new(),
            proposes: Vec::new(),
            accepts: Vec::new(),
            seen: Vec::new(),
            steps: 0,
            agreed: 0,
        }
    }

    fn manual(&mut self) -> &mut Manual {
        self.world.manual.as_mut().unwrap()
    }

    fn must(&mut self, holds: bool, what: &str) {
        if !holds {
            let trace = self.trace.join("\n");
            self.world.fail(&format!(
                "the real ends and the model differ: {what}\n{trace}\nmodel: {:#?}",
                self.model
            ));
        }
    }

    /// Returns the model's message that corresponds to a real one.
    fn message(&self, held: &HeldMessage) -> Option<Message> {
        let instance = u8::try_from(held.to_instance).unwrap();
        let sender = u8::try_from(held.from_instance).unwrap();
        let same = |message: &&Message| {
            if (message.to, message.instance, message.body.kind())
                != (to(held.from), instance, Some(held.kind))
            {
                return false;
            }
            match &message.body {
                Body::Hello(id) => {
                    let hello = Hello::parse(&held.body).unwrap();
                    let counter = u8::try_from(hello.counter - 1).unwrap();
                    let required = hello.policy == QkdPolicy::Required;
                    *id == HelloId { instance: sender, counter, required }
                }
                Body::Propose(p) => {
                    let said = WirePropose::parse(&held.body).unwrap();
                    (u64::from(p.number), p.hellos.0.instance) == (said.epoch.0, sender)
                        && p.chain.is_some() == said.chain_check.is_some()
                        && p.qkd.is_some() == said.qkd_key_id.is_some()
                }
                Body::Accept { of, epoch } => {
                    let (said, ..) = Accept::parse(&held.body).unwrap();
                    let same = |(instance, number, _): &&(u32, u64, Vec<u8>)| {
                        (*instance, *number) == (held.from_instance, said.epoch.0)
                    };
                    // The initiator restarts its numbers at one after a restart. Of two messages with one
                    // number, the newest real one corresponds to the newest one of the model.
                    let newest = self.accepts.iter().rfind(same).is_some_and(|a| a.2 == held.body);
                    let highest = self.model.network.iter().filter_map(|l| match &l.body {
                        Body::Accept { of, epoch } if u64::from(of.number) == said.epoch.0 => {
                            Some(epoch.answer)
                        }
                        _ => None,
                    });
                    (u64::from(of.number), epoch.responder) == (said.epoch.0, sender)
                        && newest
                        && Some(epoch.answer) == highest.max()
                }
                Body::Confirm(epoch) => {
                    let said = Confirm::parse(&held.body).unwrap();
                    (u64::from(epoch.number), epoch.initiator) == (said.epoch.0, sender)
                }
                Body::Reject { of, reason } => {
                    let said = Reject::parse(&held.body).unwrap();
                    let number =
                        self.proposes.iter().find(|(id, _)| *id == said.id).map(|(_, number)| *number);
                    // The model's KMEs give no reason why a key is missing.
                    let same = *reason == said.reason
                        || (*reason, said.reason)
                            == (RejectReason::UnknownKeyId, RejectReason::KmsUnavailable);
                    Some((of.hellos.0.instance, of.number)) == number && same
                }
                Body::Data(_) => false,
            }
        };
        self.model.network.iter().find(same).cloned()
    }

    fn data_message(&self, held: &HeldData) -> Option<Message> {
        let same = |message: &&Message| match &message.body {
            Body::Data(epoch) => {
                message.to == to(held.from)
                    && Some(u64::from(epoch.number)) == held.epoch.map(|epoch| epoch.0)
            }
            _ => false,
        };
        self.model.network.iter().find(same).cloned()
    }

    fn act(&mut self, action: Action) {
        self.trace.push(format!("{action:?}"));
        if let Some(next) = self.bounds.next_state(&self.model, action) {
            self.model = next;
        }
    }

    /// Runs the real peers for `span`, and repeats in the model what they did by themselves.
    fn settle(&mut self, span: std::time::Duration) {
        // No timer must be due at the moment of a delivery, since the order of the two would be undefined.
        let odd = up_to(MS, &mut self.rng);
        self.world.run(span + odd);
        for side in [To::Initiator, To::Responder] {
            self.model.repeat(side);
        }
        for occurred in std::mem::take(&mut self.manual().journal) {
            self.trace.push(format!("{occurred:?}"));
            match occurred {
                Occurred::TimedOut => self.act(Action::GiveUp),
                // The same proposal again, under another message ID.
                Occurred::Proposed(number) if number == u64::from(self.model.number) => {}
                Occurred::Proposed(number) => {
                    let can = self.model.can_propose();
                    self.must(can, "an attempt that the model can't begin");
                    self.act(Action::Propose);
                    self.must(u64::from(self.model.number) == number, "another number");
                }
            }
        }
        for held in &self.world.manual.as_ref().unwrap().held {
            if held.kind == MessageType::Propose && !self.proposes.iter().any(|(id, _)| *id == held.id) {
                let number = WirePropose::parse(&held.body).unwrap().epoch.0;
                let instance = u8::try_from(held.from_instance).unwrap();
                self.proposes.push((held.id, (instance, u8::try_from(number).unwrap())));
            }
        }
        for held in &self.world.manual.as_ref().unwrap().held {
            if held.kind == MessageType::Accept && !self.accepts.iter().any(|a| a.2 == held.body) {
                let number = Accept::parse(&held.body).unwrap().0.epoch.0;
                self.accepts.push((held.from_instance, number, held.body.clone()));
            }
        }
        let instances = [self.world.sides[0].instance, self.world.sides[1].instance];
        let unknown = self.world.manual.as_ref().unwrap().held.iter().find(|held| {
            held.from_instance == instances[held.from]
                && held.to_instance == instances[held.from ^ 1]
                && !self.seen.contains(&(held.from, held.id))
                && self.message(held).is_none()
        });
        let unknown =
            unknown.map(|held| format!("side {} said {:?}, the model did not", held.from, held.kind));
        self.must(unknown.is_none(), &unknown.clone().unwrap_or_default());
        let said: Vec<_> = self.world.manual.as_ref().unwrap().held.iter().map(|h| (h.from, h.id)).collect();
        self.seen.extend(said);
        self.compare();
        self.steps += 1;
    }

    fn compare(&mut self) {
        for (side, sealing) in [(0, self.model.i.sealing), (1, self.model.r.sealing)] {
            let view = self.world.view(side);
            let number = sealing.map(|epoch| EpochNumber(epoch.number.into()));
            self.must(
                view.epoch == number,
                &format!("side {side} is in epoch {:?}, the model in {number:?}", view.epoch),
            );
        }
        let flows = |side| matches!(self.world.state(side), PeerState::Up | PeerState::Degraded);
        self.agreed += u64::from(self.model.settled() && flows(0) && flows(1));
    }

    fn step(&mut self) {
        let (messages, packets) = (self.manual().held.len(), self.manual().data.len());
        match below(21, &mut self.rng) {
            0..=9 if messages > 0 => {
                let at = below(messages, &mut self.rng);
                let held = self.manual().held.remove(at);
                // Sessions of instances before the last one may be forgotten.
                let forgotten = held.from_instance + 1 < self.world.sides[held.from].instance;
                if forgotten || chance(50, &mut self.rng) {
                    return; // lost; the channel retransmits it
                }
                let Some(message) = self.message(&held) else { return };
                self.world.release(&held);
                self.act(Action::Deliver(message));
                self.settle(MS * 20);
            }
            10 | 11 if packets > 0 => {
                let at = below(packets, &mut self.rng);
                let held = self.manual().data.remove(at);
                let Some(message) = self.data_message(&held) else { return };
                self.world.release_data(held);
                self.act(Action::Deliver(message));
                self.settle(MS * 20);
            }
            12..=14 => {
                let side = below(2, &mut self.rng);
                let waits = [
                    matches!(self.model.attempt, Attempt::Installing { .. }),
                    self.model.pending.as_ref().is_some_and(|p| !p.installed),
                ];
                self.world.release_lanes(side);
                if waits[side] {
                    self.act(Action::LanesOf(if side == 0 { To::Initiator } else { To::Responder }));
                }
                self.settle(MS * 20);
            }
            15 | 16
                if !self.bounds.turns && self.model.knows_each_other() && self.model.i.keys.is_empty() =>
            {
                self.key()
            }
            17 => {
                self.trace.push("the operator wants an epoch".to_owned());
                self.world.rekey(0);
                self.settle(MS * 20);
            }
            20 if chance(300, &mut self.rng) => {
                let side = below(2, &mut self.rng);
                if self.bounds.turns {
                    let policy = &mut self.world.sites[side].policy;
                    *policy = match policy {
                        QkdPolicy::Required => QkdPolicy::Preferred,
                        _ => QkdPolicy::Required,
                    };
                }
                self.act(Action::Reload(if side == 0 { To::Initiator } else { To::Responder }));
                self.world.reconfigure(side);
                self.settle(MS * 20);
            }
            18 if chance(300, &mut self.rng) => {
                self.trace.push("5 s".to_owned());
                self.settle(S * 5 + MS * 10);
            }
            19 if !self.bounds.turns && chance(300, &mut self.rng) => {
                let side = below(2, &mut self.rng);
                self.world.restart(side);
                self.act(Action::Restart(if side == 0 { To::Initiator } else { To::Responder }));
                self.settle(S + S / 2);
            }
            _ => {}
        }
    }

    /// Lets the KMEs work for a while.
    fn key(&mut self) {
        self.world.kms[0].up = [true; 2];
        self.world.on_kms_recovered(0);
        self.world.on_kms_recovered(1);
        let held = |w: &World| (0..2).all(|side| w.view(side).qkd_stock == Some(1));
        let came = self.world.run_until(S * 3, held);
        self.world.kms[0].up = [false; 2];
        if came {
            self.act(Action::Key);
        }
        self.settle(MS * 20);
    }
}

/// Returns the number of steps that both did, and how many of them ended in an agreed epoch.
fn walks(seeds: u64, bounds: &Bounds) -> (u64, u64) {
    let (mut steps, mut agreed) = (0, 0);
    for seed in 0..seeds {
        let mut walk = Walk::new(seed, bounds.clone());
        walk.settle(MS);
        for _ in 0..120 {
            walk.step();
        }
        steps += walk.steps;
        agreed += walk.agreed;
    }
    println!("{steps} steps alike, {agreed} of them in an agreed epoch");
    (steps, agreed)
}

#[test]
fn real_peers_do_what_the_model_does() {
    let (steps, agreed) = walks(60, &WIDE);
    assert!(steps > 3000 && agreed > 200, "{steps} steps, {agreed} in an agreed epoch");
}

#[test]
fn real_peers_do_what_the_model_does_while_policies_change() {
    let (steps, agreed) = walks(40, &TURNS);
    assert!(steps > 1200 && agreed > 200, "{steps} steps, {agreed} in an agreed epoch");
}
