//! The search through all states within the bounds, and the properties that must hold in each state.

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::{Action, Attempt, Bounds, Common, Epoch, State, To};

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.required)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.network.iter().cloned().map(Action::Deliver));
        if state.can_propose() && state.number < self.attempts {
            actions.push(Action::Propose);
        }
        match state.attempt {
            Attempt::Proposed(_) => actions.push(Action::GiveUp),
            Attempt::Installing { .. } => actions.push(Action::LanesOf(To::Initiator)),
            Attempt::Idle => {}
        }
        if state.pending.as_ref().is_some_and(|p| !p.installed) {
            actions.push(Action::LanesOf(To::Responder));
        }
        actions.extend([Action::Repeat(To::Initiator), Action::Repeat(To::Responder)]);
        if state.given < self.keys && state.knows_each_other() {
            actions.push(Action::Key);
        }
        for (side, of) in [(To::Initiator, &state.i), (To::Responder, &state.r)] {
            if of.hello.counter < self.hellos {
                actions.push(Action::Reload(side));
            }
        }
        if state.restarts < self.restarts {
            actions.extend([Action::Restart(To::Initiator), Action::Restart(To::Responder)]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Deliver(message) => next.deliver(&message, self),
            Action::Propose => next.propose(),
            Action::GiveUp => next.attempt = Attempt::Idle,
            Action::LanesOf(to) => next.lanes_of(to),
            Action::Repeat(to) => next.repeat(to),
            Action::Key => next.key(),
            Action::Reload(which) => next.reload(which, self),
            Action::Restart(which) => next.restart(which),
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("agreement", |_, s: &State| match (s.i.sealing, s.r.sealing) {
                (Some(a), Some(b)) => {
                    (a.initiator, a.responder, a.number) != (b.initiator, b.responder, b.number) || a == b
                }
                _ => true,
            }),
            Property::always("no key twice", |_, s: &State| s.broken.is_none()),
            Property::always("hitless", |_, s: &State| {
                let opens = |sealing: Option<Epoch>, of: fn(&Epoch) -> u8, other: &Common| {
                    sealing.is_none_or(|e| {
                        of(&e) != other.hello.instance
                            || other.opening.contains(&e)
                            || other.ended.contains(&e)
                    })
                };
                opens(s.i.sealing, |e| e.responder, &s.r) && opens(s.r.sealing, |e| e.initiator, &s.i)
            }),
            Property::always("required never without QKD", |_, s: &State| {
                let breaks =
                    |side: &Common| side.hello.required && side.sealing.is_some_and(|e| e.without_qkd);
                !breaks(&s.i) && !breaks(&s.r)
            }),
            Property::always("progress", |bounds: &Self, s: &State| s.recovers(bounds)),
            Property::sometimes("an agreed epoch", |_, s: &State| s.settled()),
            Property::sometimes("an agreed epoch after a restart", |_, s: &State| {
                s.restarts > 0 && s.settled()
            }),
            Property::sometimes("an epoch that rests on an earlier one", |_, s: &State| {
                s.settled() && s.last.as_ref().is_some_and(|(of, _)| of.chain.is_some())
            }),
        ]
    }
}

/// Searches all states within the bounds. `QVPN_MODEL_DEPTH` overrides `depth`.
fn search(name: &str, bounds: Bounds, depth: usize) {
    let depth = std::env::var("QVPN_MODEL_DEPTH").map_or(depth, |text| text.parse().unwrap());
    let begun = std::time::Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = bounds.checker().threads(cores).target_max_depth(depth).spawn_bfs().join();
    println!(
        "soak: model, {name}: {} states, {} of them different, up to {} steps deep, in {} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs()
    );
    checker.assert_properties();
}

const QUICK: Bounds =
    Bounds { required: true, turns: false, attempts: 2, restarts: 1, keys: 2, hellos: 1, sessions: true };
/// Reloads make the policy stricter and laxer again while epochs without QKD start and end.
const TURNS: Bounds = Bounds { required: false, turns: true, hellos: 2, ..QUICK };

#[test]
fn every_order_of_events_keeps_the_properties() {
    search("required", QUICK, 17);
    search("preferred", Bounds { required: false, ..QUICK }, 14);
    search("preferred, required now and then", TURNS, 13);
}

#[test]
#[ignore = "a long run, for `make soak`"]
fn every_order_of_events_deeper() {
    let deep = Bounds { attempts: 3, restarts: 2, keys: 3, hellos: 2, ..QUICK };
    search("required", deep.clone(), 15);
    search("preferred", Bounds { required: false, ..deep.clone() }, 13);
    search("preferred, required now and then", Bounds { required: false, turns: true, ..deep }, 13);
}

/// Shows that the check can fail: without the rule about older sessions, the search finds the known defect.
#[test]
fn without_the_rule_about_sessions_a_late_hello_costs_packets() {
    let careless = Bounds { sessions: false, ..QUICK };
    let stop = HasDiscoveries::AnyFailures;
    let checker = careless.checker().finish_when(stop).target_max_depth(14).spawn_bfs().join();
    println!("{} states until it was found", checker.unique_state_count());
    let path = checker.discovery("hitless").or_else(|| checker.discovery("progress"));
    println!("{:#?}", path.expect("the search finds it").into_actions());
}
