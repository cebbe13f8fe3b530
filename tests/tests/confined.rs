//! Each thread of a running daemon, the lanes' too, has dropped the rights that it does not need.
//! `qvpn-daemon/src/sandbox/tests.rs` tries each forbidden action; here the real program is examined from
//! outside.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tests::{Gateway, GatewayOptions, KmeOptions, Lab, binary, sandbox};

const START: Duration = Duration::from_secs(20);
/// `CAP_NET_ADMIN` in the format of /proc.
const NET_ADMIN: &str = "0000000000001000";

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

/// The prefix of a command that gives the command the daemon's rights.
const AS_DAEMON: [&str; 4] = ["--bounding-set", "-all,+net_admin", "--inh-caps", "-all"];

/// Reads a byte of a process's environment with the daemon's rights.
fn can_be_looked_into(lab: &Lab, process: u32) -> bool {
    let file = format!("/proc/{process}/environ");
    let mut command = lab.gw_a.command("setpriv");
    command.args(AS_DAEMON).args(["head", "-c", "1"]).arg(file).output().unwrap().status.success()
}

#[test]
fn every_thread_is_confined() {
    sandbox::run("every_thread_is_confined", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let options = GatewayOptions { interface: "lanes = 2".to_owned(), ..GatewayOptions::default() };
        let [mut gateway, _other] = lab.start_both(&options);
        gateway.wait_state("up", START);
        let process = gateway.process.id();
        let mut names = Vec::new();
        for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            let thread = thread.unwrap().path();
            let status = fs::read_to_string(thread.join("status")).unwrap();
            assert_eq!(field(&status, "NoNewPrivs"), "1", "{status}");
            assert_eq!(field(&status, "Seccomp"), "2", "{status}");
            assert_eq!(field(&status, "CapPrm"), NET_ADMIN, "{status}");
            assert_eq!(field(&status, "CapEff"), NET_ADMIN, "{status}");
            for none in ["CapInh", "CapBnd", "CapAmb"] {
                assert_eq!(field(&status, none), "0000000000000000", "{none}: {status}");
            }
            names.push(field(&status, "Name").to_owned());
        }
        for lane in ["lane0-send", "lane0-recv", "lane1-send", "lane1-recv"] {
            assert!(names.iter().any(|name| name == lane), "{lane} is among {names:?}");
        }
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let locked: u64 = field(&status, "VmLck").trim_end_matches(" kB").trim().parse().unwrap();
        assert!(locked >= 1024, "{locked} kB are locked");
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");

        // The daemon's user can read the memory of its other programs, but not of this one.
        let words = [AS_DAEMON.as_slice(), &["sh", "-c", "echo begun; exec sleep 60"]].concat();
        let mut ordinary = lab.gw_a.spawn("setpriv", &words);
        ordinary.line("begun", START);
        assert!(can_be_looked_into(&lab, ordinary.id()));
        assert!(!can_be_looked_into(&lab, process), "the daemon can be looked into");
        ordinary.kill();
        let log = gateway.process.log();
        for what in
            ["confined: user ", "with CAP_NET_ADMIN alone", "confined: memory: ", "confined: system calls: "]
        {
            assert!(log.contains(what), "the log says {what}: {log}");
        }
        let socket = lab.gw_a.dir().join("run/qvpn0.sock");
        assert!(socket.exists());
        gateway.process.stop();
        assert!(!socket.exists(), "the control socket goes at the stop, which Landlock must let through");
    });
}

#[test]
fn a_reload_reads_no_file_elsewhere() {
    sandbox::run("a_reload_reads_no_file_elsewhere", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways: [Gateway<'_>; 2] = lab.start_both(&GatewayOptions::default());
        gateways[0].wait_state("up", START);
        if gateways[0].process.log().contains("has no Landlock") {
            return;
        }
        // A new file next to the others may be read, since certificates are replaced in that directory.
        let config = lab.gw_a.dir().join("qvpn0.toml");
        let text = fs::read_to_string(&config).unwrap();
        let key = lab.certificates().join("site-a.key");
        let put = |place: &std::path::Path| {
            fs::copy(&key, place).unwrap();
            fs::set_permissions(place, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&config, text.replace(&key.display().to_string(), &place.display().to_string()))
                .unwrap();
            gateways[0].ctl(&["reload", "qvpn0"])
        };
        let beside = put(&lab.certificates().join("new.key"));
        assert!(beside.status.success(), "{beside:?}");
        let elsewhere = put(std::path::Path::new("/run/elsewhere.key"));
        assert_eq!(elsewhere.status.code(), Some(3), "{elsewhere:?}");
        let said = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
        assert!(said.contains("/run/elsewhere.key: permission denied: since its start"), "{said}");
        assert!(said.contains("put the file there, or restart the daemon"), "{said}");
        // The same for the pre-shared key of a running tunnel: in another directory it is refused; next to
        // the other files and in a new directory below them it is accepted.
        fs::write(&config, &text).unwrap();
        let secret = lab.gw_a.dir().join("made.psk");
        lab.gw_a.run(&format!("umask 077; {} genpsk > {}", binary("qvpn-ctl").display(), secret.display()));
        let below = lab.gw_a.dir().join("psk");
        fs::create_dir(&below).unwrap();
        fs::create_dir("/run/psk").unwrap();
        for (dir, expected) in [("/run/psk".into(), 3), (below, 0), (lab.gw_a.dir().to_owned(), 0)] {
            let psk = dir.join("site-b.psk");
            fs::copy(&secret, &psk).unwrap();
            let psk = psk.display().to_string();
            let set = gateways[0].ctl(&["peer", "set", "qvpn0", "site-b", "--preshared-key-file", &psk]);
            assert_eq!(set.status.code(), Some(expected), "{psk}: {set:?}");
            let said = String::from_utf8_lossy(&set.stderr).into_owned();
            assert_eq!(said.contains("put the file there, or restart the daemon"), expected != 0, "{said}");
        }
        let none = gateways[0].ctl(&["peer", "set", "qvpn0", "site-b", "--unset", "preshared_key_file"]);
        assert!(none.status.success(), "{none:?}");
        let rekeys = gateways[0].peer()["rekeys"].as_u64().unwrap();
        gateways[0].wait_peer("goes on", START, |peer| peer["rekeys"].as_u64().unwrap() > rekeys + 1);
    });
}
