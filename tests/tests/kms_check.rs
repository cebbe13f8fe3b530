//! `qvpn-ctl kms check` against `kme-sim`: for each misbehaviour and each operation that can show it, what the check finds,
//! in words with a way out, and its exit code. None of what is printed or logged on the way holds a key.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tests::misbehaviours::{PORT, ROWS};
use tests::{Process, binary, sandbox, test_key};

/// Both sites and their KMEs on loopback.
struct Site {
    folder: PathBuf,
    sim: Process,
    seed: [u8; 4],
    /// All that was printed.
    printed: Mutex<String>,
}

impl Site {
    fn new(number: u8) -> Self {
        // A new network namespace begins without loopback.
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let folder = PathBuf::from(format!("/run/lab/check-{number}"));
        let seed = [7, 7, 7, number];
        let output = Command::new(binary("kme-sim")).arg("certs").arg(&folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut config = "admin = \"admin.sock\"\n".to_owned();
        for (kme, sae) in [("kme-a1", "SITE-A"), ("kme-b1", "SITE-B")] {
            config += &format!(
                "[[kme]]\nname = \"{kme}\"\nlisten = \"127.0.0.1:0\"\ncert_file = \"{kme}.pem\"\nkey_file = \"{kme}.key\"\n\
                 client_ca_file = \"ca.pem\"\n[[sae]]\nid = \"{sae}\"\nkme = \"{kme}\"\n"
            );
        }
        let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        config += &format!(
            "[[link]]\nkmes = [\"kme-a1\", \"kme-b1\"]\nrate_bits_per_s = 0\ninitial_keys = 1000\nseed = \"{hex}\"\n"
        );
        fs::write(folder.join("kmes.toml"), config).unwrap();
        let mut command = Command::new(binary("kme-sim"));
        command.arg("--config").arg(folder.join("kmes.toml"));
        let mut sim = Process::spawn("kme-sim", &mut command);
        let address = |sim: &mut Process, kme: &str| {
            let line = sim.line(&format!("listening {kme} "), Duration::from_secs(10));
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let ports = ["kme-a1", "kme-b1"].map(|kme| address(&mut sim, kme));
        sim.line("listening admin", Duration::from_secs(10));
        let site = Self { folder, sim, seed, printed: Mutex::default() };
        let keys = ["a", "b"].map(|name| site.identity(name));
        for (i, (name, kme, sae, other)) in
            [("a", "kme-a1", "SITE-A", "SITE-B"), ("b", "kme-b1", "SITE-B", "SITE-A")].into_iter().enumerate()
        {
            let (peer, role) = [("b", "initiator"), ("a", "responder")][i];
            let (folder, stem) = (site.folder.display(), sae.to_lowercase());
            let text = format!(
                "[interface]\nname = \"qvpn{i}\"\nprivate_key_file = \"{folder}/{name}.key\"\naddress = [\"10.77.0.{}/30\"]\n\
                 [kms]\nsae_id = \"{sae}\"\n[[kms.kme]]\nname = \"{kme}\"\nurl = \"https://{}\"\nca_file = \"{folder}/ca.pem\"\n\
                 cert_file = \"{folder}/{stem}.pem\"\nkey_file = \"{folder}/{stem}.key\"\n\
                 [[peer]]\nname = \"site-{peer}\"\npublic_key = \"{}\"\nallowed_ips = []\nsae_id = \"{other}\"\nrole = \"{role}\"\n",
                i + 1,
                ports[i],
                keys[1 - i],
            );
            fs::write(site.file(name), text).unwrap();
        }
        site
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    fn identity(&self, name: &str) -> String {
        let path = self.folder.join(format!("{name}.key"));
        let secret = Command::new(binary("qvpn-ctl")).arg("genkey").output().unwrap().stdout;
        fs::write(&path, secret).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let input = fs::File::open(&path).unwrap();
        let public =
            Command::new(binary("qvpn-ctl")).arg("pubkey").stdin(Stdio::from(input)).output().unwrap();
        String::from_utf8(public.stdout).unwrap().trim().to_owned()
    }

    fn misbehave(&self, kme: &str, op: &str, how: &str) {
        let mut command = Command::new(binary("kme-sim"));
        let output = command
            .arg("admin")
            .arg(self.folder.join("admin.sock"))
            .args(["misbehave", kme, op, how])
            .output()
            .unwrap();
        assert!(output.status.success(), "{kme} {op} {how}: {}", String::from_utf8_lossy(&output.stderr));
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
        self.misbehave(kme, op, how);
        let (code, report) = self.check_both();
        self.misbehave(kme, "all", "none");
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
                    assert_no_keys(&site);
                });
            }
        });
        let wrong = wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
    });
}

/// No key that was served, nor its first half, is in what was printed or logged.
fn assert_no_keys(site: &Site) {
    let text = site.printed.lock().unwrap().clone() + &site.sim.log();
    let lower = text.to_lowercase();
    let mut seen = 0;
    for n in 0..1000 {
        let (key, id) = test_key(&site.seed, n);
        seen += usize::from(text.contains(&id));
        let base64 = data_encoding::BASE64.encode(&key[..15]);
        let hex = data_encoding::HEXLOWER.encode(&key[..15]);
        assert!(!text.contains(&base64) && !lower.contains(&hex), "key {n} leaks");
    }
    assert!(seen > 3, "IDs are public, and show that these keys were served: {seen}");
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
        let stored = || {
            let output = Command::new(binary("kme-sim"))
                .arg("admin")
                .arg(site.folder.join("admin.sock"))
                .arg("stored")
                .output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let before = stored();
        let (code, out) = site.check(&[&a, "--other", &b, "--no-take"]);
        assert!(code == 0 && out.contains("no key was taken, as asked for"), "{out}");
        let (code, out) = site.check(&[&b]);
        assert!(code == 0 && out.contains("slave SAE"), "{out}");
        assert_eq!(stored(), before);
        // From the slave's side with the master's config it works as well.
        let (code, out) = site.check(&[&b, "--other", &a, "--peer", "site-a"]);
        assert!(code == 0 && out.contains("is the same at kme-b1"), "{out}");

        site.misbehave("kme-a1", "all", "cert_v1");
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
