//! Several KMEs for one peer: order, failover, back-off after failures, and which KMEs a key ID is sent to.
//! The sources are scripted and the clock is virtual; one test at the end uses real servers.
#![allow(clippy::unwrap_used)] // A test program's helpers may panic as its tests do.

mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kms_client::KmsErrorKind as K;
use kms_client::{
    Api, BoxFuture, DueProbe, KeyRef, KeySource, Kme, KmeEvent, KmeSet, KmeState, KmsClient, KmsError, Link,
    MAX_DELAY_NS, NewKeysRequest, Operation, Phase, QkdKey, SetError, TlsFault,
};
use qvpn_secret::SecretBuf;
use qvpn_types::{KeyId, SaeId};
use support::sae;

const SECOND: u64 = 1_000_000_000;

/// What a scripted source does at the next call of an operation; without a script it works.
#[derive(Clone)]
enum Act {
    Fail(K),
    Hang,
}

#[derive(Default)]
struct Script {
    calls: Vec<String>,
    status: VecDeque<Act>,
    enc: VecDeque<Act>,
    dec: VecDeque<Act>,
    /// IDs that `dec_keys` knows; `None` means all.
    known: Option<Vec<String>>,
}

struct Scripted {
    name: &'static str,
    link: Link,
    script: Arc<Mutex<Script>>,
}

impl Scripted {
    async fn act(&self, act: Option<Act>, operation: Operation, peer: &SaeId) -> Result<(), KmsError> {
        match act {
            None => Ok(()),
            Some(Act::Fail(kind)) => Err(KmsError::new(kind, self.name, operation, peer.as_str())),
            Some(Act::Hang) => std::future::pending().await,
        }
    }

    fn key(&self, id: &str) -> QkdKey {
        QkdKey {
            id: KeyId::new(id).unwrap(),
            secret: SecretBuf::take(&mut [7; 32]),
            source_kme: self.link.source_kme.clone(),
            target_kme: self.link.target_kme.clone(),
            kme: self.name.to_owned(),
            api: Api::Etsi014,
        }
    }
}

impl KeySource for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn api(&self) -> Api {
        Api::Etsi014
    }

    fn url(&self) -> &str {
        "https://kme"
    }

    fn link<'a>(&'a self, peer: &'a SaeId) -> BoxFuture<'a, Result<Link, KmsError>> {
        Box::pin(async move {
            let act = {
                let mut script = self.script.lock().unwrap();
                script.calls.push(format!("status {peer}"));
                script.status.pop_front()
            };
            self.act(act, Operation::Status, peer).await?;
            Ok(self.link.clone())
        })
    }

    fn fetch_new<'a>(
        &'a self,
        peer: &'a SaeId,
        number: u32,
        size_bits: u32,
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(async move {
            let act = {
                let mut script = self.script.lock().unwrap();
                script.calls.push(format!("enc {peer} {number}x{size_bits}"));
                script.enc.pop_front()
            };
            self.act(act, Operation::EncKeys, peer).await?;
            Ok((0..number).map(|i| self.key(&format!("{}-{i}", self.name))).collect())
        })
    }

    fn fetch_by_ids<'a>(
        &'a self,
        peer: &'a SaeId,
        ids: &'a [KeyId],
    ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
        Box::pin(async move {
            let (act, known) = {
                let mut script = self.script.lock().unwrap();
                let names: Vec<_> = ids.iter().map(KeyId::as_str).collect();
                script.calls.push(format!("dec {peer} {}", names.join(",")));
                (script.dec.pop_front(), script.known.clone())
            };
            self.act(act, Operation::DecKeys, peer).await?;
            // As in the standard: one ID that isn't found makes the whole request fail.
            if known.is_some_and(|known| ids.iter().any(|id| !known.iter().any(|k| k == id.as_str()))) {
                return Err(KmsError::new(K::KeyNotFound, self.name, Operation::DecKeys, peer.as_str()));
            }
            Ok(ids.iter().map(|id| self.key(id.as_str())).collect())
        })
    }
}

async fn new_keys(set: &KmeSet, peer: &str, number: u32) -> Result<Vec<QkdKey>, SetError> {
    let request = NewKeysRequest { number, ..NewKeysRequest::default() };
    set.fetch_new(&sae(peer), request).await.map(|new| new.keys)
}

/// Two KMEs, `one` (A1 linked with B1) and `two` (A2 linked with B2), on a clock that stands still.
struct World {
    set: KmeSet,
    scripts: Vec<Arc<Mutex<Script>>>,
    events: Arc<Mutex<Vec<KmeEvent>>>,
    now: Arc<AtomicU64>,
}

impl World {
    fn new(links: &[(&'static str, &str, &str)]) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let now = Arc::new(AtomicU64::new(100 * SECOND));
        let mut scripts = Vec::new();
        let mut kmes = Vec::new();
        for (name, source, target) in links {
            let script = Arc::new(Mutex::new(Script::default()));
            scripts.push(Arc::clone(&script));
            let link = Link {
                source_kme: (*source).to_owned(),
                target_kme: (*target).to_owned(),
                stored_key_count: Some(25),
                max_key_per_request: Some(3),
            };
            let (events, now) = (Arc::clone(&events), Arc::clone(&now));
            kmes.push(Kme::with_clock(
                Box::new(Scripted { name, link, script }),
                Arc::new(move |event| events.lock().unwrap().push(event)),
                Arc::new(move || now.load(Ordering::SeqCst)),
            ));
        }
        Self { set: KmeSet::new(kmes), scripts, events, now }
    }

    fn two() -> Self {
        Self::new(&[("one", "A1", "B1"), ("two", "A2", "B2")])
    }

    fn script(&self, kme: usize) -> std::sync::MutexGuard<'_, Script> {
        self.scripts[kme].lock().unwrap()
    }

    fn calls(&self, kme: usize) -> Vec<String> {
        std::mem::take(&mut self.script(kme).calls)
    }

    fn sleep(&self, ns: u64) {
        self.now.fetch_add(ns, Ordering::SeqCst);
    }

    /// Returns the changes since the last call, and the requests with their outcomes.
    fn events(&self) -> Vec<String> {
        std::mem::take(&mut *self.events.lock().unwrap())
            .into_iter()
            .map(|event| match event {
                KmeEvent::Up { kme } => format!("{kme} up"),
                KmeEvent::Down { kme, error } => format!("{kme} down {}", error.kind().as_str()),
                KmeEvent::Answers { kme } => format!("{kme} answers"),
                KmeEvent::Requested { kme, operation, outcome, keys_lost, .. } => {
                    assert_eq!(keys_lost, 0);
                    format!("{kme} {operation} {outcome}")
                }
            })
            .collect()
    }

    async fn new_key_from(&self) -> String {
        let keys = new_keys(&self.set, "SITE-B", 1).await.unwrap();
        assert_eq!(keys.len(), 1);
        keys[0].kme.clone()
    }
}

fn key_ref(id: &str, source: &str, target: &str) -> KeyRef {
    KeyRef { id: KeyId::new(id).unwrap(), source_kme: source.to_owned(), target_kme: target.to_owned() }
}

#[tokio::test]
async fn the_first_one_that_works_is_asked_within_what_it_allows() {
    let world = World::two();
    let keys = new_keys(&world.set, "SITE-B", 5).await.unwrap();
    assert_eq!(keys.len(), 3, "max_key_per_request");
    assert_eq!(world.calls(0), ["status SITE-B", "enc SITE-B 3x256"]);
    new_keys(&world.set, "SITE-B", 2).await.unwrap();
    assert_eq!(world.calls(0), ["enc SITE-B 2x256"], "the link is remembered");
    new_keys(&world.set, "SITE-C", 1).await.unwrap();
    assert_eq!(world.calls(0), ["status SITE-C", "enc SITE-C 1x256"]);
    world.sleep(601 * SECOND);
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
    assert_eq!(world.calls(0), ["status SITE-B", "enc SITE-B 1x256"], "but not for ever");
    assert!(world.calls(1).is_empty());
    assert_eq!(world.events()[..3], ["one up", "one status ok", "one enc_keys ok"]);
}

#[tokio::test]
async fn each_failure_leads_to_the_next_kme() {
    for (kind, down) in [
        (K::Unreachable, true),
        (K::Tls(TlsFault::Expired), true),
        (K::IdentityRefused, true),
        (K::Timeout(Phase::Tls), true),
        (K::LostKeys(Phase::Answer), true),
        (K::ServerFault, true),
        (K::Exhausted, false),
        (K::BadRequest, false),
    ] {
        let world = World::two();
        world.script(0).enc.push_back(Act::Fail(kind));
        assert_eq!(world.new_key_from().await, "two", "{kind:?}");
        assert_eq!(world.calls(0), ["status SITE-B", "enc SITE-B 1x256"], "asked once");
        let state = world.set.health()[0].state;
        assert_eq!(state, if down { KmeState::Down } else { KmeState::Up }, "{kind:?}");
        // A KME that only had no key is the preferred one again at once.
        assert_eq!(world.new_key_from().await, if down { "two" } else { "one" }, "{kind:?}");
    }
}

#[tokio::test]
async fn a_kme_that_failed_is_probed_without_taking_keys() {
    let world = World::two();
    world.new_key_from().await;
    world.events();
    world.calls(0);
    world.script(0).enc.push_back(Act::Fail(K::Unreachable));
    world.script(0).status.extend([Act::Fail(K::Unreachable), Act::Fail(K::Unreachable)]);
    assert_eq!(world.new_key_from().await, "two");
    assert_eq!(
        world.events(),
        ["one down unreachable", "one enc_keys unreachable", "two up", "two status ok", "two enc_keys ok"]
    );
    for _ in 0..2 {
        world.sleep(SECOND - 1);
        world.calls(0);
        assert_eq!(world.new_key_from().await, "two");
        assert!(world.calls(0).is_empty(), "it rests a second");
        world.sleep(1);
        assert_eq!(world.new_key_from().await, "two");
        assert_eq!(world.calls(0), ["status SITE-B"]);
    }
    world.events();
    world.sleep(SECOND);
    assert_eq!(world.new_key_from().await, "one");
    assert_eq!(world.events(), ["one up", "one answers", "one status ok", "one enc_keys ok"]);
    assert_eq!(world.set.health()[0].state, KmeState::Up);
}

#[tokio::test]
async fn a_kme_that_answers_status_and_hangs_on_keys_is_asked_less_and_less_often() {
    let world = World::two();
    let mut rests = Vec::new();
    for _ in 0..8 {
        world.script(0).enc.push_back(Act::Fail(K::LostKeys(Phase::Answer)));
        assert_eq!(world.new_key_from().await, "two");
        let mut rest = 0;
        // The KME would be asked for keys again as soon as a probe succeeds, so each failure counts as one
        // back-off.
        loop {
            world.calls(0);
            world.script(0).status.push_front(Act::Fail(K::BadRequest));
            let probed =
                world.set.kmes()[0].probe(&sae("SITE-B")).await.err().unwrap().kind() == K::BadRequest;
            world.script(0).status.clear();
            if probed {
                break;
            }
            world.sleep(SECOND);
            rest += SECOND;
        }
        rests.push(rest / SECOND);
    }
    assert_eq!(rests, [1, 2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(MAX_DELAY_NS, 30 * SECOND);
}

#[tokio::test]
async fn a_probe_finds_a_recovered_kme_within_a_second_and_notifies_all_peers() {
    let world = World::new(&[("one", "A", "B")]);
    let kme = Arc::clone(&world.set.kmes()[0]);
    let saes = ["SITE-B", "SITE-C"];
    let [b, c] = saes.map(sae);
    let links = [&b, &c];
    let due = |after_failure, peer: &str| Some(DueProbe { peer: sae(peer), after_failure });
    assert_eq!(kme.due_probe(&[]), None);
    assert_eq!(kme.due_probe(&links), due(false, "SITE-B"), "nobody asked it yet");
    assert_eq!(kme.due_probe(&links), None);
    world.sleep(60 * SECOND);
    assert_eq!(kme.due_probe(&links), due(false, "SITE-C"), "nor for a minute");

    // The KME is gone for both peers, although only one of them has noticed it.
    world.script(0).enc.push_back(Act::Fail(K::Unreachable));
    for peer in saes {
        new_keys(&world.set, peer, 1).await.err().unwrap();
    }
    world.events();
    for _ in 0..20 {
        assert_eq!(kme.due_probe(&links), None, "it rests");
        world.sleep(SECOND);
        let probe = kme.due_probe(&links).unwrap();
        assert!(probe.after_failure);
        world.script(0).status.push_back(Act::Fail(K::Unreachable));
        kme.probe(&probe.peer).await.unwrap_err();
    }
    world.events();
    world.sleep(SECOND);
    let probe = kme.due_probe(&links).unwrap();
    kme.probe(&probe.peer).await.unwrap();
    assert_eq!(world.events(), ["one up", "one answers", "one status ok"]);
    assert_eq!(world.new_key_from().await, "one");

    // It answers both, but badly: the links are probed one after the other, and the first that works closes
    // both breakers.
    for peer in saes {
        world.script(0).status.push_back(Act::Fail(K::ServerFault));
        world.sleep(700 * SECOND);
        new_keys(&world.set, peer, 1).await.err().unwrap();
    }
    assert_eq!(kme.health().state, KmeState::Down);
    world.sleep(SECOND);
    let first = kme.due_probe(&links).unwrap();
    world.script(0).status.push_back(Act::Fail(K::ServerFault));
    kme.probe(&first.peer).await.unwrap_err();
    world.sleep(SECOND / 5);
    let second = kme.due_probe(&links).unwrap();
    assert_ne!(first.peer, second.peer);
    world.events();
    kme.probe(&second.peer).await.unwrap();
    assert_eq!(world.events(), ["one up", "one answers", "one status ok"]);
    for peer in saes {
        new_keys(&world.set, peer, 1).await.unwrap();
        world.sleep(SECOND / 5);
    }
}

#[tokio::test]
async fn a_kme_whose_keys_failed_is_not_up_because_its_status_is_good() {
    let world = World::new(&[("one", "A", "B")]);
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
    world.script(0).enc.push_back(Act::Fail(K::LostKeys(Phase::Answer)));
    new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    world.sleep(SECOND);
    world.events();
    world.set.kmes()[0].probe(&sae("SITE-B")).await.unwrap();
    assert_eq!(world.events(), ["one answers", "one status ok"]);
    assert_eq!(world.set.health()[0].state, KmeState::Down);
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
    assert_eq!(world.set.health()[0].state, KmeState::Up);

    // A spare KME that nobody asks for keys isn't down forever.
    world.script(0).enc.push_back(Act::Fail(K::ServerFault));
    new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    world.sleep(61 * SECOND);
    world.set.kmes()[0].probe(&sae("SITE-B")).await.unwrap();
    assert_eq!(world.set.health()[0].state, KmeState::Up);
}

#[tokio::test]
async fn a_thousand_peers_do_not_overrun_a_kme() {
    let world = World::new(&[("one", "A", "B")]);
    let kme = Arc::clone(&world.set.kmes()[0]);
    world.script(0).status.extend(vec![Act::Hang; 16]);
    let peers: Vec<String> = (0..1000).map(|n| format!("SITE-{n}")).collect();
    let mut all = Vec::new();
    for peer in peers {
        let set = KmeSet::new(vec![Arc::clone(&kme)]);
        all.push(tokio::spawn(async move { new_keys(&set, &peer, 1).await.map(|keys| keys.len()) }));
    }
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(world.script(0).calls.len(), 16, "the others wait for their turn");
    all.drain(..16).for_each(|task| task.abort());
    for task in all {
        assert_eq!(task.await.unwrap().unwrap(), 1);
    }
}

#[tokio::test]
async fn one_peer_that_is_set_up_wrongly_does_not_cost_the_others() {
    let world = World::new(&[("one", "A", "B")]);
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
    world.calls(0);
    world.events();
    world.script(0).enc.push_back(Act::Fail(K::ServerFault));
    new_keys(&world.set, "SITE-C", 1).await.err().unwrap();
    assert_eq!(world.events(), ["one status ok", "one enc_keys server_fault"], "it isn't down");
    world.calls(0);

    let error = new_keys(&world.set, "SITE-C", 1).await.err().unwrap();
    assert!(error.to_string().contains("again in 1 s"), "{error}");
    assert!(world.calls(0).is_empty(), "that link rests");
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
    assert_eq!(world.calls(0), ["enc SITE-B 1x256"], "and the other one doesn't");

    // A KME that can't be reached backs off for all peers.
    world.script(0).enc.push_back(Act::Fail(K::Unreachable));
    new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    world.calls(0);
    for peer in ["SITE-B", "SITE-C", "SITE-D"] {
        let error = new_keys(&world.set, peer, 1).await.err().unwrap();
        assert_eq!(error.errors[0].kind(), K::Unreachable);
    }
    assert!(world.calls(0).is_empty());
    assert_eq!(world.set.health()[0].state, KmeState::Down);
}

#[tokio::test]
async fn when_no_kme_delivers_each_error_is_reported() {
    let world = World::two();
    world.script(0).enc.push_back(Act::Fail(K::Unreachable));
    world.script(1).enc.push_back(Act::Fail(K::Exhausted));
    let error = new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    let kinds: Vec<_> = error.errors.iter().map(KmsError::kind).collect();
    assert_eq!(kinds, [K::Unreachable, K::Exhausted]);
    assert!(error.is_exhausted());
    assert_eq!(error.keys_lost(), 0);
    let text = error.to_string();
    assert!(text.contains("KME one: enc_keys") && text.contains("KME two: enc_keys"), "{text}");

    // While it is unavailable, the health shows the cause and the time of the next probe.
    world.script(1).enc.push_back(Act::Fail(K::Exhausted));
    let error = new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    assert_eq!(error.errors[0].kind(), K::Unreachable);
    let text = error.errors[0].to_string();
    assert!(text.contains("again in 1 s") && text.contains("not reachable"), "{text}");

    let error = new_keys(&KmeSet::new(Vec::new()), "SITE-B", 1).await.err().unwrap();
    assert_eq!(error.errors[0].kind(), K::Config);
    assert!(error.errors[0].advice().contains("[[kms.kme]]"));
}

#[tokio::test]
async fn a_kme_without_a_usable_status_may_still_have_keys() {
    let world = World::two();
    world.script(0).status.push_back(Act::Fail(K::BadRequest));
    assert_eq!(world.new_key_from().await, "one");
}

#[tokio::test]
async fn an_id_is_asked_only_of_the_pair_that_issued_it() {
    // As the slave: our KMEs are B1 and B2, the other site's are A1 and A2. The third reports names in a
    // fixed order.
    let world = World::new(&[("one", "B1", "A1"), ("two", "B2", "A2"), ("three", "A3", "B3")]);
    let refs = [
        key_ref("x", "A2", "B2"),
        key_ref("y", "A1", "B1"),
        key_ref("z", "A3", "B3"),
        key_ref("w", "A1", "B1"),
    ];
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &refs, false).await;
    assert!(fetched.failed.is_empty());
    assert_eq!(world.calls(0), ["status SITE-A", "dec SITE-A y,w"]);
    assert_eq!(world.calls(1), ["status SITE-A", "dec SITE-A x"]);
    assert_eq!(world.calls(2), ["status SITE-A", "dec SITE-A z"]);
    for key in &fetched.keys {
        let wanted = refs.iter().find(|r| r.id == key.id).unwrap();
        assert_eq!(key.key_ref(), *wanted, "named as the other site names it");
    }

    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &[key_ref("v", "A9", "B9")], false).await;
    let (id, error) = &fetched.failed[0];
    assert_eq!((id.as_str(), error.kind()), ("v", K::NoSuchKme));
    let text = error.to_string();
    assert!(text.contains("issued by A9 with B9") && text.contains("two is B2 linked with A2"), "{text}");
    for kme in 0..3 {
        assert!(world.calls(kme).is_empty(), "it would take another peer's key");
    }
}

#[tokio::test]
async fn a_hub_has_an_order_for_each_peer_and_asks_each_vendor_for_its_own_ids() {
    // Vendor X has two KMEs here, vendor Y one; both number their keys from 1. Site B can be reached only by
    // X, site C only by Y, site D by both, Y first.
    let world = World::new(&[("x1", "X1", "X9"), ("x2", "X2", "X8"), ("y1", "Y1", "Y9")]);
    let kmes = world.set.kmes().to_vec();
    let set = |places: &[usize]| KmeSet::new(places.iter().map(|i| kmes[*i].clone()).collect());
    let (to_b, to_c, to_d) = (set(&[0, 1]), set(&[2]), set(&[2, 0]));
    for (set, peer, from) in [(&to_b, "B", "x1"), (&to_c, "C", "y1"), (&to_d, "D", "y1")] {
        assert_eq!(new_keys(set, peer, 1).await.unwrap()[0].kme, from, "{peer}");
    }
    assert_eq!(world.calls(0), ["status B", "enc B 1x256"]);
    assert!(world.calls(1).is_empty());
    assert_eq!(world.calls(2), ["status C", "enc C 1x256", "status D", "enc D 1x256"]);
    // Each peer uses its next KME if its first one has no key.
    for kme in [0, 2] {
        world.script(kme).enc.push_back(Act::Fail(K::Exhausted));
    }
    assert_eq!(new_keys(&to_b, "B", 1).await.unwrap()[0].kme, "x2");
    assert_eq!(new_keys(&to_d, "D", 1).await.unwrap()[0].kme, "x1");
    assert!(world.calls(1).iter().all(|call| call.contains(" B")), "x2 isn't D's");
    (0..3).for_each(|kme| drop(world.calls(kme)));
    // As the slave: key 1 of each vendor is a different key, and only one KME may be asked for each.
    let (of_x, of_x2, of_y) = (key_ref("1", "X9", "X1"), key_ref("1", "X8", "X2"), key_ref("1", "Y9", "Y1"));
    for (set, peer, key, kme) in
        [(&to_b, "B", &of_x, 0), (&to_b, "B", &of_x2, 1), (&to_d, "D", &of_x, 0), (&to_d, "D", &of_y, 2)]
    {
        let fetched = set.fetch_by_ids(&sae(peer), std::slice::from_ref(key), false).await;
        assert_eq!(fetched.keys.len(), 1, "{peer} {key:?}");
        for other in 0..3 {
            let calls = world.calls(other);
            let asked = calls.iter().any(|call| *call == format!("dec {peer} 1"));
            assert_eq!(asked, other == kme, "{peer} {key:?}: {calls:?}");
            assert_eq!(calls.iter().filter(|call| call.starts_with("dec")).count(), usize::from(asked));
        }
    }
    let fetched = to_b.fetch_by_ids(&sae("B"), std::slice::from_ref(&of_y), false).await;
    assert_eq!(fetched.failed[0].1.kind(), K::NoSuchKme, "another vendor's key is asked of nobody");
    assert!((0..3).all(|kme| world.calls(kme).is_empty()));
}

#[tokio::test]
async fn a_link_whose_keys_the_other_site_cannot_get_comes_last() {
    let world = World::two();
    let [first, second] = [("A1", "B1"), ("A2", "B2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(world.new_key_from().await, "one");
    world.calls(0);
    let from = async |stuck: &[(String, String)]| {
        let request = NewKeysRequest { number: 1, qkd_only: false, avoid: stuck };
        world.set.fetch_new(&sae("SITE-B"), request).await.unwrap().keys[0].kme.clone()
    };
    assert_eq!(from(std::slice::from_ref(&first)).await, "two");
    assert!(world.calls(0).is_empty());
    // Such a key is better than none: the other site may still get it.
    world.script(1).enc.push_back(Act::Fail(K::Exhausted));
    assert_eq!(from(std::slice::from_ref(&first)).await, "one");
    assert_eq!(from(&[second.clone(), first]).await, "one", "in their order, if all are");
    assert_eq!(from(&[second]).await, "one");
}

#[tokio::test]
async fn a_kme_that_is_down_does_not_hold_up_keys_of_another() {
    let world = World::new(&[("one", "B1", "A1"), ("two", "B2", "A2")]);
    let refs = [key_ref("x", "A1", "B1"), key_ref("y", "A2", "B2")];
    assert_eq!(world.set.fetch_by_ids(&sae("SITE-A"), &refs, false).await.keys.len(), 2);
    (0..2).for_each(|kme| drop(world.calls(kme)));
    world.script(0).dec.push_back(Act::Fail(K::Unreachable));
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &[key_ref("v", "A1", "B1")], false).await;
    assert_eq!(fetched.failed.len(), 1);
    world.sleep(2 * SECOND);
    world.calls(0);
    // The KME would be probed now, and a probe may take long.
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &[key_ref("w", "A2", "B2")], false).await;
    assert_eq!(fetched.keys.len(), 1);
    assert!(world.calls(0).is_empty());
}

#[tokio::test]
async fn where_there_are_too_few_keys_one_is_taken() {
    for kind in [K::Exhausted, K::BadRequest] {
        let world = World::two();
        world.script(0).enc.push_back(Act::Fail(kind));
        let keys = new_keys(&world.set, "SITE-B", 3).await.unwrap();
        assert_eq!((keys.len(), keys[0].kme.as_str()), (1, "one"));
        assert_eq!(world.calls(0), ["status SITE-B", "enc SITE-B 3x256", "enc SITE-B 1x256"]);
        world.script(0).enc.extend([Act::Fail(kind), Act::Fail(kind)]);
        assert_eq!(new_keys(&world.set, "SITE-B", 3).await.unwrap()[0].kme, "two", "once, then the next KME");
        assert_eq!(world.calls(0), ["enc SITE-B 3x256", "enc SITE-B 1x256"]);
    }
    let world = World::two();
    world.script(0).enc.push_back(Act::Fail(K::ServerFault));
    assert_eq!(new_keys(&world.set, "SITE-B", 3).await.unwrap()[0].kme, "two");
    assert_eq!(world.calls(0).len(), 2, "a KME that failed isn't asked again");
}

#[tokio::test]
async fn where_names_are_not_known_all_are_asked_in_order() {
    let world = World::new(&[("one", "", ""), ("two", "B2", "A2")]);
    world.script(0).known = Some(vec!["b".to_owned()]);
    world.script(1).known = Some(vec!["a".to_owned()]);
    let refs = [key_ref("a", "A2", "B2"), key_ref("b", "", ""), key_ref("c", "", "")];
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &refs, false).await;
    let mut found: Vec<_> = fetched.keys.iter().map(|k| format!("{} {}", k.kme, k.id)).collect();
    found.sort();
    assert_eq!(found, ["one b", "two a"]);
    assert_eq!(fetched.failed.len(), 1);
    assert_eq!((fetched.failed[0].0.as_str(), fetched.failed[0].1.kind()), ("c", K::KeyNotFound));

    // With one KME there is no choice, so the names do not matter.
    let world = World::new(&[("one", "kme-b.local", "kme-a.local")]);
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &[key_ref("a", "KME_A", "KME_B")], false).await;
    assert_eq!(fetched.keys.len(), 1);
}

#[tokio::test]
async fn one_missing_key_does_not_cost_the_others() {
    let world = World::new(&[("one", "B", "A")]);
    world.script(0).known = Some(["a", "b", "d"].map(str::to_owned).to_vec());
    let refs = ["a", "b", "c", "d", "a"].map(|id| key_ref(id, "A", "B"));
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &refs, false).await;
    assert_eq!(fetched.keys.len(), 3);
    assert_eq!(fetched.failed.len(), 1);
    assert_eq!((fetched.failed[0].0.as_str(), fetched.failed[0].1.kind()), ("c", K::KeyNotFound));
    // This KME allows three at once.
    let calls = world.calls(0);
    assert_eq!(
        calls,
        ["status SITE-A", "dec SITE-A a,b,c", "dec SITE-A a", "dec SITE-A b", "dec SITE-A c", "dec SITE-A d"]
    );
    assert_eq!(world.set.health()[0].state, KmeState::Up);
}

#[tokio::test]
async fn a_kme_that_breaks_down_is_not_asked_for_the_rest() {
    let world = World::new(&[("one", "B", "A")]);
    world.script(0).dec.push_back(Act::Fail(K::Timeout(Phase::Answer)));
    let refs = ["a", "b", "c", "d", "e"].map(|id| key_ref(id, "A", "B"));
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &refs, false).await;
    assert_eq!(world.calls(0), ["status SITE-A", "dec SITE-A a,b,c"]);
    assert_eq!(fetched.failed.len(), 5);
    for (_, error) in &fetched.failed {
        assert_eq!(error.kind(), K::Timeout(Phase::Answer));
    }
    // While it backs off, the reason stays, and it is not asked.
    let fetched = world.set.fetch_by_ids(&sae("SITE-A"), &refs[..1], false).await;
    assert_eq!(fetched.failed[0].1.kind(), K::Timeout(Phase::Answer));
    assert!(world.calls(0).is_empty());
}

#[tokio::test]
async fn a_probe_that_is_dropped_does_not_block_the_next() {
    let world = World::new(&[("one", "A", "B")]);
    world.script(0).enc.push_back(Act::Fail(K::Unreachable));
    new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    world.sleep(SECOND);
    world.script(0).status.push_back(Act::Hang);
    {
        let mut probe = std::pin::pin!(new_keys(&world.set, "SITE-B", 1));
        let pending = tokio::time::timeout(Duration::from_millis(5), probe.as_mut()).await;
        assert!(pending.is_err());
        // In the meantime nobody else asks it.
        let error = new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
        assert_eq!(error.errors[0].kind(), K::Unreachable);
    }
    assert_eq!(world.new_key_from().await, "one");
}

#[tokio::test]
async fn health_shows_what_is_known_and_nothing_else() {
    let world = World::new(&[("one", "A", "B")]);
    let health = world.set.health().remove(0);
    assert_eq!((health.name.as_str(), health.api, health.url.as_str()), ("one", "etsi014", "https://kme"));
    assert_eq!(health.state, KmeState::Unknown);
    assert!(health.last_error.is_none() && health.last_success_ago.is_none() && health.latency.is_none());
    assert!(health.stored_key_count.is_none() && health.cert_expires_in_s.is_none());

    new_keys(&world.set, "SITE-B", 1).await.unwrap();
    world.sleep(7 * SECOND);
    world.script(0).enc.push_back(Act::Fail(K::ServerFault));
    new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    world.sleep(2 * SECOND);
    let health = world.set.health().remove(0);
    assert_eq!(health.state, KmeState::Down);
    assert_eq!(health.last_success_ago, Some(Duration::from_secs(9)));
    assert_eq!(health.last_error_ago, Some(Duration::from_secs(2)));
    assert_eq!(health.last_error.unwrap().kind(), K::ServerFault);
    assert_eq!(health.stored_key_count, Some(25));
}

#[tokio::test]
async fn real_servers_fail_over_and_come_back() {
    use support::{KEY_1, Lab, container, json, ok, status_body};

    let lab = Lab::new();
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let first = lab
        .serve({
            let broken = Arc::clone(&broken);
            move |request| match request.path.ends_with("/status") {
                _ if broken.load(Ordering::SeqCst) => json("500 Internal Server Error", "{}"),
                true => ok(&status_body("A1", "B1")),
                false => ok(&container(&[("from-1", KEY_1)])),
            }
        })
        .await;
    let second = lab
        .serve(|request| match request.path.ends_with("/status") {
            true => ok(&status_body("A2", "B2")),
            false => ok(&container(&[("from-2", KEY_1)])),
        })
        .await;
    let now = Arc::new(AtomicU64::new(0));
    let kmes = [(&first, "kme-a1"), (&second, "kme-a2")].map(|(server, name)| {
        let mut config = lab.config(server.address);
        config.name = name.to_owned();
        let now = Arc::clone(&now);
        let client = KmsClient::new(config).unwrap();
        Kme::with_clock(Box::new(client), Arc::new(|_| {}), Arc::new(move || now.load(Ordering::SeqCst)))
    });
    let set = KmeSet::new(kmes.to_vec());
    let key = new_keys(&set, "SITE-B", 1).await.unwrap().remove(0);
    assert_eq!(key.key_ref(), key_ref("from-2", "A2", "B2"));
    let health = set.health();
    assert_eq!((health[0].state, health[1].state), (KmeState::Down, KmeState::Up));
    assert_eq!(health[1].stored_key_count, Some(25));
    assert!(health[1].cert_expires_in_s.unwrap() > 0 && health[1].kme_cert_expires_in_s.unwrap() > 0);

    broken.store(false, Ordering::SeqCst);
    now.store(SECOND, Ordering::SeqCst);
    let key = new_keys(&set, "SITE-B", 1).await.unwrap().remove(0);
    assert_eq!(key.key_ref(), key_ref("from-1", "A1", "B1"));
}

#[tokio::test]
async fn a_peer_kme_that_is_down_is_probed_each_second_and_our_kme_stays_up() {
    let world = World::new(&[("one", "A", "B")]);
    let kme = Arc::clone(&world.set.kmes()[0]);
    let saes = ["SITE-B", "SITE-C"];
    let [b, c] = saes.map(sae);
    let links = [&b, &c];
    for peer in saes {
        new_keys(&world.set, peer, 1).await.unwrap();
    }
    world.events();
    for _ in 0..30 {
        world.script(0).enc.push_back(Act::Fail(K::PeerKmeDown));
        let error = new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
        assert_eq!((error.errors[0].kind(), error.keys_lost()), (K::PeerKmeDown, 0));
        // Other peers get keys, and no event says that our KME is down.
        new_keys(&world.set, "SITE-C", 1).await.unwrap();
        assert_eq!(world.events(), ["one enc_keys peer_kme_down", "one enc_keys ok"]);
        assert_eq!(kme.health().state, KmeState::Up);
        let error = new_keys(&world.set, "SITE-B", 1).await.err().unwrap().errors.remove(0);
        assert_eq!(error.kind(), K::PeerKmeDown);
        assert!(error.to_string().ends_with("(not asked now, again in 1 s)"), "{error}");
        assert_eq!(kme.due_probe(&links), None);
        world.sleep(SECOND);
        let probe = kme.due_probe(&links).unwrap();
        assert_eq!(probe, DueProbe { peer: sae("SITE-B"), after_failure: true });
        kme.probe(&probe.peer).await.unwrap();
        world.events();
    }
    // A second after the other KME is back, there are keys again.
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
}

#[tokio::test]
async fn a_proxy_without_its_kme_is_probed_each_second_and_the_error_is_quoted_once() {
    let world = World::new(&[("one", "A", "B")]);
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
    world.events();
    world.script(0).enc.push_back(Act::Fail(K::Proxy));
    new_keys(&world.set, "SITE-B", 1).await.err().unwrap();
    assert_eq!(world.events(), ["one down proxy", "one enc_keys proxy"]);
    for _ in 0..10 {
        let error = new_keys(&world.set, "SITE-B", 1).await.err().unwrap().errors.remove(0).to_string();
        assert_eq!(error.matches("KME one").count(), 1, "{error}");
        assert_eq!(error.matches("a proxy answers").count(), 1, "{error}");
        world.sleep(SECOND);
        world.script(0).status.push_back(Act::Fail(K::Proxy));
        assert!(new_keys(&world.set, "SITE-B", 1).await.is_err());
    }
    world.sleep(SECOND);
    new_keys(&world.set, "SITE-B", 1).await.unwrap();
}
