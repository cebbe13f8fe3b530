//! What `qvpn-ctl kms check` asks of a real KME before any tunnel exists, and what each answer means in words. Looking takes
//! no key; [`take`] spends up to [`KEYS_TAKEN`], and fetches them at the other site's KME if it is given.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::KmsClient;
use crate::clock::unix_seconds;
use crate::error::{KmsError, KmsErrorKind, Operation};
use crate::key::{KeyId, QkdKey};
use crate::set::KEY_BITS;
use crate::source::{Certificates, Connection, KeySource, Link};
use crate::wire::Status;

/// Keys that [`take`] asks for: two in one request, which shows whether `number` is heeded, and one in another.
pub const KEYS_TAKEN: u32 = FIRST + 1;
/// Keys of the first request.
const FIRST: u32 = 2;
/// How long a slave KME may lag in a check.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions to a slave KME that lags.
const PAUSE: Duration = Duration::from_millis(250);
/// A lag that is worth a word.
const LAG: Duration = Duration::from_millis(500);
/// An answer that took longer is worth a word.
const SLOW: Duration = Duration::from_secs(1);
/// Keys that others may take during a check.
const MANY: u64 = 32;
/// A certificate that ends sooner is worth a word, in days.
const SOON: i64 = 30;
const DAY: i64 = 86_400;

/// What a finding is about, in the order of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Name and TCP.
    Reach,
    /// Version, group and suite.
    Tls,
    /// The KME's certificate, and ours.
    Certificate,
    /// As whom the KME knows us.
    Identity,
    /// The link's status.
    Status,
    /// New keys, as the master SAE.
    Take,
    /// The same keys by their IDs, as the slave SAE.
    Fetch,
}

impl Step {
    /// The fixed word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reach => "reach",
            Self::Tls => "tls",
            Self::Certificate => "certificate",
            Self::Identity => "identity",
            Self::Status => "status",
            Self::Take => "take",
            Self::Fetch => "fetch",
        }
    }
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Unusual, and qvpn can work with it.
    Quirk,
    /// qvpn can't work with it.
    Failed,
    /// Not looked at.
    Skipped,
}

impl Verdict {
    /// The fixed word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Quirk => "quirk",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One thing that was found. Holds no key material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub step: Step,
    /// How it is to be taken.
    pub verdict: Verdict,
    /// A fixed word for programs.
    pub code: &'static str,
    /// In words.
    pub text: String,
    /// What to do; empty where there is nothing to do.
    pub advice: String,
}

fn ok(step: Step, code: &'static str, text: impl Into<String>) -> Finding {
    Finding { step, verdict: Verdict::Ok, code, text: text.into(), advice: String::new() }
}

fn quirk(step: Step, code: &'static str, text: impl Into<String>, advice: &str) -> Finding {
    Finding { step, verdict: Verdict::Quirk, code, text: text.into(), advice: advice.to_owned() }
}

fn failed(step: Step, error: &KmsError) -> Finding {
    let (code, advice) = (error.kind().as_str(), error.advice().to_owned());
    Finding { step, verdict: Verdict::Failed, code, text: error.to_string(), advice }
}

fn broken(step: Step, code: &'static str, text: impl Into<String>, advice: &str) -> Finding {
    Finding { step, verdict: Verdict::Failed, code, text: text.into(), advice: advice.to_owned() }
}

/// A step that is left out, and why.
#[must_use]
pub fn skipped(step: Step, code: &'static str, why: impl Into<String>) -> Finding {
    Finding { step, verdict: Verdict::Skipped, code, text: why.into(), advice: String::new() }
}

/// The KME that is looked at.
#[derive(Clone, Copy)]
pub enum Probed<'a> {
    /// It speaks ETSI GS QKD 014, so its status is looked at field by field.
    Etsi014(&'a KmsClient),
    /// It speaks something else.
    Other(&'a dyn KeySource),
}

impl<'a> Probed<'a> {
    /// As a source of keys.
    #[must_use]
    pub fn source(self) -> &'a dyn KeySource {
        match self {
            Self::Etsi014(client) => client,
            Self::Other(source) => source,
        }
    }
}

/// What looking told.
pub struct Looked {
    /// In the order of the steps.
    pub findings: Vec<Finding>,
    /// The link, if the KME told of it.
    pub link: Option<Link>,
}

/// Connects and asks for the status of the link to `peer_sae`; takes no key. `own_sae` is our SAE ID at this KME.
pub async fn look(probed: Probed<'_>, own_sae: &str, peer_sae: &str) -> Looked {
    let source = probed.source();
    let began = Instant::now();
    let answer = match probed {
        Probed::Etsi014(client) => client.status(peer_sae).await.map(|status| (status.link(), Some(status))),
        Probed::Other(source) => source.link(peer_sae).await.map(|link| (link, None)),
    };
    let mut findings = Vec::new();
    findings.extend(slow(Step::Status, began, source).filter(|_| answer.is_ok()));
    let connection = source.connection();
    if let Some(connection) = &connection {
        way(connection, &source.certificates(), &mut findings);
    }
    let link = match answer {
        Ok((link, status)) => {
            match &status {
                Some(status) => status_findings(status, own_sae, peer_sae, &mut findings),
                None => findings.push(link_finding(&link)),
            }
            Some(link)
        }
        Err(error) => {
            let on_the_way = connection.is_none_or(|connection| connection.tls.is_none());
            findings.push(failed(step_of(&error, on_the_way), &error));
            None
        }
    };
    findings.sort_by_key(|finding| finding.step);
    Looked { findings, link }
}

fn step_of(error: &KmsError, on_the_way: bool) -> Step {
    use crate::error::{Phase, TlsFault};
    match error.kind() {
        KmsErrorKind::IdentityRefused => Step::Identity,
        KmsErrorKind::Tls(TlsFault::NothingInCommon | TlsFault::NotTls | TlsFault::Other)
        | KmsErrorKind::Timeout(Phase::Tls) => Step::Tls,
        KmsErrorKind::Tls(_) => Step::Certificate,
        KmsErrorKind::Unreachable | KmsErrorKind::Timeout(_) | KmsErrorKind::Config if on_the_way => {
            Step::Reach
        }
        _ => Step::Status,
    }
}

/// What the connection was like.
fn way(connection: &Connection, certificates: &Certificates, findings: &mut Vec<Finding>) {
    if let (Some(address), Some(took)) = (connection.address, connection.connected_in) {
        findings.push(ok(Step::Reach, "tcp", format!("{address} answers in {} ms", took.as_millis())));
    }
    if let Some(tls) = &connection.tls {
        let text = format!("{}, {}, {}", tls.version, tls.group, tls.suite);
        findings.push(match tls.quantum_safe {
            true => ok(Step::Tls, "tls", text),
            false => quirk(
                Step::Tls,
                "tls_not_quantum_safe",
                format!("{text}: who records this connection can read its keys with a quantum computer later"),
                "ask the KME's vendor for TLS 1.3 with X25519MLKEM768, and keep the way to the KME inside the site",
            ),
        });
    }
    // One that was refused is told with its reason.
    if let (Some(certificate), Some(_)) = (&connection.certificate, &connection.tls) {
        let text = format!(
            "the KME's, {} for {}, issued by {}, ends in {} days",
            certificate.subject,
            if certificate.names.is_empty() { "no name".to_owned() } else { certificate.names.join(", ") },
            certificate.issuer,
            days_left(certificate.not_after)
        );
        findings.push(ends(certificate.not_after, "kme_certificate", text, "renew the KME's certificate"));
    }
    if let Some(end) = certificates.own_not_after {
        let text = format!("ours ends in {} days", days_left(end));
        findings.push(ends(
            end,
            "own_certificate",
            text,
            "have our certificate renewed and put it into cert_file",
        ));
    }
    if let Some(end) = certificates.ca_not_after.filter(|end| days_left(*end) < SOON) {
        let text = format!("the CA's in ca_file ends in {} days", days_left(end));
        findings.push(ends(end, "ca_certificate", text, "put the CA's new certificate into ca_file"));
    }
}

fn days_left(end: i64) -> i64 {
    end.saturating_sub(unix_seconds()).div_euclid(DAY)
}

fn ends(end: i64, code: &'static str, text: String, advice: &str) -> Finding {
    match days_left(end) < SOON {
        true => quirk(Step::Certificate, "certificate_ends_soon", text, advice),
        false => ok(Step::Certificate, code, text),
    }
}

fn link_finding(link: &Link) -> Finding {
    let name = |name: &str| if name.is_empty() { "?".to_owned() } else { name.to_owned() };
    let stored = link.stored_key_count.map_or(String::new(), |n| format!(", {n} keys"));
    let text = format!("{} linked with {}{stored}", name(&link.source_kme), name(&link.target_kme));
    ok(Step::Status, "status", text)
}

/// What is odd about a status (ETSI GS QKD 014 section 6.1).
fn status_findings(status: &Status, own_sae: &str, peer_sae: &str, findings: &mut Vec<Finding>) {
    findings.push(link_finding(&status.link()));
    findings.push(if status.master_sae_id == own_sae {
        ok(Step::Identity, "identity", format!("the KME knows us as SAE {own_sae}"))
    } else if status.master_sae_id.is_empty() {
        quirk(
            Step::Identity,
            "identity_untold",
            "the status doesn't say as whom the KME knows us",
            "compare the SAE ID with the KME's operator; a key that can't be fetched at the other site is the sign of a wrong one",
        )
    } else {
        let text = format!("the KME knows us as SAE {}, our config says {own_sae}", status.master_sae_id);
        let advice = "if the KME is right, write its name for us as sae_id into this [[kms.kme]]; otherwise use the certificate that was issued for our SAE ID";
        quirk(Step::Identity, "identity_other", text, advice)
    });
    let mut odd = |code, text: String, advice: &str| findings.push(quirk(Step::Status, code, text, advice));
    if !status.missing.is_empty() {
        let fields = status.missing.join(", ");
        odd(
            "status_fields_missing",
            format!("the status lacks {fields}"),
            "nothing to do: qvpn goes on without them",
        );
    }
    if status.numbers_as_text {
        let text = "numbers of the status come as text".to_owned();
        odd("numbers_as_text", text, "nothing to do: qvpn reads them");
    }
    if !status.unknown.is_empty() {
        let text =
            format!("the status has fields that the document doesn't know: {}", status.unknown.join(", "));
        odd("extra_fields", text, "nothing to do: qvpn ignores them");
    }
    if let Some(kind) = &status.content_type {
        let text = format!("answers are called {kind} instead of application/json");
        odd("content_type", text, "nothing to do: qvpn looks at the content");
    }
    if !status.slave_sae_id.is_empty() && status.slave_sae_id != peer_sae {
        let text = format!("the status is about SAE {}, and {peer_sae} was asked for", status.slave_sae_id);
        odd("status_other_sae", text, "compare the peer's sae_id with the KME's operator");
    }
    if !status.source_kme_id.is_empty() && status.source_kme_id == status.target_kme_id {
        let text = format!("both ends of the link are called {}", status.source_kme_id);
        odd(
            "status_same_kme",
            text,
            "with one KME for a peer it does no harm; with several, ask the vendor for distinct KME IDs",
        );
    }
    let bits = u64::from(KEY_BITS);
    if let Some(size) = status.key_size.filter(|size| *size != bits) {
        let text = format!("keys have {size} bits where nothing is asked for");
        odd("key_size_default", text, "nothing to do: qvpn always asks for 256");
    }
    if let Some(most) = status.max_key_per_request.filter(|most| *most < 2) {
        let text = format!("max_key_per_request is {most}: each key needs a request of its own");
        odd(
            "one_key_per_request",
            text,
            "nothing to do; at short rekey intervals the KME gets many requests",
        );
    }
    if status.stored_key_count == Some(0) {
        odd(
            "no_stored_keys",
            "the KME says that it holds no key; some always say so".to_owned(),
            "if no key can be taken either, ask the KME's operator about the link",
        );
    }
    if let (Some(stored), Some(max)) = (status.stored_key_count, status.max_key_count)
        && stored > max
    {
        let text = format!("the KME says that it holds {stored} keys, and at most {max}");
        odd("stored_more_than_max", text, "nothing to do: qvpn decides nothing on these numbers");
    }
    if let Some(serde_json::Value::Object(fields)) = &status.extension {
        let names: Vec<String> = fields.keys().take(8).map(|name| crate::excerpt::one_line(name)).collect();
        findings.push(ok(Step::Status, "status_extension", format!("it also tells {}", names.join(", "))));
    }
    for (size, too, code) in [
        (status.max_key_size.filter(|max| *max < bits), "at most", "max_key_size"),
        (status.min_key_size.filter(|min| *min > bits), "at least", "min_key_size"),
    ] {
        let Some(size) = size else { continue };
        let in_bytes = if size.saturating_mul(8) >= bits && code == "max_key_size" {
            "; perhaps it counts in bytes, where the document says bits"
        } else {
            ""
        };
        let text =
            format!("{code} is {size}: keys have {too} {size} bits, and qvpn asks for {bits}{in_bytes}");
        let advice = "have the KME's operator allow keys of 256 bits; whether they come, taking one shows";
        findings.push(quirk(Step::Status, code, text, advice));
    }
}

/// What taking keys told.
pub struct Taken {
    /// In the order of the steps.
    pub findings: Vec<Finding>,
    /// Keys that this check has spent, or may have.
    pub keys_spent: u32,
}

/// One end of the link that keys are taken over.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// Its KME.
    pub kme: Probed<'a>,
    /// Its SAE ID.
    pub sae: &'a str,
    /// What its KME told of the link.
    pub link: Option<&'a Link>,
}

/// Takes up to [`KEYS_TAKEN`] keys as `master` and, if `slave` is given, fetches them there by their IDs and compares.
/// Two requests, since some servers forget what an earlier one gave, or give it again.
pub async fn take(master: End<'_>, slave: Option<End<'_>>, slave_sae: &str) -> Taken {
    let mut taken = Taken { findings: Vec::new(), keys_spent: 0 };
    let findings = &mut taken.findings;
    let allowed = master.link.and_then(|link| link.max_key_per_request).unwrap_or(FIRST);
    let source = master.kme.source();
    let mut keys: Vec<QkdKey> = Vec::new();
    for number in [allowed.clamp(1, FIRST), 1] {
        let began = Instant::now();
        match source.fetch_new(slave_sae, number, KEY_BITS).await {
            Ok(new) => {
                let got = u32::try_from(new.len()).unwrap_or(u32::MAX);
                taken.keys_spent += got;
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
                taken.keys_spent += error.keys_lost();
                findings.push(failed(Step::Take, &error));
                return taken;
            }
        }
    }
    let text = format!("{} of {KEY_BITS} bits, which are spent now", count(taken.keys_spent, "key"));
    findings.push(ok(Step::Take, "take", text));
    if let Probed::Etsi014(client) = master.kme {
        etsi_take_findings(client, master, slave_sae, &keys, findings).await;
    }
    match slave {
        Some(slave) => fetch(master, slave, &keys, findings).await,
        None => findings.push(skipped(
            Step::Fetch,
            "no_other_end",
            "the keys weren't fetched at the other site; give its config with --other FILE, on a machine that reaches both KMEs",
        )),
    }
    taken.findings.sort_by_key(|finding| finding.step);
    taken
}

fn count(n: u32, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// A word about an answer that took long, apart from the way.
fn slow(step: Step, began: Instant, source: &dyn KeySource) -> Option<Finding> {
    let way = source
        .connection()
        .map_or(Duration::ZERO, |c| c.connected_in.unwrap_or_default() + c.tls_in.unwrap_or_default());
    let took = began.elapsed().saturating_sub(way);
    (took >= SLOW).then(|| {
        quirk(
            step,
            "slow",
            format!("the answer took {:.1} s", took.as_secs_f64()),
            "qvpn waits 5 s for a whole operation; ask the KME's operator about its load",
        )
    })
}

async fn etsi_take_findings(
    client: &KmsClient,
    master: End<'_>,
    slave_sae: &str,
    keys: &[QkdKey],
    findings: &mut Vec<Finding>,
) {
    if client.only_get().contains(&Operation::EncKeys) {
        let text = "enc_keys by POST is refused, GET works";
        findings.push(quirk(Step::Take, "only_get", text, "nothing to do: qvpn uses GET here"));
    }
    if let Some(key) = keys.iter().find(|key| !looks_like_uuid(key.id.as_str())) {
        let text = format!("key IDs are no UUIDs: {}", key.id);
        let advice = "nothing to do: qvpn takes any ID of up to 255 bytes";
        findings.push(quirk(Step::Take, "id_no_uuid", text, advice));
    }
    let before = master.link.and_then(|link| link.stored_key_count).filter(|before| *before > 0);
    let after = client.status(slave_sae).await.ok().and_then(|status| status.stored_key_count);
    let spent = u64::try_from(keys.len()).unwrap_or(u64::MAX);
    if let (Some(before), Some(after)) = (before, after)
        && (after >= before || before - after > spent + MANY)
    {
        findings.push(quirk(
            Step::Take,
            "stored_key_count_wrong",
            format!("stored_key_count went from {before} to {after}, though {spent} keys left the store"),
            "nothing to do if the link makes keys that fast, or others take them; otherwise the number can't be relied on, and qvpn doesn't",
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
async fn fetch(master: End<'_>, slave: End<'_>, keys: &[QkdKey], findings: &mut Vec<Finding>) {
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
                "the two KMEs aren't two ends of one link, or the link is broken: have it checked; qvpn uses none of these keys",
            ),
        });
    }
    let missing: Vec<&KeyId> = ids.iter().filter(|id| !fetched.iter().any(|key| key.id == **id)).collect();
    match (error, missing.as_slice()) {
        (_, []) => {}
        // One that knows some of the keys works; the others were lost on the way.
        (Some(error), [_, ..]) if fetched.is_empty() || error.kind() != KmsErrorKind::KeyNotFound => {
            findings.push(failed(Step::Fetch, &error));
        }
        (_, missing) => {
            let which: Vec<String> = missing.iter().map(ToString::to_string).collect();
            findings.push(quirk(
                Step::Fetch,
                "keys_missing",
                format!("{at} doesn't know {} of {} keys: {}", missing.len(), ids.len(), which.join(", ")),
                "some servers forget a key when the next is taken; qvpn drops such keys after a while and takes others, so more keys are spent: ask the vendor",
            ));
        }
    }
    if lag >= LAG {
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

/// What the KME says to a key that it has delivered before.
async fn asked_again(source: &dyn KeySource, master_sae: &str, id: &KeyId) -> Option<Finding> {
    let at = source.name();
    match source.fetch_by_ids(master_sae, std::slice::from_ref(id)).await {
        Ok(_) => Some(quirk(
            Step::Fetch,
            "delivers_twice",
            format!("{at} delivered key {id} a second time"),
            "by the document a delivered key leaves the store; ask the vendor, since whoever gets in later gets old keys",
        )),
        Err(error) if error.kind() == KmsErrorKind::KeyNotFound => None,
        Err(error) => Some(quirk(
            Step::Fetch,
            "odd_refusal",
            format!("a key that is gone is refused in a way that doesn't say so: {error}"),
            "ask the vendor; until then qvpn takes a missing key for trouble of the KME",
        )),
    }
}

/// Whether both sites call the two KMEs by the same names.
fn names_finding(ours: Option<&Link>, theirs: Option<&Link>) -> Option<Finding> {
    let (ours, theirs) = (ours?, theirs?);
    let mirrored = (&ours.source_kme, &ours.target_kme) == (&theirs.target_kme, &theirs.source_kme);
    let same = (&ours.source_kme, &ours.target_kme) == (&theirs.source_kme, &theirs.target_kme);
    let told = [ours, theirs].iter().all(|link| !link.source_kme.is_empty() && !link.target_kme.is_empty());
    (told && !mirrored && !same).then(|| {
        quirk(
            Step::Fetch,
            "kme_names_differ",
            format!(
                "here the link is {} with {}, there it is {} with {}",
                ours.source_kme, ours.target_kme, theirs.source_kme, theirs.target_kme
            ),
            "with one KME for the peer it does no harm; with several qvpn can't tell which of them can know a key: ask the vendor for the same KME IDs at both sites",
        )
    })
}

/// What the slave's KME gave.
struct Fetched {
    keys: Vec<QkdKey>,
    /// When the last of them came, if not at once.
    lag: Duration,
    /// A list was shorter than what was asked, and the rest came when asked again.
    fewer: bool,
    /// Why some are missing.
    error: Option<KmsError>,
}

/// Asks for all keys at once, then for each alone, and again while the KME may lag.
async fn fetch_all(source: &dyn KeySource, master_sae: &str, ids: &[KeyId]) -> Fetched {
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
                    // One without POST refuses several IDs at once; other answers may have spent the keys.
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
        if asked >= PATIENCE {
            return fetched;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
