//! A site changes its key while the tunnel carries packets: the other site knows both keys for a while, and
//! nothing is lost.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use qvpn_identity::{PublicIdentity, SecretIdentity};
use serde_json::Value;
use tests::loopback::new_identity;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Memory, Process, Site, Stream, binary, sandbox};

const START: Duration = Duration::from_secs(30);
const RATE: u64 = 5_000;
const SECONDS: u64 = 12;

fn x25519(public: &str) -> [u8; 32] {
    *public.parse::<PublicIdentity>().unwrap().x25519()
}

/// The config of a site's gateway.
fn config(lab: &Lab, site: Site) -> PathBuf {
    lab.gw(site).dir().join("qvpn0.toml")
}

/// Changes a line of a site's config that begins with `key`.
fn set_line(lab: &Lab, site: Site, key: &str, value: &str) {
    let file = config(lab, site);
    let text = fs::read_to_string(&file).unwrap();
    let begins = format!("{key} = ");
    assert_eq!(text.lines().filter(|line| line.starts_with(&begins)).count(), 1, "{text}");
    let line = |line: &str| match line.starts_with(&begins) {
        true => format!("{key} = {value}\n"),
        false => format!("{line}\n"),
    };
    fs::write(&file, text.lines().map(line).collect::<String>()).unwrap();
}

fn set_peer_keys(lab: &Lab, site: Site, keys: &[&str]) {
    set_line(lab, site, "public_key", &format!("{keys:?}"));
}

/// Makes a new key for a site; returns its file and the public key.
fn new_key(lab: &Lab, site: Site, name: &str) -> (PathBuf, String) {
    let file = lab.gw(site).dir().join(name);
    let _ = fs::remove_file(&file);
    let public = new_identity(&file);
    (file, public)
}

/// Reloads; returns what was said.
#[track_caller]
fn reload(gateway: &Gateway<'_>) -> String {
    let output = gateway.ctl(&["reload", "qvpn0"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Reloads a config that is refused; returns what was said.
#[track_caller]
fn refused(gateway: &Gateway<'_>) -> String {
    let output = gateway.ctl(&["reload", "qvpn0"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Runs the commands of docs/operating.md below `run: NAME` at site A; returns what they print.
fn as_on_the_page(lab: &Lab, name: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let page = fs::read_to_string(page).unwrap();
    let part = page.split(&format!("<!-- run: {name} -->\n```console\n")).nth(1).unwrap();
    let block = part.split("```").next().unwrap();
    let node = lab.gw(Site::A);
    let here = |line: &str| {
        // There is no group `qvpn` here.
        line.replace("-m 0640 -g qvpn", "-m 0600")
            .replace("/etc/qvpn", node.dir().to_str().unwrap())
            .replace("qvpn-ctl", binary("qvpn-ctl").to_str().unwrap())
    };
    let lines: Vec<String> = block.lines().filter_map(|line| line.strip_prefix("# ")).map(here).collect();
    assert!(lines.len() > 2, "{name}");
    lines.iter().map(|line| node.run(line)).collect()
}

fn in_use(gateway: &Gateway<'_>, field: &str, key: &str) -> Value {
    gateway.wait_peer(&format!("{field} {key}"), START, |peer| peer[field] == key)
}

/// The names of the keys of secrets in a key file, each of 32 bytes, that a program's memory has.
fn secrets_in_memory(file: &PathBuf, process: &Process) -> Vec<&'static str> {
    let secret = SecretIdentity::from_text(&fs::read_to_string(file).unwrap()).unwrap();
    let memory = Memory::of(process.id());
    let text = fs::read_to_string(file).unwrap();
    let mut found = Vec::new();
    if memory.contains(secret.x25519().expose()) {
        found.push("the X25519 scalar");
    }
    if memory.contains(text.trim().as_bytes()) {
        found.push("the text");
    }
    found
}

fn nothing_was_lost(reports: &[tests::StreamReport; 2]) {
    let total = RATE * SECONDS;
    for report in reports {
        assert_eq!((report.sent, report.refused, report.kernel_drops), (total, 0, 0), "{report:?}");
        let received = &report.received;
        assert_eq!((received.lost, received.duplicated, received.strange), (0, 0, 0), "{report:?}");
    }
}

/// Changes site A's key under load. Returns how the roles of site A were before and after.
fn change_under_load(flips: bool) -> [String; 2] {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let psk = |site: Site| lab.gw(site).dir().join("pair.psk");
    let made = Command::new(binary("qvpn-ctl")).arg("genpsk").output().unwrap().stdout;
    for site in Site::BOTH {
        fs::write(psk(site), &made).unwrap();
        fs::set_permissions(psk(site), Permissions::from_mode(0o600)).unwrap();
        let peer = format!("preshared_key_file = {:?}", psk(site));
        let options = GatewayOptions { rekey_interval: "60s".to_owned(), peer, ..GatewayOptions::default() };
        let _ = lab.configure(site, &options);
    }
    let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    let [a, b] = &gateways;
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    let [former, other] = Site::BOTH.map(|site| lab.identity(site));
    let smaller = |public: &str| x25519(public) < x25519(&other.public);
    let file = lab.gw(Site::A).dir().join("qvpn0-2.key");
    let new = (0..1000)
        .map(|_| as_on_the_page(&lab, "new-identity").lines().next().unwrap().to_owned())
        .find(|public| (smaller(public) != smaller(&former.public)) == flips)
        .unwrap();
    let role = |gateway: &Gateway<'_>| gateway.peer()["role"].as_str().unwrap().to_owned();
    let before = role(a);
    let mut events = gateways.each_ref().map(Gateway::events);
    assert!(lab.lan_a.pings(Site::B.host()[0]));

    let stream = Stream { count: RATE * SECONDS, rate: RATE, ..Stream::default() }.start(&lab);
    set_peer_keys(&lab, Site::B, &[&former.public, &new]);
    reload(b);
    assert_eq!(b.peer()["other_public_key"], new.as_str());
    let started = Instant::now();
    let said = as_on_the_page(&lab, "identity");
    assert!(said.contains("the private key is another one"), "{said}");
    in_use(a, "own_public_key", &new);
    let peer = in_use(b, "public_key", &new);
    println!("flips {flips}: in use {:?} after the reload", started.elapsed());
    assert_eq!((&peer["state"], &peer["other_public_key"]), (&"up".into(), &former.public.as_str().into()));
    for (events, own) in events.iter_mut().zip(["true", "false"]) {
        let line = events.line("identity.changed", START);
        assert!(line.contains(&format!("\"own\":{own}")), "{line}");
    }
    set_peer_keys(&lab, Site::B, &[&new]);
    let said = reload(b);
    assert!(!said.contains("loses its key"), "{said}");
    let reports = stream.finish();
    println!("flips {flips}: {reports:?}");
    nothing_was_lost(&reports);

    assert_eq!(a.show()["public_key"], new.as_str());
    let roles = [role(a), role(b)];
    assert_ne!(roles[0], roles[1]);
    for gateway in &gateways {
        let peer = gateway.wait_state("up", START);
        // The new initiator waits for its first keys.
        let mut failures = peer["rekey_failures"].as_object().unwrap().clone();
        let waited = failures.remove("no_qkd_key");
        assert!(failures.is_empty() && (flips || waited.is_none()), "{peer:#}");
        assert!(peer["reason"].is_null(), "{peer:#}");
        assert!(peer["key_sources"].as_array().unwrap().contains(&"psk".into()), "{peer:#}");
    }
    assert!(a.process.log().contains("the former private key is erased"), "{}", a.process.log());
    assert_eq!(secrets_in_memory(&former.file, &a.process), [""; 0]);
    assert_eq!(secrets_in_memory(&file, &a.process), ["the X25519 scalar"], "the search finds what is there");
    // The tunnel also works on, and after a restart.
    assert!(b.ctl(&["rekey", "qvpn0"]).status.success());
    assert!(lab.lan_a.pings(Site::B.host()[0]));
    [before, roles[0].clone()]
}

#[test]
fn the_key_of_a_site_changes_and_loses_nothing_alone() {
    sandbox::run("the_key_of_a_site_changes_and_loses_nothing_alone", || {
        let [before, after] = change_under_load(false);
        assert_eq!(before, after);
    });
}

#[test]
fn the_key_of_a_site_changes_with_the_roles_and_loses_nothing_alone() {
    sandbox::run("the_key_of_a_site_changes_with_the_roles_and_loses_nothing_alone", || {
        let [before, after] = change_under_load(true);
        assert_ne!(before, after);
    });
}

/// Two sites without QKD.
fn pair(lab: &Lab) -> [Gateway<'_>; 2] {
    let options = GatewayOptions {
        qkd: "off".to_owned(),
        kms: None,
        rekey_interval: "60s".to_owned(),
        ..GatewayOptions::default()
    };
    let gateways = lab.start_both(&options);
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    gateways
}

#[test]
fn a_new_key_that_the_other_site_learns_late_is_used_then_and_can_be_taken_back() {
    sandbox::run("a_new_key_that_the_other_site_learns_late_is_used_then_and_can_be_taken_back", || {
        let lab = Lab::new();
        let gateways = pair(&lab);
        let [a, b] = &gateways;
        let [former, other] = Site::BOTH.map(|site| lab.identity(site));
        let (file, new) = new_key(&lab, Site::A, "second.key");
        let mut events = gateways.each_ref().map(Gateway::events);
        set_line(&lab, Site::A, "private_key_file", &format!("{file:?}"));
        reload(a);
        let line = events[1].line("identity.mismatch", START);
        assert!(line.contains("which is no peer of ours"), "{line}");
        assert_eq!((&a.peer()["own_public_key"], &a.peer()["state"]), (&former.public.into(), &"up".into()));
        let text = String::from_utf8(a.ctl(&["show"]).stdout).unwrap();
        assert!(text.contains("own key in use: the former one"), "{text}");
        // Taken back, nothing has happened.
        set_line(&lab, Site::A, "private_key_file", &format!("{:?}", former.file));
        reload(a);
        assert!(a.ctl(&["rekey", "qvpn0"]).status.success());
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        // Tried with the other site ready, and taken back by the timeout.
        set_peer_keys(&lab, Site::B, &[&lab.identity(Site::A).public, &new]);
        reload(b);
        set_line(&lab, Site::A, "private_key_file", &format!("{file:?}"));
        let output = a.ctl(&["reload", "--confirm", "3s", "qvpn0"]);
        assert!(output.status.success(), "{output:?}");
        in_use(b, "public_key", &new);
        in_use(b, "public_key", &lab.identity(Site::A).public);
        in_use(a, "own_public_key", &lab.identity(Site::A).public);
        for line in ["\"own\":true", "\"own\":true"] {
            events[0].line(line, START);
        }
        for gateway in &gateways {
            gateway.wait_state("up", START);
        }
        // Both sites change at once.
        let (other_file, other_new) = new_key(&lab, Site::B, "second.key");
        set_peer_keys(&lab, Site::A, &[&other.public, &other_new]);
        reload(a);
        set_line(&lab, Site::A, "private_key_file", &format!("{file:?}"));
        set_line(&lab, Site::B, "private_key_file", &format!("{other_file:?}"));
        std::thread::scope(|scope| {
            for gateway in &gateways {
                scope.spawn(move || reload(gateway));
            }
        });
        for (gateway, own, peer) in [(a, &new, &other_new), (b, &other_new, &new)] {
            in_use(gateway, "own_public_key", own);
            in_use(gateway, "public_key", peer);
            gateway.wait_state("up", START);
        }
        assert!(lab.lan_a.pings(Site::B.host()[0]));
    });
}

#[test]
fn keys_that_cannot_be_used_change_nothing_and_a_removed_key_ends_the_traffic() {
    sandbox::run("keys_that_cannot_be_used_change_nothing_and_a_removed_key_ends_the_traffic", || {
        let lab = Lab::new();
        let gateways = pair(&lab);
        let [a, b] = &gateways;
        let [own, other] = Site::BOTH.map(|site| lab.identity(site));
        let (file, new) = new_key(&lab, Site::A, "second.key");
        let handshakes = |gateway: &Gateway<'_>| gateway.peer()["rekeys"].as_u64().unwrap();
        let before = gateways.each_ref().map(handshakes);
        let missing = lab.gw(Site::A).dir().join("missing.key");
        set_line(&lab, Site::A, "private_key_file", &format!("{missing:?}"));
        let said = refused(a);
        assert!(said.contains("missing.key") && said.contains("stays in force"), "{said}");
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        set_line(&lab, Site::A, "private_key_file", &format!("{file:?}"));
        let said = refused(a);
        assert!(said.contains("others can read it") || said.contains("0644"), "{said}");
        fs::write(&file, "no key").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert!(refused(a).contains("second.key"));
        set_line(&lab, Site::A, "private_key_file", &format!("{:?}", own.file));
        for (keys, why) in [
            (vec![other.public.as_str(), other.public.as_str()], "is here twice"),
            (vec![other.public.as_str(), own.public.as_str()], "is our own"),
            (vec![], "`public_key` has 0 keys"),
            (vec![other.public.as_str(), new.as_str(), own.public.as_str()], "`public_key` has 3 keys"),
        ] {
            set_peer_keys(&lab, Site::A, &keys);
            let said = refused(a);
            assert!(said.contains(why), "{said}");
        }
        set_peer_keys(&lab, Site::A, &[&other.public]);
        reload(a);
        assert_eq!(gateways.each_ref().map(handshakes), before, "nothing has changed");
        // A second key that is never used changes nothing either.
        set_peer_keys(&lab, Site::B, &[&new, &own.public]);
        reload(b);
        assert!(lab.lan_a.pings(Site::B.host()[0]));
        assert_eq!(b.peer()["public_key"], own.public.as_str());
        assert_eq!(b.peer()["other_public_key"], new.as_str());
        // The key in use goes: the traffic ends at once, and says so.
        set_peer_keys(&lab, Site::B, &[&new]);
        let said = reload(b);
        assert!(said.contains("loses its key in use"), "{said}");
        assert!(!lab.lan_a.pings(Site::B.host()[0]));
        let peer = b.peer();
        assert_eq!((&peer["public_key"], &peer["key_sources"]), (&new.into(), &serde_json::json!([])));
    });
}
