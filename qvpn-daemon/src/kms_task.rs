//! This site's KMEs, and the tasks that fetch keys from them. Keys are moved from the KME's answer into the
//! report.

use std::sync::Arc;
use std::time::Duration;

use kms_client::{
    Api, KeyRef, Kme, KmeEvent, KmeSet, KmsError, KmsErrorKind, NewKeys, NewKeysRequest, Observer, QkdKey,
    SetError, Source,
};
use qvpn_api::config;
use qvpn_api::events::EventKind;
use qvpn_proto::kms::{KmsFailure, KmsFailureKind};
use qvpn_proto::wire::limits::MAX_NAME;
use qvpn_proto::{Fetch, FetchedKey, KeyKind, KeyName, KmsReport};
use qvpn_types::{KeyId, SaeId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::events::Events;
use crate::key_origins::KeyOrigins;
use crate::kme_counts::KmeCounts;
use crate::task_result::TaskResult;

/// How long a daemon that stops waits for its KMEs.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a KME reports what happens to it.
#[derive(Clone)]
pub(crate) struct KmeReporting {
    pub(crate) events: Arc<Events>,
    pub(crate) results: mpsc::Sender<TaskResult>,
    pub(crate) counts: Arc<KmeCounts>,
}

/// The KMEs of the config, in its order, shared by all peers.
#[derive(Default)]
pub(crate) struct Kmes {
    all: Vec<(config::Kme, Arc<Kme>)>,
    /// The firewall mark of their connections.
    fwmark: u32,
}

impl Kmes {
    /// Opens the KMEs of the config. One that `former` has with the same settings keeps its state.
    ///
    /// # Errors
    /// If settings or certificate files can't be used.
    pub(crate) fn open(
        kmes: &[config::Kme],
        fwmark: u32,
        reporting: &KmeReporting,
        former: &Self,
    ) -> Result<Self, KmsError> {
        let mut all = Vec::new();
        for kme in kmes {
            let known = former.all.iter().find(|(config, _)| config == kme && former.fwmark == fwmark);
            let open = match known {
                Some((_, open)) => open.clone(),
                None => open_one(kme, fwmark, reporting.clone())?,
            };
            all.push((kme.clone(), open));
        }
        Ok(Self { all, fwmark })
    }

    /// Returns the KMEs with these names, in this order.
    pub(crate) fn set<'a>(&self, names: impl Iterator<Item = &'a str>) -> Arc<KmeSet> {
        let find = |name: &str| self.all.iter().find(|(config, _)| config.name == name);
        Arc::new(KmeSet::new(names.filter_map(find).map(|(_, kme)| kme.clone()).collect()))
    }

    /// Ends what is open at the KMEs, such as key streams.
    pub(crate) async fn close(&self) {
        let mut closing = JoinSet::new();
        for (_, kme) in &self.all {
            let kme = kme.clone();
            closing.spawn(async move { kme.close().await });
        }
        // A KME that doesn't answer keeps its streams until their TTL.
        let all = async { while closing.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, all).await;
    }

    /// Starts to end what is open at the KMEs; the next request opens it again.
    pub(crate) fn close_until_used(&self) {
        for (_, kme) in &self.all {
            let kme = kme.clone();
            tokio::spawn(async move { kme.close().await });
        }
    }

    /// Starts to close those that `new` doesn't have.
    pub(crate) fn close_without(mut self, new: &Self) {
        self.all.retain(|(_, kme)| !new.all.iter().any(|(_, other)| Arc::ptr_eq(kme, other)));
        tokio::spawn(async move { self.close().await });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(config::Kme, Arc<Kme>)> {
        self.all.iter()
    }
}

fn open_one(kme: &config::Kme, fwmark: u32, reporting: KmeReporting) -> Result<Arc<Kme>, KmsError> {
    let source = Source::open(kme, fwmark)?;
    let KmeReporting { events, results, counts } = reporting;
    let observer: Observer = Arc::new(move |event| match event {
        KmeEvent::Up { kme } => events.emit(EventKind::KmeUp { kme }),
        KmeEvent::Down { kme, error } => events.emit(EventKind::KmeDown { kme, reason: in_words(&error) }),
        KmeEvent::Answers { kme } => {
            // If the queue is full, the peers ask again after their back-off.
            let _ = results.try_send(TaskResult::KmeRecovered { kme, sae: None });
        }
        KmeEvent::Requested { kme, operation, outcome, took, keys_lost } => {
            counts.count(&kme, operation.as_str(), outcome, took, keys_lost);
        }
    });
    Ok(Kme::new(source.into(), observer))
}

/// Starts the probe that is due at `kme`, if one is. `saes` are those of the peers that use it.
pub(crate) fn probe(kme: &Arc<Kme>, saes: &[&SaeId], results: &mpsc::Sender<TaskResult>) {
    let Some(due) = kme.due_probe(saes) else { return };
    let (kme, results) = (kme.clone(), results.clone());
    tokio::spawn(async move {
        // The health of the KME records a failure.
        if kme.probe(&due.peer).await.is_ok() && due.after_failure {
            let result = TaskResult::KmeRecovered { kme: kme.name().to_owned(), sae: Some(due.peer) };
            // It fails only while the daemon stops.
            let _ = results.send(result).await;
        }
    });
}

/// Returns an error with its advice.
pub(crate) fn in_words(error: &KmsError) -> String {
    format!("{error}; {}", error.advice())
}

/// Fetches the keys that a peer asked for.
pub(crate) async fn fetch(
    set: Arc<KmeSet>,
    peer_sae: SaeId,
    fetch: Fetch,
    origins: &KeyOrigins,
) -> KmsReport {
    match fetch {
        Fetch::New { request, number, qkd_only, stuck } => {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let wanted = NewKeysRequest { number, qkd_only, avoid: &stuck };
            match set.fetch_new(&peer_sae, wanted).await {
                Ok(NewKeys { keys, qkd_failed }) => {
                    delivered(request, keys, qkd_failed.as_ref().map(unavailable), origins)
                }
                Err(error) => KmsReport::Failed { request, failure: unavailable(&error) },
            }
        }
        Fetch::ById { request, keys, qkd_only } => {
            let refs: Vec<KeyRef> = keys.iter().map(reference).collect();
            let mut fetched = set.fetch_by_ids(&peer_sae, &refs, qkd_only).await;
            // Keys are used in the order in which the peer named them.
            let place = |id: &KeyId| keys.iter().position(|name| name.id == *id);
            fetched.keys.sort_by_key(|key| place(&key.id));
            let missing = kms_failure(&fetched.failed);
            delivered(request, fetched.keys, missing, origins)
        }
    }
}

fn unavailable(error: &SetError) -> KmsFailure {
    let text = error.errors.iter().map(in_words).collect::<Vec<_>>().join("; ");
    KmsFailure { kind: KmsFailureKind::Unavailable, text }
}

fn reference(name: &KeyName) -> KeyRef {
    KeyRef { id: name.id.clone(), source_kme: name.source_kme.clone(), target_kme: name.target_kme.clone() }
}

/// Combines several failures into one report. A KME that is down matters more than one that doesn't have a
/// key yet.
fn kms_failure(failed: &[(KeyId, KmsError)]) -> Option<KmsFailure> {
    let unknown = |kind| matches!(kind, KmsErrorKind::KeyNotFound | KmsErrorKind::NoSuchKme);
    let down = failed.iter().find(|(_, error)| !unknown(error.kind()));
    let (_, error) = down.or(failed.first())?;
    let kind = if down.is_some() { KmsFailureKind::Unavailable } else { KmsFailureKind::NotFound };
    Some(KmsFailure { kind, text: in_words(error) })
}

fn delivered(
    request: u64,
    keys: Vec<QkdKey>,
    missing: Option<KmsFailure>,
    origins: &KeyOrigins,
) -> KmsReport {
    let mut missing = missing;
    let mut named = Vec::with_capacity(keys.len());
    for key in keys {
        if [&key.source_kme, &key.target_kme].iter().any(|name| name.len() > MAX_NAME) {
            let text = format!(
                "KME {}: a KME ID of more than {MAX_NAME} bytes can't be sent to the other site; \
                 ask the KME's vendor for shorter ones",
                key.kme
            );
            missing = Some(KmsFailure { kind: KmsFailureKind::Unavailable, text });
            continue;
        }
        origins.note(&key.id, &key.kme);
        let name = KeyName { id: key.id, source_kme: key.source_kme, target_kme: key.target_kme };
        let kind = if key.api == Api::File { KeyKind::File } else { KeyKind::Qkd };
        named.push(FetchedKey { name, kind, secret: key.secret });
    }
    match missing {
        Some(failure) if named.is_empty() => KmsReport::Failed { request, failure },
        missing => KmsReport::Keys { request, keys: named, missing },
    }
}

#[cfg(test)]
mod tests {
    use kms_client::{BoxFuture, KeyFile, KeySource, Link, Operation};
    use qvpn_secret::SecretBuf;

    use super::*;

    fn key(id: &str, source: &str) -> QkdKey {
        QkdKey {
            id: KeyId::new(id).unwrap(),
            secret: SecretBuf::zeroed(32),
            source_kme: source.to_owned(),
            target_kme: String::new(),
            kme: "k".to_owned(),
            api: Api::Etsi014,
        }
    }

    fn error(kind: KmsErrorKind) -> (KeyId, KmsError) {
        (KeyId::new("x").unwrap(), KmsError::new(kind, "k", Operation::DecKeys, "B"))
    }

    #[test]
    fn a_kme_that_is_down_weighs_more_than_an_unknown_key() {
        assert_eq!(kms_failure(&[]), None);
        let not_found = kms_failure(&[error(KmsErrorKind::KeyNotFound)]).unwrap();
        assert_eq!(not_found.kind, KmsFailureKind::NotFound);
        let both = [error(KmsErrorKind::KeyNotFound), error(KmsErrorKind::Unreachable)];
        let down = kms_failure(&both).unwrap();
        assert_eq!(down.kind, KmsFailureKind::Unavailable);
        assert!(down.text.contains("not reachable") && down.text.contains("check that the KME runs"));
    }

    #[test]
    fn names_that_the_protocol_cannot_carry_are_left_out_and_explained() {
        let report = delivered(
            7,
            vec![key("a", "s"), key("b", &"s".repeat(MAX_NAME + 1))],
            None,
            &KeyOrigins::default(),
        );
        let KmsReport::Keys { request: 7, keys, missing: Some(missing) } = report else { panic!() };
        assert_eq!(keys.iter().map(|k| k.name.id.as_str()).collect::<Vec<_>>(), ["a"]);
        assert!(missing.text.contains("255 bytes"));
        assert!(matches!(
            delivered(8, vec![], Some(missing), &KeyOrigins::default()),
            KmsReport::Failed { request: 8, .. }
        ));
    }

    #[tokio::test]
    async fn a_peer_without_a_kme_gets_an_answer_in_words() {
        let set = Kmes::default().set(std::iter::empty());
        let report = fetch(
            set,
            SaeId::new("SITE-B").unwrap(),
            Fetch::New { request: 1, number: 5, qkd_only: true, stuck: Vec::new() },
            &KeyOrigins::default(),
        )
        .await;
        let KmsReport::Failed { request: 1, failure } = report else { panic!() };
        assert!(failure.text.contains("no KME is configured"), "{}", failure.text);
    }

    /// Makes a set of one file of keys with these lines.
    fn file(name: &str, lines: &str) -> (std::path::PathBuf, Arc<KmeSet>) {
        use std::os::unix::fs::OpenOptionsExt;
        let path = std::env::temp_dir().join(format!("qvpn-kms-task-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
        let kme = Kme::new(Box::new(KeyFile::new("disk", &path)), Arc::new(|_| {}));
        (path, Arc::new(KmeSet::new(vec![kme])))
    }

    const LINE: &str = "id-1 AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n";

    #[tokio::test]
    async fn a_files_keys_carry_their_kind_to_the_protocol() {
        let (path, set) = file("kind", LINE);
        let report = fetch(
            set,
            SaeId::new("SITE-B").unwrap(),
            Fetch::New { request: 1, number: 5, qkd_only: false, stuck: Vec::new() },
            &KeyOrigins::default(),
        )
        .await;
        let KmsReport::Keys { keys, missing: None, .. } = report else { panic!() };
        assert!(keys.len() == 1 && keys[0].kind == KeyKind::File);
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn where_only_qkd_is_enough_no_line_of_a_file_is_touched() {
        let (path, set) = file("required", LINE);
        let new = Fetch::New { request: 1, number: 5, qkd_only: true, stuck: Vec::new() };
        let name = KeyName {
            id: KeyId::new("id-1").unwrap(),
            source_kme: "key-file".into(),
            target_kme: "key-file".into(),
        };
        let by_id = Fetch::ById { request: 1, keys: vec![name], qkd_only: true };
        for wanted in [new, by_id] {
            let report =
                fetch(set.clone(), SaeId::new("SITE-B").unwrap(), wanted, &KeyOrigins::default()).await;
            assert!(matches!(report, KmsReport::Failed { .. }));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), LINE);
        std::fs::remove_file(path).unwrap();
    }

    /// A KME that is down.
    struct Down;

    impl KeySource for Down {
        fn name(&self) -> &str {
            "kme-a1"
        }
        fn api(&self) -> Api {
            Api::Etsi014
        }
        fn url(&self) -> &str {
            "https://kme-a1"
        }
        fn link<'a>(&'a self, peer: &'a SaeId) -> BoxFuture<'a, Result<Link, KmsError>> {
            let error = KmsError::new(KmsErrorKind::Unreachable, "kme-a1", Operation::Status, peer.as_str());
            Box::pin(async move { Err(error) })
        }
        fn fetch_new<'a>(
            &'a self,
            peer: &'a SaeId,
            _: u32,
            _: u32,
        ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
            Box::pin(async move { self.link(peer).await.map(|_| Vec::new()) })
        }
        fn fetch_by_ids<'a>(
            &'a self,
            peer: &'a SaeId,
            _: &'a [KeyId],
        ) -> BoxFuture<'a, Result<Vec<QkdKey>, KmsError>> {
            Box::pin(async move { self.link(peer).await.map(|_| Vec::new()) })
        }
    }

    #[tokio::test]
    async fn a_file_is_used_last_and_the_kmes_error_is_reported_with_its_keys() {
        let (path, set) = file("last", LINE);
        let down = Kme::new(Box::new(Down), Arc::new(|_| {}));
        let both = Arc::new(KmeSet::new(vec![set.kmes()[0].clone(), down]));
        let new = |qkd_only| Fetch::New { request: 1, number: 1, qkd_only, stuck: Vec::new() };
        let report = fetch(both.clone(), SaeId::new("B").unwrap(), new(true), &KeyOrigins::default()).await;
        let KmsReport::Failed { failure, .. } = report else { panic!() };
        assert!(failure.text.contains("kme-a1") && !failure.text.contains("disk"), "{}", failure.text);
        let report = fetch(both.clone(), SaeId::new("B").unwrap(), new(false), &KeyOrigins::default()).await;
        let KmsReport::Keys { keys, missing: Some(missing), .. } = report else { panic!() };
        assert!(keys[0].kind == KeyKind::File && missing.text.contains("kme-a1"), "{}", missing.text);
        // The only line of the file is used up.
        let report = fetch(both, SaeId::new("B").unwrap(), new(false), &KeyOrigins::default()).await;
        let KmsReport::Failed { failure, .. } = report else { panic!() };
        assert!(
            failure.text.contains("kme-a1") && failure.text.contains("no unused key"),
            "{}",
            failure.text
        );
        std::fs::remove_file(path).unwrap();
    }
}
