//! The audit log of real programs: who changed what is in it, changes of it are found, and crashes, full
//! disks and restarts leave it whole. The commands of docs/audit.md run here too.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Site, binary, sandbox, wait_until};

const LIMIT: Duration = Duration::from_secs(30);
/// Where gateway A keeps its log and the key that seals it; on file systems of its own.
const LOG: &str = "/var/log/qvpn/qvpn0.audit";
const KEY: &str = "/var/lib/qvpn-audit/qvpn0.key";

/// Gives gateway A directories of its own, so that B's daemon has no audit log.
fn own_directories(lab: &Lab) {
    for dir in ["/var/log/qvpn", "/var/lib/qvpn-audit"] {
        fs::create_dir_all(dir).unwrap();
        lab.gw_a.run(&format!("mount -t tmpfs -o size=256k tmpfs {dir}"));
    }
}

/// Runs `qvpn-ctl audit` on gateway A.
fn audit(lab: &Lab, words: &[&str]) -> (i32, String) {
    let output: Output = lab.gw_a.command(binary("qvpn-ctl")).arg("audit").args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), text + &String::from_utf8_lossy(&output.stderr))
}

/// Sets the log up, and keeps the verification key in the file that is returned.
fn set_up(lab: &Lab) -> String {
    let file = lab.gw_a.dir().join("audit-key").display().to_string();
    let ctl = binary("qvpn-ctl").display().to_string();
    lab.gw_a.run(&format!("{ctl} audit setup qvpn0 > {file}"));
    file
}

/// The recorded lines.
fn lines(lab: &Lab) -> Vec<Value> {
    let (_, text) = audit(lab, &["show", "qvpn0", "--json"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until a line of this kind is there.
#[track_caller]
fn recorded(lab: &Lab, kind: &str) -> Value {
    wait_until(&format!("the record {kind}"), LIMIT, || {
        lines(lab).into_iter().rfind(|line| line["event"] == kind)
    })
}

#[track_caller]
fn verified(lab: &Lab, key: &str) {
    let (code, said) = audit(lab, &["verify", "qvpn0", "--key-file", key]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("lines are as they were written"), "{said}");
}

fn state(gateway: &Gateway<'_>) -> Value {
    gateway.try_show().unwrap()["audit"].clone()
}

#[test]
fn who_changed_what_is_recorded_and_a_changed_log_is_found() {
    sandbox::run("who_changed_what_is_recorded_and_a_changed_log_is_found", || {
        let lab = Lab::new();
        own_directories(&lab);
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let [gateway, _b] = lab.start_both(&GatewayOptions::default());
        gateway.wait_state("up", LIMIT);
        assert_eq!(state(&gateway)["state"], "off");
        // The daemon runs already: it takes the log up at the next record.
        let key = set_up(&lab);
        let (code, said) = audit(&lab, &["setup", "qvpn0"]);
        assert!(code == 1 && said.contains("is set up already"), "{said}");
        let secret = fs::read_to_string(&key).unwrap();
        assert!(secret.starts_with("qvpn1-audit-"));

        let file = lab.gw_a.dir().join("qvpn0.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(
            &file,
            text.replace("qkd = \"required\"", "qkd = \"preferred\"") + "[audit]\nepochs = \"all\"\n",
        )
        .unwrap();
        assert!(gateway.ctl(&["reload", "qvpn0"]).status.success());
        let used = recorded(&lab, "control.used");
        assert_eq!(
            (&used["request"], &used["by"], &used["uid"]),
            (&"reload".into(), &"root".into(), &0.into())
        );
        let changed = lines(&lab).into_iter().find(|line| line["key"] == "qkd").unwrap();
        let fields = ["event", "peer", "from", "to", "uid"].map(|name| changed[name].clone());
        let expected = serde_json::json!(["config.changed", "site-b", "required", "preferred", 0]);
        assert_eq!(serde_json::json!(fields), expected);
        assert_eq!(recorded(&lab, "policy.degraded")["to"], "preferred");
        let epoch = recorded(&lab, "epoch.active");
        assert!(epoch["epoch"].is_u64() && epoch["qkd_key_id"].is_string(), "{epoch}");
        assert_eq!((&epoch["peer"], &epoch["kme"]), (&"site-b".into(), &"kme-a1".into()));
        let (_, shown) = audit(&lab, &["show", "qvpn0", "--kind", "config.changed", "--peer", "site-b"]);
        assert!(
            shown.contains(" config.changed by=root from=required key=qkd peer=site-b to=preferred uid=0"),
            "{shown}"
        );
        verified(&lab, &key);
        assert_eq!(state(&gateway)["state"], "on");

        let copy = |name: &str, edit: &dyn Fn(&mut Vec<String>)| {
            let text = lab.gw_a.run(&format!("cat {LOG}"));
            let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
            edit(&mut lines);
            let file = lab.gw_a.dir().join(name);
            fs::write(&file, lines.concat()).unwrap();
            let (code, said) = audit(&lab, &["verify", "--file", file.to_str().unwrap(), "--key-file", &key]);
            (code, said.split_once(name).map_or(said.clone(), |(_, rest)| rest.to_owned()))
        };
        assert_eq!(copy("whole", &|_| {}).0, 0);
        type Edit<'a> = &'a dyn Fn(&mut Vec<String>);
        let bad: [(&str, Edit<'_>, &str); 4] = [
            ("edited", &|lines| lines[2] = lines[2].replace("\"uid\":0", "\"uid\":7"), ":3: changed: "),
            ("swapped", &|lines| lines.swap(1, 3), ":2: moved: "),
            ("middle", &|lines| drop(lines.drain(1..3)), ":2: missing: lines number 1 to 2 "),
            ("cut", &|lines| lines.last_mut().unwrap().truncate(40), ": cut: "),
        ];
        for (name, edit, expected) in bad {
            let (code, said) = copy(name, edit);
            assert!(code == 1 && said.contains(expected), "{name}: {code} {said}");
        }
        // A line that is gone from the end is missed on the machine, whose key is further.
        drop(gateway);
        lab.gw_a.run(&format!("sed -i '$d' {LOG}"));
        let (code, said) = audit(&lab, &["verify", "qvpn0", "--key-file", &key]);
        assert!(code == 1 && said.contains("truncated: lines number "), "{said}");
    });
}

#[test]
fn crashes_full_disks_and_a_second_writer_leave_the_log_whole() {
    sandbox::run("crashes_full_disks_and_a_second_writer_leave_the_log_whole", || {
        let lab = Lab::new();
        own_directories(&lab);
        let options = GatewayOptions { qkd: "off".into(), kms: None, ..GatewayOptions::default() };
        let file = lab.configure(Site::A, &options);
        let _ = lab.configure(Site::B, &options);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text + "[audit]\nepochs = \"all\"\n").unwrap();
        let key = set_up(&lab);
        let (mut gateway, _b) = (lab.start_daemon(Site::A), lab.start_daemon(Site::B));
        gateway.wait_state("up", LIMIT);
        let _ = recorded(&lab, "epoch.active");
        verified(&lab, &key);

        // Another process has no access to the log meanwhile, and a killed daemon leaves it whole.
        let held = lab.gw_a.try_run(&format!("flock --nonblock {KEY} true"));
        assert!(!held.status.success(), "the key's file is locked");
        gateway.process.kill();
        drop(gateway);
        lab.gw_a.run(&format!("printf '{{\"seq\":' >> {LOG}"));
        let gateway = lab.start_daemon(Site::A);
        let started = recorded(&lab, "audit.started");
        assert!(
            started["found"].as_str().unwrap().contains("7 bytes of a line that a crash cut"),
            "{started}"
        );
        gateway.wait_state("up", LIMIT);
        verified(&lab, &key);

        // The disk is full: records wait, and none is lost.
        let _ = lab.gw_a.try_run("cat /dev/zero > /var/log/qvpn/filler");
        wait_until("the log fails", LIMIT, || (state(&gateway)["state"] == "failing").then_some(()));
        assert!(gateway.ctl(&["rekey", "qvpn0"]).status.success());
        let shown = String::from_utf8(gateway.ctl(&["show", "qvpn0"]).stdout).unwrap();
        assert!(shown.contains("not written: ") && shown.contains("No space left"), "{shown}");
        lab.gw_a.run("rm /var/log/qvpn/filler");
        wait_until("it goes on", LIMIT, || (state(&gateway)["state"] == "on").then_some(()));
        assert_eq!(recorded(&lab, "control.used")["request"], "rekey");
        assert_eq!(state(&gateway)["lost"], 0);
        verified(&lab, &key);

        // Another program moves the log away, as logrotate does.
        lab.gw_a.run(&format!("mv {LOG} {LOG}.0"));
        wait_until("a new file", LIMIT, || {
            lab.gw_a.try_run(&format!("test -s {LOG}")).status.success().then_some(())
        });
        verified(&lab, &key);
        let mut gateway = gateway;
        gateway.process.stop();
        assert_eq!(lines(&lab).last().unwrap()["event"], "audit.stopped");
        verified(&lab, &key);
    });
}

/// Pages whose marked blocks are run, each in a lab of its own.
const PAGES: [&str; 5] = ["audit.md", "change-management.md", "hardening.md", "incident.md", "acceptance.md"];

/// The commands of a page's blocks that are marked to be run.
fn commands(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = fs::read_to_string(path).unwrap();
    let block = |rest: &str| {
        let inside = rest.split_once("```sh\n")?.1.split("```").next()?;
        Some(inside.lines().map(str::trim).collect::<Vec<_>>().join("\n"))
    };
    text.split("<!-- run -->").skip(1).filter_map(block).collect()
}

#[test]
fn the_commands_of_the_pages_work() {
    sandbox::run("the_commands_of_the_pages_work", || {
        let programs = binary("qvpn-ctl").parent().unwrap().display().to_string();
        for page in PAGES {
            let lab = Lab::new();
            own_directories(&lab);
            let options = GatewayOptions { qkd: "off".into(), kms: None, ..GatewayOptions::default() };
            let [gateway, _b] = lab.start_both(&options);
            gateway.wait_state("up", LIMIT);
            let dir = lab.gw_a.dir().display().to_string();
            let blocks = commands(page);
            assert!(blocks.len() >= 2, "{page}");
            for block in blocks {
                let block = block.replace("/etc/qvpn/", &format!("{dir}/"));
                let environment = format!("cd {dir}; export PATH=$PATH:{programs} QVPN_CONFIG_DIR={dir}");
                println!("{page}: {}", lab.gw_a.run(&format!("set -e; {environment}; {block}")));
            }
        }
    });
}
