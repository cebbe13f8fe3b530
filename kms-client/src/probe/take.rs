//! Takes keys at one KME, fetches them at the other, and compares them.

use std::time::Duration;

use qvpn_types::{KeyId, SaeId};
use tokio::time::Instant;

use crate::api::Api;
use crate::error::{KmsError, KmsErrorKind, Operation};
use crate::etsi014::client::KmsClient;
use crate::key::KEY_BITS;
use crate::key::QkdKey;
use crate::probe::finding::{Finding, Probed, Step, broken, failed, ok, quirk, skipped, slow};
use crate::source::{KeySource, Link};

/// The number of keys that [`check_keys`] asks for: two in one request, to check `number`, and one in
/// another.
pub const KEYS_TAKEN: u32 = FIRST_BATCH + 1;
const FIRST_BATCH: u32 = 2;
/// How long the check waits for a slave KME that lags.
const MAX_FETCH_LAG: Duration = Duration::from_secs(5);
const FETCH_RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// A longer lag is reported.
const REPORTED_LAG: Duration = Duration::from_millis(500);
/// The number of keys that other clients may take during a check.
const MAX_KEYS_TAKEN_BY_OTHERS: u64 = 32;

/// The result of a check of keys.
pub struct FetchReport {
    /// The findings, in the order of the steps.
    pub findings: Vec<Finding>,
    /// Keys that this check spent, or may have spent.
    pub keys_spent: u32,
}

/// One of the two sites of a link.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// Its KME.
    pub kme: Probed<'a>,
    /// Its SAE ID.
    pub sae: &'a SaeId,
    /// The link as its KME reports it.
    pub link: Option<&'a Link>,
}

/// Takes up to [`KEYS_TAKEN`] keys as `master` and, if `slave` is given, fetches them there by their IDs and
/// compares. It sends two requests, since some servers forget the keys of an earlier request or deliver them
/// again.
pub async fn check_keys(master: Site<'_>, slave: Option<Site<'_>>, slave_sae: &SaeId) -> FetchReport {
    let mut report = FetchReport { findings: Vec::new(), keys_spent: 0 };
    let findings = &mut report.findings;
    let allowed = master.link.and_then(|link| link.max_key_per_request).unwrap_or(FIRST_BATCH);
    let source = master.kme.source();
    let mut keys: Vec<QkdKey> = Vec::new();
    for number in [allowed.clamp(1, FIRST_BATCH), 1] {
        let began = Instant::now();
        match source.fetch_new(slave_sae, number, KEY_BITS).await {
            Ok(new) => {
                let got = u32::try_from(new.len()).unwrap_or(u32::MAX);
                report.keys_spent += got;
                if got < number {
                    let text = format!(
                        "{} came where {number} were asked for: `number` is ignored, or lists are short",
                        count(got, "key")
                    );
                    let advice = "nothing to do: qvpn asks again for the rest";
                    findings.push(quirk(Step::Take, "number_ignored", text, advice));
                }
                findings.extend(slow(Step::Take, began, source));
                keys.extend(new);
            }
            Err(error) => {
                report.keys_spent += error.keys_lost();
                findings.push(failed(Step::Take, &error));
                return report;
            }
        }
    }
    let text = format!("{} of {KEY_BITS} bits, which are spent now", count(report.keys_spent, "key"));
    findings.push(ok(Step::Take, "take", text));
    if let Probed::Etsi014(client) = master.kme {
        etsi_take_findings(client, master, slave_sae, &keys, findings).await;
    }
    match slave {
        Some(slave) => fetch(master, slave, &keys, findings).await,
        None => findings.push(skipped(
            Step::Fetch,
            "no_other_end",
            "the keys weren't fetched at the other site; give its config with --other FILE, on a machine \
             that reaches both KMEs",
        )),
    }
    report.findings.sort_by_key(|finding| finding.step);
    report
}

fn count(n: u32, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

async fn etsi_take_findings(
    client: &KmsClient,
    master: Site<'_>,
    slave_sae: &SaeId,
    keys: &[QkdKey],
    findings: &mut Vec<Finding>,
) {
    if client.only_get().contains(&Operation::EncKeys) {
        let text = "enc_keys by POST is refused, GET works";
        findings.push(quirk(Step::Take, "only_get", text, "nothing to do: qvpn uses GET here"));
    }
    if let Some(key) = keys.iter().find(|key| !looks_like_uuid(key.id.as_str())) {
        let text = format!("key IDs are no UUIDs: {}", key.id);
        let advice = "nothing to do: qvpn takes any ID of up to 1,200 bytes";
        findings.push(quirk(Step::Take, "id_no_uuid", text, advice));
    }
    let before = master.link.and_then(|link| link.stored_key_count).filter(|before| *before > 0);
    let after = client.status(slave_sae).await.ok().and_then(|status| status.stored_key_count);
    let spent = u64::try_from(keys.len()).unwrap_or(u64::MAX);
    if let (Some(before), Some(after)) = (before, after)
        && (after >= before || before - after > spent + MAX_KEYS_TAKEN_BY_OTHERS)
    {
        findings.push(quirk(
            Step::Take,
            "stored_key_count_wrong",
            format!("stored_key_count went from {before} to {after}, though {spent} keys left the store"),
            "nothing to do if the link makes keys that fast, or others take them; otherwise the number \
             can't be relied on, and qvpn doesn't",
        ));
    }
}

fn looks_like_uuid(id: &str) -> bool {
    let parts: Vec<&str> = id.split('-').collect();
    parts.len() == 5
        && parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Fetches the keys at the slave's KME and compares them.
async fn fetch(master: Site<'_>, slave: Site<'_>, keys: &[QkdKey], findings: &mut Vec<Finding>) {
    findings.extend(names_finding(master.link, slave.link));
    let source = slave.kme.source();
    let at = source.name();
    let ids: Vec<KeyId> = keys.iter().map(|key| key.id.clone()).collect();
    let began = Instant::now();
    let Fetched { keys: fetched, lag, fewer, error } = fetch_all(source, master.sae, &ids).await;
    findings.extend(slow(Step::Fetch, began, source).filter(|_| lag.is_zero() && error.is_none()));
    for key in keys {
        let Some(other) = fetched.iter().find(|other| other.id == key.id) else { continue };
        findings.push(match other.secret.ct_eq(key.secret.expose()) {
            true => ok(Step::Fetch, "fetch", format!("key {} is the same at {at}", key.id)),
            false => broken(
                Step::Fetch,
                "bytes_differ",
                format!("key {} has other bytes at {at}", key.id),
                "the two KMEs don't serve the same link, or the link is broken: have it checked; qvpn \
                 uses none of these keys",
            ),
        });
    }
    let missing: Vec<&KeyId> = ids.iter().filter(|id| !fetched.iter().any(|key| key.id == **id)).collect();
    match (error, missing.as_slice()) {
        (_, []) => {}
        // A KME that knows some of the keys works; the others were lost.
        (Some(error), [_, ..]) if fetched.is_empty() || error.kind() != KmsErrorKind::KeyNotFound => {
            findings.push(failed(Step::Fetch, &error));
        }
        (_, missing) => {
            let which: Vec<String> = missing.iter().map(ToString::to_string).collect();
            findings.push(quirk(
                Step::Fetch,
                "keys_missing",
                format!("{at} doesn't know {} of {} keys: {}", missing.len(), ids.len(), which.join(", ")),
                "some servers forget a key when the next is taken; qvpn drops such keys after a while and \
                 takes others, so more keys are spent: ask the vendor",
            ));
        }
    }
    if lag >= REPORTED_LAG {
        let text = format!("{at} knew the keys only after {:.1} s", lag.as_secs_f64());
        let advice = "nothing to do up to 120 s: qvpn fetches keys ahead and asks again";
        findings.push(quirk(Step::Fetch, "lag", text, advice));
    }
    if fewer {
        let text = "fewer keys come than IDs were asked for";
        findings.push(quirk(Step::Fetch, "short_list", text, "nothing to do: qvpn asks again for the rest"));
    }
    if let Some(key) = fetched.first() {
        findings.extend(asked_again(source, master.sae, &key.id).await);
    }
    if let Probed::Etsi014(client) = slave.kme
        && client.only_get().contains(&Operation::DecKeys)
    {
        let text = "dec_keys by POST is refused, GET works";
        findings.push(quirk(
            Step::Fetch,
            "only_get",
            text,
            "nothing to do: qvpn uses GET here, for one key at a time",
        ));
    }
}

/// Requests a key again that the KME has already delivered.
async fn asked_again(source: &dyn KeySource, master_sae: &SaeId, id: &KeyId) -> Option<Finding> {
    let at = source.name();
    match source.fetch_by_ids(master_sae, std::slice::from_ref(id)).await {
        Ok(_) => Some(quirk(
            Step::Fetch,
            "delivers_twice",
            format!("{at} delivered key {id} a second time"),
            match source.api() {
                Api::Etsi004 => {
                    "ask the vendor when a delivered key leaves the store, since an intruder could fetch old \
                     keys until then"
                }
                _ => {
                    "by the document a delivered key leaves the store; ask the vendor, since an intruder \
                     could then fetch old keys"
                }
            },
        )),
        Err(error) if error.kind() == KmsErrorKind::KeyNotFound => None,
        Err(error) => Some(quirk(
            Step::Fetch,
            "odd_refusal",
            format!("a key that is gone is refused in a way that doesn't say so: {error}"),
            "ask the vendor; until then qvpn treats a missing key as a failure of the KME",
        )),
    }
}

/// Checks whether both sites use the same IDs for the two KMEs.
fn names_finding(ours: Option<&Link>, theirs: Option<&Link>) -> Option<Finding> {
    let (ours, theirs) = (ours?, theirs?);
    let mirrored = (&ours.source_kme, &ours.target_kme) == (&theirs.target_kme, &theirs.source_kme);
    let same = (&ours.source_kme, &ours.target_kme) == (&theirs.source_kme, &theirs.target_kme);
    let details =
        [ours, theirs].iter().all(|link| !link.source_kme.is_empty() && !link.target_kme.is_empty());
    (details && !mirrored && !same).then(|| {
        quirk(
            Step::Fetch,
            "kme_names_differ",
            format!(
                "here the link is {} with {}, there it is {} with {}",
                ours.source_kme, ours.target_kme, theirs.source_kme, theirs.target_kme
            ),
            "with one KME for the peer it does no harm; with several qvpn can't tell which of them can \
             know a key: ask the vendor for the same KME IDs at both sites",
        )
    })
}

/// The keys of the slave's KME.
struct Fetched {
    keys: Vec<QkdKey>,
    /// The delay until the last of them arrived.
    lag: Duration,
    /// Whether a list was shorter than the request.
    fewer: bool,
    /// Why some are missing.
    error: Option<KmsError>,
}

/// Asks for all keys at once, then for each alone, and again while the KME may lag.
async fn fetch_all(source: &dyn KeySource, master_sae: &SaeId, ids: &[KeyId]) -> Fetched {
    let mut fetched = Fetched { keys: Vec::new(), lag: Duration::ZERO, fewer: false, error: None };
    let began = Instant::now();
    let mut first = true;
    loop {
        let asked = began.elapsed();
        let left: Vec<KeyId> =
            ids.iter().filter(|id| !fetched.keys.iter().any(|key| key.id == **id)).cloned().collect();
        let mut groups: Vec<&[KeyId]> = Vec::new();
        if left.len() > 1 {
            groups.push(&left);
        }
        groups.extend(left.chunks(1));
        let mut got = 0;
        for group in groups {
            if group.iter().any(|id| fetched.keys.iter().any(|key| key.id == *id)) {
                continue;
            }
            match source.fetch_by_ids(master_sae, group).await {
                Ok(keys) => {
                    fetched.fewer |= keys.len() < group.len();
                    got += keys.len();
                    fetched.keys.extend(keys);
                }
                Err(error) => {
                    // A KME without POST refuses several IDs at once. Other answers may have spent the keys.
                    let go_on = match error.kind() {
                        KmsErrorKind::KeyNotFound => true,
                        KmsErrorKind::BadRequest => group.len() > 1,
                        _ => false,
                    };
                    fetched.error = Some(error);
                    if !go_on {
                        return fetched;
                    }
                }
            }
        }
        if got > 0 && !first {
            fetched.lag = asked;
        }
        first = false;
        if fetched.keys.len() >= ids.len() {
            fetched.error = None;
            return fetched;
        }
        if asked >= MAX_FETCH_LAG {
            return fetched;
        }
        tokio::time::sleep(FETCH_RETRY_INTERVAL).await;
    }
}
