//! `kms check`: tests the real KMEs of a config before any tunnel exists, and prints what works, what
//! deviates and what to do.

use std::path::Path;

use kms_client::Source;
use kms_client::probe::{self, Finding, KEYS_TAKEN, Probed, Site, StatusReport, Step, Verdict};
use qvpn_api::Config;
use qvpn_api::config::{self, QkdPolicy, Role, SaeId};
use serde::Serialize;

use crate::error::CtlError;
use crate::output::{self, Paint, Tone};
use crate::routes;

pub(crate) struct Options<'a> {
    pub(crate) file: &'a Path,
    pub(crate) peer: Option<&'a str>,
    pub(crate) other: Option<&'a Path>,
    pub(crate) take: bool,
    pub(crate) json: bool,
}

/// The JSON form; `docs/schemas/kms-check.json` describes it.
#[derive(Serialize)]
struct Report {
    schema: u32,
    file: String,
    ok: bool,
    checks: Vec<Check>,
}

/// One KME, from the point of view of one peer.
#[derive(Serialize)]
struct Check {
    site: &'static str,
    kme: String,
    api: String,
    url: String,
    peer: String,
    peer_sae_id: String,
    ok: bool,
    keys_spent: u32,
    findings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    step: &'static str,
    result: &'static str,
    code: &'static str,
    text: String,
    advice: Option<String>,
}

impl Row {
    fn of(finding: Finding) -> Self {
        let Finding { step, verdict, code, text, advice } = finding;
        let advice = (!advice.is_empty()).then_some(advice);
        Self { step: step.as_str(), result: verdict.as_str(), code, text, advice }
    }
}

impl Check {
    fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            self.ok &= finding.verdict != Verdict::Failed;
            self.findings.push(Row::of(finding));
        }
    }
}

pub(crate) fn check(wanted: &Options<'_>) -> Result<(), CtlError> {
    let config = Config::load(wanted.file)?;
    let other = wanted.other.map(Config::load).transpose()?;
    let peers = peers(&config, wanted)?;
    if wanted.take {
        output::note(&format!(
            "Up to {KEYS_TAKEN} keys are taken for each peer and KME. A key that is taken is spent; \
             --no-take takes none."
        ));
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CtlError::Runtime)?;
    let paint = Paint::for_stdout();
    let mut checks = Vec::new();
    for peer in peers {
        let new = runtime.block_on(check_peer(&config, peer, other.as_ref(), wanted.take))?;
        if !wanted.json {
            new.iter().try_for_each(|check| output::print(&text(check, paint)))?;
        }
        checks.extend(new);
    }
    let bad = checks.iter().filter(|check| !check.ok).count();
    let all = checks.len();
    if wanted.json {
        let file = wanted.file.display().to_string();
        output::print_json(&Report { schema: 1, file, ok: bad == 0, checks })?;
    } else if bad == 0 {
        let quirks =
            checks.iter().flat_map(|check| &check.findings).filter(|row| row.result == "quirk").count();
        let which = if all == 1 { "the check".to_owned() } else { format!("all {all} checks") };
        let s = if quirks == 1 { "" } else { "s" };
        output::print(&format!("{which} passed, with {quirks} quirk{s}\n"))?;
    }
    if bad > 0 { Err(CtlError::KmeCheck { bad, all }) } else { Ok(()) }
}

/// Returns the peers that use a KME, or only the requested one.
fn peers<'c>(config: &'c Config, wanted: &Options<'_>) -> Result<Vec<&'c config::Peer>, CtlError> {
    let file = wanted.file.to_owned();
    let some = match wanted.peer {
        Some(name) => {
            vec![config.find_peer(name).map_err(|source| CtlError::NoPeer { file: file.clone(), source })?]
        }
        None => config.peers.iter().collect(),
    };
    let some: Vec<_> =
        some.into_iter().filter(|peer| peer.qkd != QkdPolicy::Off && !peer.kmes.is_empty()).collect();
    if some.is_empty() { Err(CtlError::NoKme(file)) } else { Ok(some) }
}

/// One site of a peer.
struct Side<'c> {
    name: &'static str,
    config: &'c Config,
    peer: &'c config::Peer,
    peer_sae: &'c SaeId,
}

impl<'c> Side<'c> {
    fn kmes(&self) -> impl Iterator<Item = &'c config::Kme> {
        let all = self.config.kms.as_ref().map_or(&[][..], |kms| &kms.kmes);
        self.peer.kmes.iter().filter_map(move |name| all.iter().find(|kme| kme.name == *name))
    }
}

/// A KME and the result of its checks.
struct CheckedKme {
    open: Option<Source>,
    looked: Option<StatusReport>,
}

impl CheckedKme {
    fn probed(&self) -> Option<Probed<'_>> {
        self.open.as_ref().map(Source::probed)
    }

    fn works(&self) -> bool {
        self.looked
            .as_ref()
            .is_some_and(|looked| looked.findings.iter().all(|f| f.verdict != Verdict::Failed))
    }
}

async fn check_peer(
    config: &Config,
    peer: &config::Peer,
    other: Option<&Config>,
    take: bool,
) -> Result<Vec<Check>, CtlError> {
    // A config gives both to each peer that uses QKD.
    let (Some(peer_sae), Some(own_sae)) = (&peer.sae_id, own_sae(config)) else { return Ok(Vec::new()) };
    let ours = Side { name: "this", config, peer, peer_sae };
    let theirs = match other {
        Some(other) => {
            let peer = mirror(config, peer, other)?;
            Some(Side { name: "other", config: other, peer, peer_sae: own_sae })
        }
        None => None,
    };
    let (here, mut checks) = look_at(&ours).await?;
    let (there, more) = match &theirs {
        Some(theirs) => look_at(theirs).await?,
        None => (Vec::new(), Vec::new()),
    };
    for (i, seen) in here.iter().enumerate() {
        let Some(check) = checks.get_mut(i) else { continue };
        let skip = |code, why: &str| probe::skipped(Step::Take, code, why);
        if !take {
            check.add([skip("no_take", "no key was taken, because of --no-take")]);
            continue;
        }
        if !seen.works() {
            check.add([skip("kme_failed", "no key was taken, because the KME failed before")]);
            continue;
        }
        let partner = partner(i, seen, &there);
        if partner.is_some_and(|partner| !partner.works()) {
            check.add([skip("other_kme_failed", "no key was taken, because the other site's KME failed")]);
            continue;
        }
        let (Some(kme), Some(link)) = (seen.probed(), seen.looked.as_ref().and_then(|l| l.link.as_ref()))
        else {
            continue;
        };
        let our_end = Site { kme, sae: own_sae, link: Some(link) };
        let their_end = partner.and_then(|partner| {
            let link = partner.looked.as_ref().and_then(|looked| looked.link.as_ref());
            Some(Site { kme: partner.probed()?, sae: peer_sae, link })
        });
        let taken = match (we_are_master(config, peer), their_end) {
            (true, slave) => probe::check_keys(our_end, slave, peer_sae).await,
            (false, Some(master)) => probe::check_keys(master, Some(our_end), own_sae).await,
            (false, None) => {
                check.add([skip(
                    "we_are_slave",
                    "no key was taken: for this peer our site is the slave SAE, which gets keys only by \
                     their IDs; run this at the other site, or pass its config with --other FILE",
                )]);
                continue;
            }
        };
        check.keys_spent = taken.keys_spent;
        check.add(taken.findings);
    }
    for open in here.iter().chain(&there).filter_map(|seen| seen.open.as_ref()) {
        open.close().await;
    }
    checks.extend(more);
    Ok(checks)
}

fn own_sae(config: &Config) -> Option<&SaeId> {
    config.kms.as_ref().map(|kms| &kms.sae_id)
}

/// Returns the peer in the other site's config that stands for this site.
fn mirror<'c>(config: &Config, peer: &config::Peer, other: &'c Config) -> Result<&'c config::Peer, CtlError> {
    let (ours, theirs) = (own_sae(config), own_sae(other));
    let text = |id: Option<&SaeId>| id.map(ToString::to_string).unwrap_or_default();
    let wrong = |what: String| CtlError::OtherConfig { file: other.path.clone(), what };
    if theirs.is_none() || peer.sae_id.as_ref() != theirs {
        return Err(wrong(format!(
            "its SAE ID is \"{}\", and peer {} has \"{}\"",
            text(theirs),
            peer.name,
            text(peer.sae_id.as_ref())
        )));
    }
    let found = other.peers.iter().find(|p| p.sae_id.as_ref() == ours && p.qkd != QkdPolicy::Off);
    found.ok_or_else(|| wrong(format!("it has no peer with our sae_id \"{}\" that uses QKD", text(ours))))
}

/// Whether we are the initiator and therefore the master SAE.
fn we_are_master(config: &Config, peer: &config::Peer) -> bool {
    match peer.role {
        Role::Initiator => true,
        Role::Responder => false,
        // As in the protocol: the smaller X25519 key. Without our key the role is unknown, and taking a key
        // is harmless.
        Role::Auto => {
            config.read_private_key().map_or(true, |own| own.public().x25519() < peer.public_key.x25519())
        }
    }
}

/// Returns the KME at the other site of the link: the one with matching names in both reports, otherwise the
/// one at the same position.
fn partner<'s>(i: usize, seen: &CheckedKme, there: &'s [CheckedKme]) -> Option<&'s CheckedKme> {
    let link =
        |seen: &CheckedKme| seen.looked.as_ref().and_then(|looked| looked.link.clone()).unwrap_or_default();
    let ours = link(seen);
    let by_name = there.iter().find(|other| {
        let theirs = link(other);
        let mirrored = (&ours.source_kme, &ours.target_kme) == (&theirs.target_kme, &theirs.source_kme);
        !ours.source_kme.is_empty() && mirrored
    });
    by_name.or_else(|| there.get(i)).or_else(|| there.first())
}

async fn look_at(side: &Side<'_>) -> Result<(Vec<CheckedKme>, Vec<Check>), CtlError> {
    let mark = routes::plan(side.config)?.fwmark();
    let (mut all, mut checks) = (Vec::new(), Vec::new());
    for kme in side.kmes() {
        let mut check = Check {
            site: side.name,
            kme: kme.name.clone(),
            api: kme.api().to_string(),
            url: kme.url(),
            peer: side.peer.name.clone(),
            peer_sae_id: side.peer_sae.as_str().to_owned(),
            ok: true,
            keys_spent: 0,
            findings: Vec::new(),
        };
        let seen = match Source::open(kme, mark) {
            Ok(open) => {
                let looked = probe::check_status(open.probed(), kme.sae_id.as_str(), side.peer_sae).await;
                check.add(looked.findings.iter().cloned());
                CheckedKme { open: Some(open), looked: Some(looked) }
            }
            Err(error) => {
                check.add([Finding {
                    step: Step::Reach,
                    verdict: Verdict::Failed,
                    code: error.kind().as_str(),
                    text: error.to_string(),
                    advice: error.advice().to_owned(),
                }]);
                CheckedKme { open: None, looked: None }
            }
        };
        all.push(seen);
        checks.push(check);
    }
    Ok((all, checks))
}

fn text(check: &Check, paint: Paint) -> String {
    let Check { kme, api, url, peer, peer_sae_id, .. } = check;
    let site = if check.site == "other" { "at the other site, " } else { "" };
    let mut text = format!(
        "{} ({api}, {url}), {site}for peer {peer} (SAE {peer_sae_id})\n",
        paint.text(Tone::Head, kme)
    );
    for row in &check.findings {
        let tone = match row.result {
            "ok" => Tone::Good,
            "quirk" => Tone::Warn,
            "failed" => Tone::Bad,
            _ => Tone::Plain,
        };
        let result = paint.text(tone, &format!("{:<7}", row.result));
        let wrapped = |text: &str, first| paint.wrapped(Tone::Plain, text, first, 10);
        text += &format!("  {result} {:<11} {}\n", row.step, wrapped(&row.text, 22));
        if let Some(advice) = &row.advice {
            text += &format!("          {:<11} -> {}\n", "", wrapped(advice, 25));
        }
    }
    text.push('\n');
    text
}
