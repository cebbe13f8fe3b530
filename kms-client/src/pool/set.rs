//! One peer's KMEs, in order: failover from one to the next, always within one SAE pair, and QKD before
//! files of keys. A key ID is sent only to a KME that can know it.

use qvpn_types::{KeyId, SaeId};
use std::sync::Arc;

use crate::api::Api;
use crate::error::{Blame, KmsError, KmsErrorKind, Operation};
use crate::key::{KEY_BITS, KeyRef, MAX_KEYS_PER_CALL, QkdKey};
use crate::pool::health::KmeHealth;
use crate::pool::kme::Kme;
use crate::source::{KEY_FILE_LINK, Link};

/// The KMEs of one peer, in order. Peers share the KMEs themselves.
pub struct KmeSet {
    kmes: Vec<Arc<Kme>>,
}

/// Why none of the KMEs delivered: one error for each, in order.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", self.text())]
pub struct SetError {
    /// Never empty.
    pub errors: Vec<KmsError>,
}

impl SetError {
    /// Whether at least one KME works and only has no key at the moment.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.errors.iter().any(|e| e.kind() == KmsErrorKind::Exhausted)
    }

    /// Returns the number of keys that may be spent without having arrived here.
    #[must_use]
    pub fn keys_lost(&self) -> u32 {
        self.errors.iter().fold(0, |sum, e| sum.saturating_add(e.keys_lost()))
    }

    fn text(&self) -> String {
        self.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// A request for new keys.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewKeysRequest<'a> {
    /// The maximum number of keys; at least one is delivered.
    pub number: u32,
    /// Whether keys from files are excluded.
    pub qkd_only: bool,
    /// Links (source and target KME) whose KMEs are asked last: the other site can't get their keys at the
    /// moment.
    pub avoid: &'a [(String, String)],
}

/// New keys, all from one KME.
pub struct NewKeys {
    /// Never empty.
    pub keys: Vec<QkdKey>,
    /// For keys from a file: why no QKD KME delivered any.
    pub qkd_failed: Option<SetError>,
}

/// The result of a request for keys by their IDs.
#[derive(Default)]
pub struct FetchedByIds {
    /// The keys that were delivered.
    pub keys: Vec<QkdKey>,
    /// The rest, each with its most specific error. After [`KmsErrorKind::KeyNotFound`] you may ask again
    /// for a bounded time.
    pub failed: Vec<(KeyId, KmsError)>,
}

impl KmeSet {
    /// Makes a set of the KMEs that serve one SAE pair, the preferred one first.
    #[must_use]
    pub fn new(kmes: Vec<Arc<Kme>>) -> Self {
        Self { kmes }
    }

    /// Returns the KMEs, in order.
    #[must_use]
    pub fn kmes(&self) -> &[Arc<Kme>] {
        &self.kmes
    }

    /// Returns the state of each KME, in order.
    #[must_use]
    pub fn health(&self) -> Vec<KmeHealth> {
        self.kmes.iter().map(|kme| kme.health()).collect()
    }

    /// Takes up to `number` new keys of [`KEY_BITS`] bits shared with `peer_sae` from the first KME that has
    /// any. Files of keys come last in any case, since a line that is taken is wiped.
    /// Each KME has its own deadline.
    ///
    /// # Errors
    /// One error for each KME that was asked.
    pub async fn fetch_new(
        &self,
        peer_sae: &SaeId,
        request: NewKeysRequest<'_>,
    ) -> Result<NewKeys, SetError> {
        let (files, qkd): (Vec<_>, Vec<_>) = self.kmes.iter().partition(|kme| kme.api() == Api::File);
        let use_files = !request.qkd_only && !files.is_empty();
        let qkd_failed = if qkd.is_empty() && use_files {
            None
        } else {
            match fetch_in_order(&qkd, peer_sae, request).await {
                Ok(keys) => return Ok(NewKeys { keys, qkd_failed: None }),
                Err(error) if use_files => Some(error),
                Err(error) => return Err(error),
            }
        };
        match fetch_in_order(&files, peer_sae, request).await {
            Ok(keys) => Ok(NewKeys { keys, qkd_failed }),
            Err(SetError { errors }) => {
                let former = qkd_failed.map_or_else(Vec::new, |error| error.errors);
                Err(SetError { errors: former.into_iter().chain(errors).collect() })
            }
        }
    }

    /// Takes the keys that `peer_sae` took before; with `qkd_only`, not from a file. A key is requested only
    /// from KMEs that can know it: those whose own status names the pair of KMEs that issued it or, if one of
    /// these is unknown, all in order.
    pub async fn fetch_by_ids(&self, peer_sae: &SaeId, refs: &[KeyRef], qkd_only: bool) -> FetchedByIds {
        if qkd_only && self.kmes.iter().any(|kme| kme.api() == Api::File) {
            let kmes = self.kmes.iter().filter(|kme| kme.api() != Api::File).cloned().collect();
            return Self::new(kmes).fetch_from_all(peer_sae, refs).await;
        }
        self.fetch_from_all(peer_sae, refs).await
    }

    async fn fetch_from_all(&self, peer_sae: &SaeId, refs: &[KeyRef]) -> FetchedByIds {
        let mut pending: Vec<(&KeyRef, Option<KmsError>)> = Vec::new();
        for key in refs {
            if !pending.iter().any(|(other, _)| other.id == key.id) {
                pending.push((key, None));
            }
        }
        let mut keys = Vec::new();
        for kme in &self.kmes {
            if pending.is_empty() {
                break;
            }
            // A KME that is down must not delay keys of other KMEs.
            if let Some(known) = kme.known_link(peer_sae)
                && !pending.iter().any(|(key, _)| self.can_know(kme, &known, key))
            {
                continue;
            }
            let link = match kme.link(peer_sae).await {
                Ok(link) => link,
                Err(error) if error.kind() == KmsErrorKind::BadRequest => Link::default(),
                Err(error) => {
                    let known = kme.known_link(peer_sae).unwrap_or_default();
                    for (_, failed) in pending.iter_mut().filter(|(key, _)| self.can_know(kme, &known, key)) {
                        keep_most_specific(failed, error.clone());
                    }
                    continue;
                }
            };
            let askable: Vec<&KeyRef> =
                pending.iter().map(|(key, _)| *key).filter(|key| self.can_know(kme, &link, key)).collect();
            let most = link.max_key_per_request.unwrap_or(u32::MAX).min(MAX_KEYS_PER_CALL);
            let mut results = Vec::new();
            for chunk in askable.chunks(usize::try_from(most).unwrap_or(1).max(1)) {
                let broken = ask_chunk(kme, peer_sae, chunk, &mut results).await;
                if let Some(error) = broken {
                    // The KME failed, so the remaining chunks would fail too.
                    let left = askable.iter().filter(|key| !results.iter().any(|(id, _)| *id == key.id));
                    let left: Vec<_> = left.map(|key| (key.id.clone(), Err(error.clone()))).collect();
                    results.extend(left);
                    break;
                }
            }
            for (id, result) in results {
                let Some(i) = pending.iter().position(|(key, _)| key.id == id) else { continue };
                match result {
                    Ok(mut key) => {
                        let (wanted, _) = pending.swap_remove(i);
                        // Use the other site's KME IDs, so that both sites give the key the same name.
                        if !wanted.source_kme.is_empty() {
                            key.source_kme.clone_from(&wanted.source_kme);
                        }
                        if !wanted.target_kme.is_empty() {
                            key.target_kme.clone_from(&wanted.target_kme);
                        }
                        keys.push(key);
                    }
                    Err(error) => keep_most_specific(&mut pending[i].1, error),
                }
            }
        }
        let failed = pending
            .into_iter()
            .map(|(key, error)| {
                (key.id.clone(), error.unwrap_or_else(|| self.no_kme_can_know(peer_sae, key)))
            })
            .collect();
        FetchedByIds { keys, failed }
    }

    /// Whether a KME with this link can know `key`. A single KME is always asked, since the sites may name
    /// it differently. With several, the wrong one could deliver another peer's key that has the same ID.
    fn can_know(&self, kme: &Kme, link: &Link, key: &KeyRef) -> bool {
        // A key that is from a file at the other site is in a file here too.
        if (kme.api() == Api::File) != from_file(key) {
            return false;
        }
        let unknown = [&link.source_kme, &link.target_kme, &key.source_kme, &key.target_kme];
        if self.kmes.len() == 1 || unknown.iter().any(|name| name.is_empty()) {
            return true;
        }
        let (ours, theirs) = ((&link.source_kme, &link.target_kme), (&key.source_kme, &key.target_kme));
        // The slave's status has the names in reverse order, except at KMEs that use a fixed order.
        ours == (theirs.1, theirs.0) || ours == theirs
    }

    fn no_kme_can_know(&self, peer_sae: &SaeId, key: &KeyRef) -> KmsError {
        if self.kmes.is_empty() {
            return no_kme(Operation::DecKeys, peer_sae);
        }
        if from_file(key) {
            return KmsError::new(KmsErrorKind::NoSuchKme, "(none)", Operation::DecKeys, peer_sae.as_str())
                .with_detail(format!(
                    "the other site has key {} from a file, and none may be used here",
                    key.id
                ))
                .with_advice(
                    "give both sites the same kind of source: a [[kms.kme]] with api = \"file\" \
                              here, or a KME there",
                );
        }
        let ours: Vec<String> = self
            .kmes
            .iter()
            .map(|kme| match kme.known_link(peer_sae) {
                Some(link) => {
                    format!("{} is {} linked with {}", kme.name(), link.source_kme, link.target_kme)
                }
                None => kme.name().to_owned(),
            })
            .collect();
        let names: Vec<&str> = self.kmes.iter().map(|kme| kme.name()).collect();
        KmsError::new(KmsErrorKind::NoSuchKme, &names.join(","), Operation::DecKeys, peer_sae.as_str())
            .with_detail(format!(
                "key {} was issued by {} with {}, and {}",
                key.id,
                key.source_kme,
                key.target_kme,
                ours.join(", ")
            ))
    }
}

/// Asks `kmes` in order: one request, within what the KME allows, and a second one for a single key if it
/// doesn't have that many. KMEs of the links in `avoid` come last. A KME whose answer was lost isn't asked
/// again.
async fn fetch_in_order(
    kmes: &[&Arc<Kme>],
    peer_sae: &SaeId,
    request: NewKeysRequest<'_>,
) -> Result<Vec<QkdKey>, SetError> {
    let is_unreachable = |kme: &&&Arc<Kme>| {
        let link = kme.known_link(peer_sae);
        link.is_some_and(|link| request.avoid.contains(&(link.source_kme, link.target_kme)))
    };
    let (last, first): (Vec<&Arc<Kme>>, Vec<&Arc<Kme>>) = kmes.iter().partition(is_unreachable);
    let mut errors = Vec::new();
    for kme in first.into_iter().chain(last) {
        let link = match kme.link(peer_sae).await {
            Ok(link) => link,
            // A KME without a usable status may still deliver keys.
            Err(error) if error.kind() == KmsErrorKind::BadRequest => Link::default(),
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let number = request
            .number
            .clamp(1, link.max_key_per_request.unwrap_or(request.number).clamp(1, MAX_KEYS_PER_CALL));
        match kme.fetch_new(peer_sae, number, KEY_BITS).await {
            Ok(keys) => return Ok(keys),
            // Many KMEs deliver all the keys of a request or none. A refusal spends nothing, and one key may
            // be left.
            Err(error) if number > 1 && refused(&error) => match kme.fetch_new(peer_sae, 1, KEY_BITS).await {
                Ok(keys) => return Ok(keys),
                Err(error) => errors.push(error),
            },
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        errors.push(no_kme(Operation::EncKeys, peer_sae));
    }
    Err(SetError { errors })
}

fn refused(error: &KmsError) -> bool {
    matches!(error.kind(), KmsErrorKind::Exhausted | KmsErrorKind::BadRequest)
}

fn from_file(key: &KeyRef) -> bool {
    key.source_kme == KEY_FILE_LINK && key.target_kme == KEY_FILE_LINK
}

type ById = (KeyId, Result<QkdKey, KmsError>);

/// Requests several keys at once from one KME and, if it doesn't know one of them, each key alone: ETSI GS
/// QKD 014 has only one answer for "one or more keys are not found". Returns the error if the KME failed.
async fn ask_chunk(
    kme: &Kme,
    peer_sae: &SaeId,
    chunk: &[&KeyRef],
    results: &mut Vec<ById>,
) -> Option<KmsError> {
    let ids: Vec<KeyId> = chunk.iter().map(|key| key.id.clone()).collect();
    match kme.fetch_by_ids(peer_sae, &ids).await {
        Ok(keys) => {
            for key in keys {
                results.push((key.id.clone(), Ok(key)));
            }
            // A KME that sends fewer doesn't have the others yet.
            for id in ids {
                if !results.iter().any(|(other, _)| *other == id) {
                    let error = KmsError::new(
                        KmsErrorKind::KeyNotFound,
                        kme.name(),
                        Operation::DecKeys,
                        peer_sae.as_str(),
                    )
                    .with_detail(format!("the answer held other keys, but not {id}"));
                    results.push((id, Err(error)));
                }
            }
            None
        }
        Err(error) if error.kind() == KmsErrorKind::KeyNotFound && ids.len() > 1 => {
            for id in ids {
                match kme.fetch_by_ids(peer_sae, std::slice::from_ref(&id)).await {
                    Ok(keys) => results.extend(keys.into_iter().map(|key| (key.id.clone(), Ok(key)))),
                    Err(error) if error.blame() != Blame::Nothing => return Some(error),
                    Err(error) => results.push((id, Err(error))),
                }
            }
            None
        }
        Err(error) if error.blame() != Blame::Nothing => Some(error),
        Err(error) => {
            results.extend(ids.into_iter().map(|id| (id, Err(error.clone()))));
            None
        }
    }
}

/// Keeps the most specific error about a key: "the KME that may know it is down" replaces "a KME doesn't
/// know it".
fn keep_most_specific(kept: &mut Option<KmsError>, new: KmsError) {
    let replace = kept
        .as_ref()
        .is_none_or(|old| old.kind() == KmsErrorKind::KeyNotFound && new.blame() != Blame::Nothing);
    if replace {
        *kept = Some(new);
    }
}

fn no_kme(operation: Operation, peer_sae: &SaeId) -> KmsError {
    KmsError::new(KmsErrorKind::Config, "(none)", operation, peer_sae.as_str())
        .with_detail("no KME is configured for this peer")
        .with_advice("add a [[kms.kme]], or set qkd = \"off\" for the peer")
}
