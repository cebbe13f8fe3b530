//! `qvpn-ctl kms check` against `kme-sim`: for each misbehaviour and each operation that can show it, the
//! finding, the advice and the exit code. No output or log line holds a key.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde_json::Value;
use tests::loopback::{Loopback, Vendor, loopback_up, new_identity};
use tests::misbehaviours::{PORT, ROWS, says};
use tests::{binary, sandbox};

// The same validator as for all other JSON of `qvpn-ctl`.
#[path = "../../qvpn-ctl/tests/cli/schemas.rs"]
mod schemas;

// The page that explains each finding's name.
const KMS_MD: &str = include_str!("../../docs/kms.md");

/// Both sites and their KMEs on loopback.
struct Site {
    kmes: Loopback,
    /// The output so far.
    printed: Mutex<String>,
}

impl Site {
    fn new(number: u8) -> Self {
        Self::over("etsi014", number)
    }

    /// Starts the site with this API.
    fn over(api: &str, number: u8) -> Self {
        loopback_up();
        let apis = format!("[\"{api}\"]");
        let vendor = Vendor { apis: &apis, ..Vendor::pair([7, 7, 7, number]) };
        let kmes = Loopback::start(&format!("check-{number}"), &vendor);
        let site = Self { kmes, printed: Mutex::default() };
        let dir = &site.kmes.dir;
        let keys = ["a", "b"].map(|name| new_identity(&dir.join(format!("{name}.key"))));
        for (i, (name, kme, sae, other)) in
            [("a", "kme-a1", "SITE-A", "SITE-B"), ("b", "kme-b1", "SITE-B", "SITE-A")].into_iter().enumerate()
        {
            let (peer, role) = [("b", "initiator"), ("a", "responder")][i];
            let text = format!(
                "[interface]\nname = \"qvpn{i}\"\nprivate_key_file = \"{}/{name}.key\"\naddress = \
                 [\"10.77.0.{}/30\"]\n\
                 [kms]\nsae_id = \"{sae}\"\n{}[[peer]]\nname = \"site-{peer}\"\npublic_key \
                 = \"{}\"\nallowed_ips = []\nsae_id = \"{other}\"\nrole = \"{role}\"\n",
                dir.display(),
                i + 1,
                site.kmes.source(kme, api, sae),
                keys[1 - i],
            );
            fs::write(site.file(name), text).unwrap();
        }
        site
    }

    fn file(&self, name: &str) -> PathBuf {
        self.kmes.dir.join(format!("{name}.toml"))
    }

    /// Runs `kms check` with these arguments; returns its exit code and standard output.
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
        schemas::holds("kms-check", &out);
        (code, serde_json::from_str(&out).unwrap())
    }

    /// Returns the differences between the outcome and the row.
    fn look(&self, &Row { kme, op, how, want, words: told_as }: &Row) -> Option<String> {
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
        let found = want == "fine" || words.iter().any(|text| says(text, told_as));
        let documented = failed.iter().chain(&quirks).all(|code| KMS_MD.contains(&format!("`{code}`")));
        (!right || !helpful || !found || !documented).then(|| {
            format!(
                "{how} for {op} of {kme}: wanted {want} and {told_as:?}; exit code {code}, failed \
                 {failed:?}, quirks {quirks:?}, helpful {helpful}, documented {documented}: {words:?}"
            )
        })
    }
}

/// One misbehaviour of one operation at one KME, the expected finding, and the expected text.
struct Row {
    kme: &'static str,
    op: &'static str,
    how: &'static str,
    want: &'static str,
    words: &'static str,
}

fn table() -> Vec<Row> {
    let port = PORT.iter().map(|(how, want, words)| Row { kme: "kme-a1", op: "all", how, want, words });
    let mut rows: Vec<_> = port.collect();
    for (how, wants, words) in ROWS {
        let ends = [("kme-a1", "status"), ("kme-a1", "enc_keys"), ("kme-b1", "dec_keys")];
        for ((kme, op), want) in ends.into_iter().zip(wants).filter(|(_, want)| !want.is_empty()) {
            rows.push(Row { kme, op, how, want, words });
        }
    }
    rows
}

/// Checks all rows with this API, distributed over this number of sites. Each site has a fixed share, so that
/// each gets keys.
fn look_at_all(rows: &[Row], api: &str, sites: u8) {
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..sites {
            let wrong = &wrong;
            scope.spawn(move || {
                let site = Site::over(api, number);
                for row in rows.iter().skip(number.into()).step_by(sites.into()) {
                    wrong.lock().unwrap().extend(site.look(row));
                }
                site.kmes.assert_no_keys(&site.printed.lock().unwrap(), 3);
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn each_misbehaviour_of_each_operation_is_found() {
    sandbox::run("each_misbehaviour_of_each_operation_is_found", || look_at_all(&table(), "etsi014", 6));
}

/// The misbehaviours that a key provider can show over SKIP: the operation, and then the same columns as in
/// the other table.
const SKIP: &[(&str, &str, &str, &str)] = &[
    ("status", "none", "fine", ""),
    ("status", "close", "fails unreachable", "closed the connection"),
    ("status", "huge_body", "fails protocol_violation", "larger than 1048576 bytes"),
    ("status", "html", "fails protocol_violation", "is a web page"),
    ("status", "empty_body", "fails protocol_violation", "the body is empty"),
    ("status", "http_401", "fails identity_refused", "common name SITE-A and the serial number"),
    ("status", "http_404", "fails bad_request", "HTTP 404"),
    ("status", "http_500", "fails server_fault", "HTTP 500"),
    ("enc_keys", "close", "fails lost_keys", "1 key may be lost"),
    ("enc_keys", "cut_body", "fails lost_keys", "while reading the answer"),
    ("enc_keys", "endless_body", "fails protocol_violation", "larger than 1048576 bytes"),
    ("enc_keys", "html", "fails protocol_violation", "is a web page"),
    ("enc_keys", "rubbish_json", "fails protocol_violation", "the JSON ends too early"),
    ("enc_keys", "redirect", "fails protocol_violation", "a redirect to https://kme.invalid/"),
    ("enc_keys", "http_400", "fails exhausted", "HTTP 400"),
    ("enc_keys", "http_401", "fails identity_refused", "the serial number"),
    ("enc_keys", "http_500", "fails server_fault", "1 key may be lost"),
    ("enc_keys", "http_503", "fails exhausted", "HTTP 503"),
    ("enc_keys", "error_detail", "fails exhausted", "HTTP 422"),
    ("enc_keys", "wrong_size", "fails protocol_violation", "has 62 hexadecimal digits"),
    ("enc_keys", "empty_list", "fails protocol_violation", "\"keyId\" is missing"),
    ("enc_keys", "unknown_id", "fails key_not_found", "doesn't know the key"),
    ("enc_keys", "wrong_bytes", "fails bytes_differ", "has other bytes at"),
    ("enc_keys", "zero_keys", "fails protocol_violation", "has only zero bytes"),
    ("enc_keys", "bad_base64", "fails protocol_violation", "isn't hexadecimal"),
    ("enc_keys", "numeric_ids", "fails protocol_violation", "another type than the document says"),
    ("enc_keys", "ignore_size", "fails protocol_violation", "has 32 hexadecimal digits"),
    ("enc_keys", "repeat_keys", "fails protocol_violation", "was delivered before"),
    ("enc_keys", "repeat_id", "fails protocol_violation", "stood over another key before"),
    ("dec_keys", "html", "fails protocol_violation", "is a web page"),
    ("dec_keys", "http_500", "fails server_fault", "HTTP 500"),
    ("dec_keys", "wrong_size", "fails protocol_violation", "has 62 hexadecimal digits"),
    ("dec_keys", "wrong_bytes", "fails bytes_differ", "has other bytes at"),
    ("dec_keys", "unknown_id", "fails protocol_violation", "wasn't asked for"),
    ("dec_keys", "late_sync", "quirk lag", "knew the keys only after"),
    ("dec_keys", "forget_keys", "fails key_not_found", "doesn't know the key"),
    ("dec_keys", "deliver_twice", "quirk delivers_twice", "a second time"),
];

fn rows(table: &[(&'static str, &'static str, &'static str, &'static str)]) -> Vec<Row> {
    let row = |(op, how, want, words): &(&'static str, &'static str, &'static str, &'static str)| Row {
        kme: if *op == "dec_keys" { "kme-b1" } else { "kme-a1" },
        op,
        how,
        want,
        words,
    };
    table.iter().map(row).collect()
}

#[test]
fn a_key_provider_that_misbehaves_over_skip_is_found() {
    sandbox::run("a_key_provider_that_misbehaves_over_skip_is_found", || {
        look_at_all(&rows(SKIP), "skip", 3);
    });
}

/// The misbehaviours that a KME can show over ETSI GS QKD 004, in the same form.
const STREAMS: &[(&str, &str, &str, &str)] = &[
    ("status", "none", "fine", ""),
    ("status", "hang", "fails timeout", "while waiting for the answer"),
    ("status", "close", "fails unreachable", "closed the connection while waiting for the answer"),
    ("status", "html", "fails protocol_violation", "the server speaks HTTP"),
    ("status", "half_header", "fails unreachable", "while reading the answer"),
    ("status", "huge_length", "fails protocol_violation", "announces 4294967295 bytes"),
    ("status", "wrong_service", "fails protocol_violation", "has the service code"),
    ("status", "c_reference", "fine", ""),
    ("status", "counter_proposal", "quirk counter_proposal", "Key_chunk_size 64"),
    ("status", "peer_missing", "quirk peer_not_connected", "isn't connected"),
    ("status", "no_link", "fails bad_request", "no QKD connection available"),
    ("status", "stream_timeout", "fails server_fault", "time limit"),
    ("status", "other_ksid", "fails exhausted", "isn't connected yet"),
    ("enc_keys", "hang", "fails lost_keys", "while waiting for the answer"),
    ("enc_keys", "close", "fails lost_keys", "1 key may be lost"),
    ("enc_keys", "lose_answer", "fails lost_keys", "1 key may be lost"),
    ("enc_keys", "cut_body", "fails lost_keys", "while reading the answer"),
    ("enc_keys", "half_header", "fails lost_keys", "while reading the answer"),
    ("enc_keys", "html", "fails protocol_violation", "the server speaks HTTP"),
    ("enc_keys", "huge_length", "fails protocol_violation", "announces 4294967295 bytes"),
    ("enc_keys", "wrong_service", "fails protocol_violation", "has the service code"),
    ("enc_keys", "peer_missing", "fails exhausted", "isn't connected yet"),
    ("enc_keys", "no_link", "fails bad_request", "no QKD connection available"),
    ("enc_keys", "stream_timeout", "fails server_fault", "time limit"),
    ("enc_keys", "index_backwards", "fails protocol_violation", "came where index 0 was asked for"),
    ("enc_keys", "huge_metadata", "fails protocol_violation", "announced with 4294967295 bytes"),
    ("enc_keys", "more_metadata", "fine", ""),
    ("enc_keys", "wrong_size", "fails protocol_violation", "a key of 31 bytes came"),
    ("enc_keys", "zero_keys", "fails protocol_violation", "is all zeros"),
    ("enc_keys", "wrong_bytes", "fails bytes_differ", "has other bytes at"),
    ("enc_keys", "repeat_keys", "fails protocol_violation", "was delivered before"),
    ("enc_keys", "lose_first", "fails key_not_found", "insufficient key available"),
    ("dec_keys", "hang", "fails timeout", "while waiting for the answer"),
    ("dec_keys", "close", "fails unreachable", "closed the connection while waiting for the answer"),
    ("dec_keys", "half_header", "fails unreachable", "while reading the answer"),
    ("dec_keys", "huge_length", "fails protocol_violation", "announces 4294967295 bytes"),
    ("dec_keys", "peer_missing", "fails key_not_found", "isn't connected yet"),
    ("dec_keys", "index_backwards", "fails protocol_violation", "was asked for"),
    ("dec_keys", "huge_metadata", "fails protocol_violation", "announced with 4294967295 bytes"),
    ("dec_keys", "wrong_size", "fails protocol_violation", "a key of 31 bytes came"),
    ("dec_keys", "zero_keys", "fails protocol_violation", "is all zeros"),
    ("dec_keys", "wrong_bytes", "fails bytes_differ", "has other bytes at"),
    ("dec_keys", "late_sync", "quirk lag", "knew the keys only after"),
    ("dec_keys", "forget_keys", "fails key_not_found", "insufficient key available"),
    ("dec_keys", "deliver_twice", "quirk delivers_twice", "a second time"),
];

#[test]
fn a_kme_that_misbehaves_over_key_streams_is_found() {
    sandbox::run("a_kme_that_misbehaves_over_key_streams_is_found", || {
        look_at_all(&rows(STREAMS), "etsi004", 3);
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
    let table: BTreeSet<&str> = table().iter().chain(&rows(STREAMS)).map(|row| row.how).collect();
    for how in list.split(", ") {
        assert!(table.contains(how), "{how} is not in the table");
    }
}

#[test]
fn the_report_says_what_works_what_is_odd_and_what_to_do() {
    sandbox::run("the_report_says_what_works_what_is_odd_and_what_to_do", || {
        let site = Site::new(0);
        let (a, b) = (site.file("a").display().to_string(), site.file("b").display().to_string());
        let (code, out) = site.check(&[&a, "--other", &b]);
        println!("{out}");
        assert_eq!(code, 0);
        for words in [
            "TLSv1_3, X25519MLKEM768",
            "ours, SITE-A with the serial number ",
            "the KME knows us as SAE SITE-A",
            "3 keys of 256 bits, which are spent",
            "is the same at kme-b1",
            "all 2 checks passed",
        ] {
            assert!(out.contains(words), "{words}");
        }
        assert!(site.printed.lock().unwrap().contains("A key that is taken is spent"));

        // No key is taken with --no-take, or at a slave SAE without the master's config.
        let stored = || site.kmes.admin(&["stored"]);
        let before = stored();
        let (code, out) = site.check(&[&a, "--other", &b, "--no-take"]);
        assert!(code == 0 && out.contains("no key was taken, because of --no-take"), "{out}");
        let (code, out) = site.check(&[&b]);
        assert!(code == 0 && out.contains("slave SAE"), "{out}");
        assert_eq!(stored(), before);
        // With the master's config it works from the slave's side too.
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
