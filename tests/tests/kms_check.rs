//! `qvpn-ctl kms check` against `kme-sim`: for each misbehaviour and each operation that can show it, what the check finds,
//! in words with a way out, and its exit code. None of what is printed or logged on the way holds a key.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde_json::Value;
use tests::loopback::{Loopback, Vendor, loopback_up, new_identity};
use tests::misbehaviours::{PORT, ROWS};
use tests::{binary, sandbox};

/// Both sites and their KMEs on loopback.
struct Site {
    kmes: Loopback,
    /// All that was printed.
    printed: Mutex<String>,
}

impl Site {
    fn new(number: u8) -> Self {
        loopback_up();
        let kmes = Loopback::start(&format!("check-{number}"), &Vendor::pair([7, 7, 7, number]));
        let site = Self { kmes, printed: Mutex::default() };
        let folder = &site.kmes.folder;
        let keys = ["a", "b"].map(|name| new_identity(&folder.join(format!("{name}.key"))));
        for (i, (name, kme, sae, other)) in
            [("a", "kme-a1", "SITE-A", "SITE-B"), ("b", "kme-b1", "SITE-B", "SITE-A")].into_iter().enumerate()
        {
            let (peer, role) = [("b", "initiator"), ("a", "responder")][i];
            let text = format!(
                "[interface]\nname = \"qvpn{i}\"\nprivate_key_file = \"{}/{name}.key\"\naddress = [\"10.77.0.{}/30\"]\n\
                 [kms]\nsae_id = \"{sae}\"\n{}\
                 [[peer]]\nname = \"site-{peer}\"\npublic_key = \"{}\"\nallowed_ips = []\nsae_id = \"{other}\"\nrole = \"{role}\"\n",
                folder.display(),
                i + 1,
                site.kmes.source(kme, "etsi014", sae),
                keys[1 - i],
            );
            fs::write(site.file(name), text).unwrap();
        }
        site
    }

    fn file(&self, name: &str) -> PathBuf {
        self.kmes.folder.join(format!("{name}.toml"))
    }

    /// Runs `kms check` with these words behind it; exit code and standard output.
    fn check(&self, words: &[&str]) -> (i32, String) {
        let output = Command::new(binary("qvpn-ctl")).args(["kms", "check"]).args(words).output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        let mut printed = self.printed.lock().unwrap();
        printed.push_str(&out);
        printed.push_str(&err);
        (output.status.code().unwrap(), out)
    }

    fn check_both(&self) -> (i32, Value) {
        let (a, b) = (self.file("a").display().to_string(), self.file("b").display().to_string());
        let (code, out) = self.check(&[&a, "--other", &b, "--json"]);
        (code, serde_json::from_str(&out).unwrap())
    }

    /// What is wrong with the outcome of one row.
    fn look(&self, kme: &str, op: &str, how: &str, want: &str) -> Option<String> {
        self.kmes.misbehave(kme, op, how);
        let (code, report) = self.check_both();
        self.kmes.misbehave(kme, "all", "none");
        let findings: Vec<&Value> = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|check| check["findings"].as_array().unwrap())
            .collect();
        let told = |result: &str| -> BTreeSet<&str> {
            findings.iter().filter(|f| f["result"] == result).map(|f| f["code"].as_str().unwrap()).collect()
        };
        let (failed, quirks) = (told("failed"), told("quirk"));
        let right = match want.split_once(' ') {
            Some(("fails", wanted)) => code == 5 && failed.contains(wanted) && report["ok"] == false,
            Some(("quirk", wanted)) => {
                code == 0 && wanted.split('|').any(|code| quirks.contains(code)) && report["ok"] == true
            }
            _ => code == 0 && failed.is_empty() && quirks.is_empty(),
        };
        let helpful =
            findings.iter().filter(|f| f["result"] == "failed" || f["result"] == "quirk").all(|f| {
                let (text, advice) = (f["text"].as_str().unwrap(), f["advice"].as_str().unwrap_or_default());
                !text.contains('\n')
                    && text.len() < 1000
                    && advice.len() > 15
                    && (f["result"] == "quirk" || text.contains("kme-"))
            });
        let words: Vec<&str> = findings
            .iter()
            .filter(|f| f["result"] == "failed" || f["result"] == "quirk")
            .map(|f| f["text"].as_str().unwrap())
            .collect();
        (!right || !helpful).then(|| {
            format!(
                "{how} for {op} of {kme}: wanted {want}; exit code {code}, failed {failed:?}, quirks {quirks:?}, helpful {helpful}: {words:?}"
            )
        })
    }
}

/// All rows: KME, operation, misbehaviour, and what is to be found.
fn table() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    let mut rows: Vec<_> = PORT.iter().map(|(how, want)| ("kme-a1", "all", *how, *want)).collect();
    for (how, wants) in ROWS {
        let ends = [("kme-a1", "status"), ("kme-a1", "enc_keys"), ("kme-b1", "dec_keys")];
        for ((kme, op), want) in ends.into_iter().zip(wants) {
            if !want.is_empty() {
                rows.push((kme, op, *how, *want));
            }
        }
    }
    rows
}

#[test]
fn each_misbehaviour_of_each_operation_is_found() {
    sandbox::run("each_misbehaviour_of_each_operation_is_found", || {
        let rows = Mutex::new(table().into_iter());
        let wrong = Mutex::new(Vec::new());
        let next = || rows.lock().unwrap().next();
        std::thread::scope(|scope| {
            for number in 0..6 {
                let (next, wrong) = (&next, &wrong);
                scope.spawn(move || {
                    let site = Site::new(number);
                    while let Some((kme, op, how, want)) = next() {
                        wrong.lock().unwrap().extend(site.look(kme, op, how, want));
                    }
                    site.kmes.assert_no_keys(&site.printed.lock().unwrap(), 3);
                });
            }
        });
        let wrong = wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    });
}

#[test]
fn the_table_has_every_misbehaviour_of_the_simulator() {
    let help = Command::new(binary("kme-sim"))
        .args(["admin", "x", "misbehave", "kme-a1", "all", "?"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stderr).unwrap();
    let list = help.split("[possible values: ").nth(1).unwrap().split(']').next().unwrap();
    let table: BTreeSet<&str> = table().iter().map(|row| row.2).collect();
    for how in list.split(", ") {
        assert!(table.contains(how), "{how} is not in the table");
    }
}

#[test]
fn people_read_what_works_what_is_odd_and_what_to_do() {
    sandbox::run("people_read_what_works_what_is_odd_and_what_to_do", || {
        let site = Site::new(0);
        let (a, b) = (site.file("a").display().to_string(), site.file("b").display().to_string());
        let (code, out) = site.check(&[&a, "--other", &b]);
        println!("{out}");
        assert_eq!(code, 0);
        for words in [
            "TLSv1_3, X25519MLKEM768",
            "the KME knows us as SAE SITE-A",
            "3 keys of 256 bits, which are spent",
            "is the same at kme-b1",
            "all 2 checks passed",
        ] {
            assert!(out.contains(words), "{words}");
        }
        assert!(site.printed.lock().unwrap().contains("A key that is taken is spent"));

        // Nothing is taken with --no-take, nor at a slave without the master's config.
        let stored = || site.kmes.admin(&["stored"]);
        let before = stored();
        let (code, out) = site.check(&[&a, "--other", &b, "--no-take"]);
        assert!(code == 0 && out.contains("no key was taken, as asked for"), "{out}");
        let (code, out) = site.check(&[&b]);
        assert!(code == 0 && out.contains("slave SAE"), "{out}");
        assert_eq!(stored(), before);
        // From the slave's side with the master's config it works as well.
        let (code, out) = site.check(&[&b, "--other", &a, "--peer", "site-a"]);
        assert!(code == 0 && out.contains("is the same at kme-b1"), "{out}");

        site.kmes.misbehave("kme-a1", "all", "cert_v1");
        let (code, out) = site.check(&[&a]);
        println!("{out}");
        assert_eq!(code, 5);
        assert!(out.contains("X.509 version 1") && out.contains("-> issue a new one"), "{out}");

        assert_eq!(site.check(&[&a, "--peer", "nobody"]).0, 1);
        assert_eq!(site.check(&[&a, "--other", &a]).0, 1);
        assert_eq!(site.check(&["/nonexistent.toml"]).0, 3);
    });
}

#[test]
fn proxies_of_the_environment_are_not_asked() {
    sandbox::run("proxies_of_the_environment_are_not_asked", || {
        let site = Site::new(0);
        let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        proxy.set_nonblocking(true).unwrap();
        let at = format!("http://{}", proxy.local_addr().unwrap());
        let mut command = Command::new(binary("qvpn-ctl"));
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env(name, &at);
        }
        let output = command.args(["kms", "check"]).arg(Path::new(&site.file("a"))).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(proxy.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the proxy was asked");
    });
}
