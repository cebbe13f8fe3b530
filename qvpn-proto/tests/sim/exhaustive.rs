//! A model of the exchange for an exhaustive search: two sides, a network that loses, repeats and reorders
//! everything, KMEs that give a key or do not, and restarts at any moment, up to a bound. The model has no
//! time: each timeout may happen at any moment.
//!
//! A key in the model is only the epoch that it belongs to. Messages have the code's own [`MessageType`],
//! and refusals its own [`RejectReason`]s.
//!
//! Messages to a side that restarted are lost with its sessions. Messages that the restarted side sent
//! before may still arrive at any later time. The number of an instance stands for the numbers of its
//! sessions: a later instance has later sessions. If `Hello`s of older sessions were accepted, the search
//! would find how traffic is lost (`docs/decisions/0016-late-hellos.md`).

mod conform;
mod search;

use std::collections::{BTreeMap, BTreeSet};

use qvpn_proto::wire::{MessageType, RejectReason};

/// A `Hello`: the instance that sent it, its counter, and whether its sender requires QKD.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
struct HelloId {
    instance: u8,
    counter: u8,
    required: bool,
}

/// The keys of one epoch: both instances, the attempt's number, and which of the responder's answers made
/// them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Epoch {
    initiator: u8,
    responder: u8,
    number: u8,
    answer: u8,
    /// Whether it has no QKD key.
    without_qkd: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Propose {
    hellos: (HelloId, HelloId),
    number: u8,
    qkd: Option<u8>,
    chain: Option<Epoch>,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Body {
    Hello(HelloId),
    Propose(Propose),
    Accept {
        of: Propose,
        epoch: Epoch,
    },
    Confirm(Epoch),
    Reject {
        of: Propose,
        reason: RejectReason,
    },
    /// An empty packet of the data path.
    Data(Epoch),
}

impl Body {
    fn kind(&self) -> Option<MessageType> {
        match self {
            Self::Hello(_) => Some(MessageType::Hello),
            Self::Propose(_) => Some(MessageType::Propose),
            Self::Accept { .. } => Some(MessageType::Accept),
            Self::Confirm(_) => Some(MessageType::Confirm),
            Self::Reject { .. } => Some(MessageType::Reject),
            Self::Data(_) => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum To {
    Initiator,
    Responder,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Message {
    to: To,
    /// The instance whose session carries it.
    instance: u8,
    body: Body,
}

/// The state that both roles have.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Common {
    hello: HelloId,
    knows: Option<HelloId>,
    sealing: Option<Epoch>,
    opening: BTreeSet<Epoch>,
    /// Epochs that a stricter policy ended at this side.
    ended: BTreeSet<Epoch>,
    /// All epochs in which this instance ever sealed.
    sealed: BTreeSet<Epoch>,
    chain: Option<Epoch>,
    /// QKD keys that the peer reported as held, or that this side holds.
    keys: BTreeSet<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Attempt {
    Idle,
    Proposed(Propose),
    Installing { epoch: Epoch, qkd: Option<u8> },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Pending {
    epoch: Epoch,
    qkd: Option<u8>,
    installed: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    i: Common,
    r: Common,
    attempt: Attempt,
    number: u8,
    confirming: Option<Epoch>,
    pending: Option<Pending>,
    last: Option<(Propose, Epoch)>,
    pair: Option<(HelloId, HelloId)>,
    highest: u8,
    answers: u8,
    network: BTreeSet<Message>,
    given: u8,
    restarts: u8,
    used: BTreeMap<u8, Epoch>,
    broken: Option<&'static str>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Action {
    /// Delivers a message, which may be delivered again.
    Deliver(Message),
    Propose,
    /// Ends the attempt after its 5 s.
    GiveUp,
    /// Reports that the lanes have installed the opening keys.
    LanesOf(To),
    /// Sends unanswered messages again, in the current session.
    Repeat(To),
    /// Delivers one more key from both KMEs. Each side knows that the other holds it.
    Key,
    /// Reloads the config of a side, which changes its `Hello`.
    Reload(To),
    Restart(To),
}

/// The limits of the search.
#[derive(Clone)]
struct Bounds {
    required: bool,
    /// Whether each reload of a side switches its QKD requirement on or off.
    turns: bool,
    attempts: u8,
    restarts: u8,
    keys: u8,
    hellos: u8,
    /// Whether a `Hello` of another instance in an older session is ignored.
    sessions: bool,
}

impl Common {
    fn new(instance: u8, required: bool) -> Self {
        Self { hello: HelloId { instance, counter: 0, required }, ..Self::default() }
    }

    /// Whether this side requires QKD, or the peer by its last `Hello`.
    fn qkd_only(&self) -> bool {
        self.hello.required || self.knows.is_some_and(|known| known.required)
    }
}

impl State {
    fn new(required: bool) -> Self {
        let side = || Common::new(1, required);
        let mut state = Self {
            i: side(),
            r: side(),
            attempt: Attempt::Idle,
            number: 0,
            confirming: None,
            pending: None,
            last: None,
            pair: None,
            highest: 0,
            answers: 0,
            network: BTreeSet::new(),
            given: 0,
            restarts: 0,
            used: BTreeMap::new(),
            broken: None,
        };
        state.send(To::Responder, Body::Hello(side().hello));
        state.send(To::Initiator, Body::Hello(side().hello));
        state
    }

    fn send(&mut self, to: To, body: Body) {
        let instance = if to == To::Initiator { self.i.hello.instance } else { self.r.hello.instance };
        self.network.insert(Message { to, instance, body });
    }

    fn deliver(&mut self, message: &Message, bounds: &Bounds) {
        match (&message.to, message.body.clone()) {
            (To::Initiator, Body::Hello(hello)) => self.initiator_hears_hello(hello, bounds),
            (To::Responder, Body::Hello(hello)) => self.responder_hears_hello(hello, bounds),
            (_, Body::Propose(propose)) => {
                if let Err(reason) = self.try_propose(&propose) {
                    self.send(To::Initiator, Body::Reject { of: propose, reason });
                }
            }
            (_, Body::Accept { of, epoch }) => self.take_accept(&of, epoch),
            (_, Body::Confirm(epoch)) => {
                if self.pending.as_ref().is_some_and(|p| p.epoch == epoch && p.installed) {
                    self.confirm_pending();
                }
                if self.r.sealing.is_some_and(|sealing| sealing.number == epoch.number) {
                    self.announce(To::Initiator);
                }
            }
            (_, Body::Reject { of, reason }) => self.take_reject(&of, reason, bounds),
            (To::Responder, Body::Data(epoch)) => {
                let opens = self.r.opening.contains(&epoch);
                if opens && self.pending.as_ref().is_some_and(|p| p.epoch == epoch) {
                    self.confirm_pending();
                }
            }
            (To::Initiator, Body::Data(epoch)) => {
                let newest = self.confirming.is_some_and(|c| epoch.number >= c.number);
                if self.i.opening.contains(&epoch) && newest {
                    self.confirming = None;
                    self.i.opening.retain(|e| e.number >= epoch.number);
                }
            }
        }
    }

    fn initiator_hears_hello(&mut self, hello: HelloId, bounds: &Bounds) {
        let Some(restarted) = hears(&mut self.i, hello, bounds) else { return };
        if restarted {
            self.send(To::Responder, Body::Hello(self.i.hello));
            if let Attempt::Installing { epoch, .. } = self.attempt {
                self.i.opening.remove(&epoch);
            }
            self.attempt = Attempt::Idle;
            self.i.keys.clear();
            self.confirming = None;
        }
        self.stop_weak_epochs(To::Initiator);
    }

    fn responder_hears_hello(&mut self, hello: HelloId, bounds: &Bounds) {
        let Some(restarted) = hears(&mut self.r, hello, bounds) else { return };
        if restarted {
            self.send(To::Initiator, Body::Hello(self.r.hello));
            self.last = None;
            if let Some(pending) = self.pending.take() {
                self.r.opening.remove(&pending.epoch);
            }
            self.r.keys.clear();
        }
        self.stop_weak_epochs(To::Responder);
    }

    /// Ends what breaks a policy that became stricter, and nothing else: what is unfinished, and the epochs
    /// in force if the policy is the side's own.
    fn stop_weak_epochs(&mut self, which: To) {
        let (side, under_way) = match which {
            To::Initiator => match self.attempt {
                Attempt::Installing { epoch, .. } => (&mut self.i, Some(epoch)),
                _ => (&mut self.i, None),
            },
            To::Responder => (&mut self.r, self.pending.as_ref().map(|p| p.epoch)),
        };
        if !side.qkd_only() {
            return;
        }
        side.ended.extend(under_way.filter(|epoch| epoch.without_qkd));
        if side.hello.required {
            side.ended.extend(side.opening.iter().copied().filter(|epoch| epoch.without_qkd));
            side.opening.retain(|epoch| !epoch.without_qkd);
            side.sealing = side.sealing.filter(|epoch| !epoch.without_qkd);
        }
        if which == To::Initiator {
            self.confirming = self.confirming.filter(|epoch| !epoch.without_qkd);
            if matches!(&self.attempt, Attempt::Proposed(propose) if propose.qkd.is_none()) {
                self.attempt = Attempt::Idle;
            }
        }
    }

    fn try_propose(&mut self, propose: &Propose) -> Result<(), RejectReason> {
        if self.r.knows.map(|known| (known, self.r.hello)) != Some(propose.hellos) {
            if propose.hellos.1 != self.r.hello {
                self.send(To::Initiator, Body::Hello(self.r.hello));
            }
            return Err(RejectReason::Stale);
        }
        if let Some((last, epoch)) = self.last.clone().filter(|(last, _)| last == propose) {
            if self.pending.as_ref().is_none_or(|p| p.installed) {
                self.send(To::Initiator, Body::Accept { of: last, epoch });
            }
            return Ok(());
        }
        if self.pair != Some(propose.hellos) {
            (self.pair, self.highest) = (Some(propose.hellos), 0);
        }
        if propose.number <= self.highest {
            return Err(RejectReason::Stale);
        }
        if let Some(chain) = propose.chain {
            if self.pending.as_ref().is_some_and(|p| p.epoch == chain) {
                self.confirm_pending();
            } else if self.r.chain != Some(chain) {
                return Err(RejectReason::Chain);
            }
        }
        match propose.qkd {
            None if self.r.qkd_only() => return Err(RejectReason::Policy),
            None if !self.r.keys.is_empty() => return Err(RejectReason::Policy),
            Some(key) if !self.r.keys.contains(&key) => return Err(RejectReason::UnknownKeyId),
            _ => {}
        }
        self.highest = propose.number;
        self.answers += 1;
        let epoch = Epoch {
            initiator: propose.hellos.0.instance,
            responder: self.r.hello.instance,
            number: propose.number,
            answer: self.answers,
            without_qkd: propose.qkd.is_none(),
        };
        self.last = Some((propose.clone(), epoch));
        self.pending = Some(Pending { epoch, qkd: propose.qkd, installed: false });
        Ok(())
    }

    fn confirm_pending(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        self.r.chain = Some(pending.epoch);
        if self.r.ended.contains(&pending.epoch) {
            return;
        }
        self.use_up(pending.qkd, pending.epoch);
        if let Some(key) = pending.qkd {
            self.r.keys.remove(&key);
        }
        let epoch = pending.epoch;
        seal(&mut self.r, epoch, &mut self.broken);
        self.r.opening.retain(|e| e.answer >= epoch.answer);
        self.announce(To::Initiator);
    }

    /// Sends an empty packet in the newest epoch.
    fn announce(&mut self, to: To) {
        let sealing = if to == To::Initiator { self.r.sealing } else { self.i.sealing };
        if let Some(epoch) = sealing {
            self.send(to, Body::Data(epoch));
        }
    }

    fn use_up(&mut self, key: Option<u8>, epoch: Epoch) {
        if let Some(key) = key
            && self.used.insert(key, epoch).is_some_and(|before| before != epoch)
        {
            self.broken = Some("a QKD key went into two epochs");
        }
    }

    fn take_accept(&mut self, of: &Propose, epoch: Epoch) {
        match &self.attempt {
            // The confirmation covers the `Hello`s that the proposal named, even if another one arrived
            // meanwhile.
            Attempt::Proposed(propose) if propose == of => {
                if let Some(key) = of.qkd {
                    self.i.keys.remove(&key);
                }
                self.attempt = Attempt::Installing { epoch, qkd: of.qkd };
            }
            Attempt::Proposed(_) => {}
            _ => self.repeat_confirm(),
        }
    }

    fn repeat_confirm(&mut self) {
        if let Some(epoch) = self.confirming {
            self.send(To::Responder, Body::Confirm(epoch));
        }
    }

    fn take_reject(&mut self, of: &Propose, reason: RejectReason, bounds: &Bounds) {
        if !matches!(&self.attempt, Attempt::Proposed(propose) if propose == of) {
            return;
        }
        self.attempt = Attempt::Idle;
        match reason {
            RejectReason::Chain => self.i.chain = None,
            RejectReason::UnknownKeyId => {
                self.i.keys.retain(|key| Some(*key) != of.qkd);
            }
            RejectReason::Stale if self.i.hello.counter < bounds.hellos => {
                self.i.hello.counter += 1;
                self.send(To::Responder, Body::Hello(self.i.hello));
            }
            _ => {}
        }
    }

    fn can_propose(&self) -> bool {
        let key = !self.i.keys.is_empty() || !self.i.qkd_only();
        self.attempt == Attempt::Idle && self.i.knows.is_some() && key
    }

    fn propose(&mut self) {
        let Some(knows) = self.i.knows else { return };
        self.number += 1;
        let propose = Propose {
            hellos: (self.i.hello, knows),
            number: self.number,
            qkd: self.i.keys.first().copied(),
            chain: self.i.chain,
        };
        self.attempt = Attempt::Proposed(propose.clone());
        self.send(To::Responder, Body::Propose(propose));
    }

    fn lanes_of(&mut self, to: To) {
        if to == To::Responder {
            if let Some(pending) = &mut self.pending
                && !std::mem::replace(&mut pending.installed, true)
                && !self.r.ended.contains(&pending.epoch)
            {
                self.r.opening.insert(pending.epoch);
                if let Some((of, epoch)) = self.last.clone() {
                    self.send(To::Initiator, Body::Accept { of, epoch });
                }
            }
            return;
        }
        let Attempt::Installing { epoch, qkd } = self.attempt.clone() else { return };
        self.attempt = Attempt::Idle;
        if self.i.ended.contains(&epoch) {
            return;
        }
        self.i.opening.insert(epoch);
        self.i.chain = Some(epoch);
        self.use_up(qkd, epoch);
        seal(&mut self.i, epoch, &mut self.broken);
        self.confirming = Some(epoch);
        self.send(To::Responder, Body::Confirm(epoch));
        self.announce(To::Responder);
    }

    fn repeat(&mut self, to: To) {
        if to == To::Responder {
            // The responder's unanswered message is its `Hello`, until it is acknowledged.
            self.send(To::Initiator, Body::Hello(self.r.hello));
            return;
        }
        self.send(To::Responder, Body::Hello(self.i.hello));
        if let Attempt::Proposed(propose) = self.attempt.clone() {
            self.send(To::Responder, Body::Propose(propose));
        }
        self.repeat_confirm();
    }

    fn key(&mut self) {
        self.given += 1;
        self.i.keys.insert(self.given);
        self.r.keys.insert(self.given);
    }

    fn knows_each_other(&self) -> bool {
        self.i.knows == Some(self.r.hello) && self.r.knows == Some(self.i.hello)
    }

    fn reload(&mut self, which: To, bounds: &Bounds) {
        let (side, other) = match which {
            To::Initiator => (&mut self.i, To::Responder),
            To::Responder => (&mut self.r, To::Initiator),
        };
        side.hello.counter += 1;
        side.hello.required ^= bounds.turns;
        let hello = side.hello;
        if let (To::Initiator, Attempt::Proposed(_)) = (which, &self.attempt) {
            self.attempt = Attempt::Idle;
        }
        self.send(other, Body::Hello(hello));
        self.stop_weak_epochs(which);
    }

    fn restart(&mut self, which: To) {
        self.restarts += 1;
        self.network.retain(|message| message.to != which);
        if which == To::Initiator {
            self.i = Common::new(self.i.hello.instance + 1, self.i.hello.required);
            (self.attempt, self.number, self.confirming) = (Attempt::Idle, 0, None);
            self.send(To::Responder, Body::Hello(self.i.hello));
        } else {
            self.r = Common::new(self.r.hello.instance + 1, self.r.hello.required);
            (self.pending, self.last, self.pair) = (None, None, None);
            (self.highest, self.answers) = (0, 0);
            self.send(To::Initiator, Body::Hello(self.r.hello));
        }
    }

    /// Whether both sides seal with the keys of one epoch.
    fn settled(&self) -> bool {
        self.i.sealing.is_some()
            && self.i.sealing == self.r.sealing
            && self
                .i
                .sealing
                .is_some_and(|e| (e.initiator, e.responder) == (self.i.hello.instance, self.r.hello.instance))
    }

    /// Whether an agreed epoch follows once the network delivers everything and the KMEs work.
    fn recovers(&self, bounds: &Bounds) -> bool {
        let mut state = self.clone();
        let bounds = Bounds { hellos: u8::MAX, ..bounds.clone() };
        state.network.clear();
        for round in 0..24 {
            if state.settled() {
                return true;
            }
            state.repeat(To::Initiator);
            state.repeat(To::Responder);
            for _ in 0..3 {
                for message in std::mem::take(&mut state.network) {
                    state.deliver(&message, &bounds);
                }
                state.lanes_of(To::Responder);
                state.lanes_of(To::Initiator);
            }
            if state.settled() {
                return true;
            }
            if round % 2 == 1 {
                state.attempt = Attempt::Idle;
            }
            if state.knows_each_other() && state.i.keys.is_empty() {
                state.key();
            }
            if state.can_propose() {
                state.propose();
            }
        }
        false
    }
}

/// Returns whether a new `Hello` is from an instance not seen before; `None` if the `Hello` is not new.
fn hears(side: &mut Common, hello: HelloId, bounds: &Bounds) -> Option<bool> {
    let old = |known: HelloId| {
        (known.instance == hello.instance && hello.counter <= known.counter)
            || (bounds.sessions && hello.instance < known.instance)
    };
    if side.knows.is_some_and(old) {
        return None;
    }
    let restarted = side.knows.is_none_or(|known| known.instance != hello.instance);
    side.knows = Some(hello);
    Some(restarted)
}

fn seal(side: &mut Common, epoch: Epoch, broken: &mut Option<&'static str>) {
    if !side.sealed.insert(epoch) {
        *broken = Some("a key was installed for sealing twice");
    }
    side.sealing = Some(epoch);
}
