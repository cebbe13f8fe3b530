//! Each misbehaviour of each operation with a running tunnel: checks the outcome at the client and the
//! message for the operator, that the tunnel stays up with keys from its stock and uses no bad key, and that
//! keys arrive again afterwards. No log holds a key.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::loopback::{Loopback, Vendor, loopback_up, new_identity, run};
use tests::misbehaviours::{PORT, ROWS, says};
use tests::{Process, binary, sandbox};

const LIMIT: Duration = Duration::from_secs(20);
/// Rekey interval in milliseconds.
const INTERVAL: u64 = 300;

/// Differences from `kms check`, since a tunnel fetches one key at a time: the operation that shows the
/// fault, and the outcome there.
const OTHERWISE: &[(&str, &str, &str)] = &[
    ("enc_keys", "swap_keys", "ok"),
    ("enc_keys", "one_key_per_request", "ok"),
    ("enc_keys", "unknown_id", "dec_keys key_not_found"),
    ("enc_keys", "lose_first", "dec_keys key_not_found"),
    ("enc_keys", "wrong_bytes", "different bytes"),
    ("dec_keys", "swap_keys", "ok"),
    ("dec_keys", "wrong_bytes", "different bytes"),
    ("dec_keys", "late_sync", "late"),
];

struct Row {
    kme: &'static str,
    op: &'static str,
    how: &'static str,
    /// The expected outcome of the operation, as in the metric, or one of the words above.
    want: String,
    /// The texts that the operator must read, separated by `|`.
    words: &'static str,
}

fn table() -> Vec<Row> {
    let outcome = |want: &str| want.strip_prefix("fails ").unwrap_or("ok").to_owned();
    let port = PORT.iter().map(|(how, want, words)| Row {
        kme: "kme-a1",
        op: "all",
        how,
        want: outcome(want),
        words,
    });
    let mut rows: Vec<Row> = port.collect();
    for (how, wants, words) in ROWS {
        let ends = [("kme-a1", "status"), ("kme-a1", "enc_keys"), ("kme-b1", "dec_keys")];
        for ((kme, op), want) in ends.into_iter().zip(wants).filter(|(_, want)| !want.is_empty()) {
            let special = OTHERWISE.iter().find(|(o, h, _)| o == &op && h == how);
            let want = special.map_or_else(|| outcome(want), |(.., want)| (*want).to_owned());
            rows.push(Row { kme, op, how, want, words });
        }
    }
    // Rows with a time-out come first, so that none is left over for the end.
    rows.sort_by_key(|row| !matches!(row.how, "hang" | "slow_body" | "stall_tls" | "slow"));
    rows
}

/// Both sites and their KMEs on loopback; the daemons have no networks behind them, since only keys are
/// tested.
struct Pair {
    kmes: Loopback,
    number: u8,
    daemons: Vec<Process>,
    printed: String,
}

/// The number of requests to the KME, by operation and outcome.
type Counts = BTreeMap<(String, String), u64>;

impl Pair {
    fn new(number: u8) -> Self {
        let kmes = Loopback::start(&format!("rows-{number}"), &Vendor::pair([9, 9, 9, number]));
        let mut pair = Self { kmes, number, daemons: Vec::new(), printed: String::new() };
        let keys =
            [0, 1].map(|site| new_identity(&pair.kmes.dir.join(format!("{}.key", pair.interface(site)))));
        for site in [0, 1] {
            pair.configure(site, &keys[1 - site]);
        }
        for site in [0, 1] {
            let name = pair.interface(site);
            let mut command = Command::new(binary("qvpn-daemon"));
            command.arg("--config").arg(pair.kmes.dir.join(format!("{name}.toml")));
            pair.daemons.push(Process::spawn(name, &mut command));
        }
        pair.wait("the stocks fill", |pair| {
            [0, 1].iter().all(|site| {
                let peer = &pair.show(*site)["peers"][0];
                peer["state"] == "up" && peer["qkd_stock"].as_u64() >= Some(STOCK - 2)
            })
        });
        pair
    }

    fn interface(&self, site: usize) -> String {
        format!("q{}{}", ["a", "b"][site], self.number)
    }

    fn configure(&self, site: usize, peer_key: &str) {
        let (name, dir) = (self.interface(site), self.kmes.dir.display());
        let port = |site: usize| 52_000 + u16::from(self.number) * 2 + u16::try_from(site).unwrap();
        let (sae, other) = [("SITE-A", "SITE-B"), ("SITE-B", "SITE-A")][site];
        let (kme, role) = [("kme-a1", "initiator"), ("kme-b1", "responder")][site];
        let source = self.kmes.source(kme, "etsi014", sae);
        let text = format!(
            "[interface]\nname = \"{name}\"\nprivate_key_file = \"{dir}/{name}.key\"\nlisten_port = {}\n\
             rekey_interval = \"{INTERVAL}ms\"\nlog_level = \"debug\"\n\
             [kms]\nsae_id = \"{sae}\"\nstock = {STOCK}\n{source}[[peer]]\nname = \"peer\"\npublic_key \
             = \"{peer_key}\"\nallowed_ips = []\nsae_id = \"{other}\"\nrole = \"{role}\"\n\
             endpoint = \"127.0.0.1:{}\"\n",
            port(site),
            port(1 - site),
        );
        fs::write(self.kmes.dir.join(format!("{name}.toml")), text).unwrap();
    }

    fn show(&mut self, site: usize) -> Value {
        let name = self.interface(site);
        let output = Command::new(binary("qvpn-ctl")).args(["show", &name, "--json"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        self.printed += &text;
        value["interfaces"][0].clone()
    }

    fn counts(&self, site: usize) -> Counts {
        let text = run(Command::new(binary("qvpn-ctl")).args(["metrics", &self.interface(site)]));
        let label = |line: &str, name: &str| {
            line.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
        };
        let lines = text.lines().filter(|line| line.starts_with("qvpn_kme_requests_total{"));
        lines
            .map(|line| {
                let n = line.rsplit(' ').next().unwrap().parse().unwrap();
                ((label(line, "op"), label(line, "outcome")), n)
            })
            .collect()
    }

    /// Returns the number of keys that the KME may have spent without use.
    fn lost(&self, site: usize) -> u64 {
        let text = run(Command::new(binary("qvpn-ctl")).args(["metrics", &self.interface(site)]));
        let line = text.lines().find(|line| line.starts_with("qvpn_kme_keys_lost_total{")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[track_caller]
    fn wait(&mut self, what: &str, wanted: impl Fn(&mut Self) -> bool) {
        let error = self.try_wait(what, wanted);
        assert!(error.is_none(), "{}", error.unwrap_or_default());
    }

    fn try_wait(&mut self, what: &str, wanted: impl Fn(&mut Self) -> bool) -> Option<String> {
        let end = Instant::now() + LIMIT;
        while !wanted(self) {
            if Instant::now() > end {
                let shown = [0, 1].map(|site| {
                    let show = self.show(site);
                    let (peer, kme) = (&show["peers"][0], &show["kmes"][0]);
                    format!(
                        "{} {} stock {} {}",
                        peer["state"], peer["reason"], peer["qkd_stock"], kme["last_error"]
                    )
                });
                let counts = [0, 1].map(|site| self.counts(site));
                return Some(format!("{what}: not within {LIMIT:?}; {shown:?} {counts:?}"));
            }
            std::thread::sleep(Duration::from_millis(60));
        }
        None
    }

    /// Returns the differences between the outcome and the row.
    fn look(&mut self, row: &Row) -> Vec<String> {
        let site = usize::from(row.kme == "kme-b1");
        let mut wrong = Vec::new();
        if row.op == "status" {
            // After a failure, a status is requested again even if it is known.
            self.kmes.misbehave(row.kme, "enc_keys", "http_500");
            wrong
                .extend(self.try_wait("the KME fails", |pair| pair.show(site)["kmes"][0]["state"] == "down"));
        }
        let before = [self.counts(0), self.counts(1)];
        let lost = self.daemons[0].log().matches("different bytes").count();
        let spent = self.lost(site);
        self.kmes.misbehave(row.kme, row.op, row.how);
        if row.op == "status" {
            self.kmes.misbehave(row.kme, "enc_keys", "none");
        }
        // A fault of the port cuts off a request in progress; after that, the status is requested.
        let ops: &[&str] = if row.op == "all" { &["enc_keys", "status"] } else { &[row.op] };
        let grew = |pair: &Self, site: usize, ops: &[&str], outcome: &str| {
            let of = |counts: &Counts| -> u64 {
                let counted =
                    counts.iter().filter(|((op, how), _)| ops.contains(&op.as_str()) && how == outcome);
                counted.map(|(_, n)| n).sum()
            };
            of(&pair.counts(site)) - of(&before[site])
        };
        let seen = match row.want.as_str() {
            "different bytes" => self.try_wait("a key is dropped before it is used", |pair| {
                pair.daemons[0].log().matches("different bytes").count() > lost
            }),
            "late" => self.try_wait("the key comes late", |pair| {
                grew(pair, 1, &["dec_keys"], "key_not_found") > 0 && grew(pair, 1, &["dec_keys"], "ok") > 0
            }),
            "dec_keys key_not_found" => self.try_wait("the other site asks in vain", |pair| {
                grew(pair, 1, &["dec_keys"], "key_not_found") > 0
            }),
            "ok" => self.try_wait("it works on", |pair| {
                grew(pair, site, ops, "ok") >= if row.op == "status" { 1 } else { 2 }
            }),
            outcome => self.try_wait(outcome, |pair| grew(pair, site, ops, outcome) > 0),
        };
        wrong.extend(seen);
        if row.want == "lost_keys" && self.lost(site) == spent {
            wrong.push("no key is counted as lost".to_owned());
        }
        if row.want == "ok" {
            let others: Vec<_> = self
                .counts(site)
                .into_iter()
                .filter(|((asked, outcome), n)| {
                    let grown = n - before[site].get(&(asked.clone(), outcome.clone())).unwrap_or(&0);
                    // The request that the fault cut off.
                    let cut = row.op == "all" && matches!(outcome.as_str(), "lost_keys" | "unreachable");
                    // Keys of earlier rows that no KME has any more are requested until they are given up.
                    ops.contains(&asked.as_str())
                        && !matches!(outcome.as_str(), "ok" | "key_not_found")
                        && grown > u64::from(cut)
                })
                .collect();
            if !others.is_empty() {
                wrong.push(format!("it fails: {others:?}"));
            }
        }
        let shown = [self.show(0), self.show(1)];
        for show in &shown {
            let peer = &show["peers"][0];
            if peer["state"] != "up" || peer["key_sources"][0] != "qkd" {
                wrong.push(format!(
                    "the tunnel is {} with {}: {}",
                    peer["state"], peer["key_sources"], peer["reason"]
                ));
            }
        }
        if !matches!(row.want.as_str(), "ok" | "different bytes") {
            let site = if row.want == "dec_keys key_not_found" { 1 } else { site };
            // The outcome may belong to a key of an earlier row, which no KME has any more; this fault is
            // then still to come.
            let read = self.try_wait(&format!("the operator reads {:?}", row.words), |pair| {
                let show = pair.show(site);
                let error = show["kmes"][0]["last_error"].as_str().unwrap_or_default();
                let (what, advice) = error.split_once("; ").unwrap_or_default();
                // A fault that appears in the other operation, or not every time, has another text there.
                let in_words = OTHERWISE.iter().any(|(op, how, _)| (*op, *how) == (row.op, row.how))
                    || says(what, row.words);
                let bounded = !error.contains('\n') && error.len() < 1200;
                what.contains("kme-") && advice.len() >= 15 && in_words && bounded
            });
            wrong.extend(read);
        }
        self.kmes.misbehave(row.kme, "all", "none");
        let before = [self.counts(0), self.counts(1)];
        wrong.extend(self.try_wait("keys come again", |pair| {
            [(0, "enc_keys"), (1, "dec_keys")].into_iter().all(|(site, op)| {
                let key = (op.to_owned(), "ok".to_owned());
                pair.counts(site).get(&key) > before[site].get(&key)
            })
        }));
        wrong
            .iter()
            .map(|what| format!("{} for {} of {}, wanted {}: {what}", row.how, row.op, row.kme, row.want))
            .collect()
    }

    fn assert_no_keys(&self) {
        let logs: String = self.daemons.iter().map(Process::log).collect();
        self.kmes.assert_no_keys(&(self.printed.clone() + &logs), 20);
    }
}

/// More than the number of failed keys in the rows of one pair, each of which stays in the stock for two
/// minutes.
const STOCK: u64 = 70;

#[test]
fn each_misbehaviour_of_each_operation_is_ridden_through() {
    sandbox::run("each_misbehaviour_of_each_operation_is_ridden_through", || {
        loopback_up();
        let rows = Mutex::new(table().into_iter());
        let wrong = Mutex::new(Vec::new());
        let next = || rows.lock().unwrap().next();
        std::thread::scope(|scope| {
            for number in 0..5 {
                let (next, wrong) = (&next, &wrong);
                scope.spawn(move || {
                    let mut pair = Pair::new(number);
                    let held = |pair: &Pair| pair.daemons.iter().map(Process::memory).max().unwrap();
                    let files = |pair: &Pair| pair.daemons.iter().map(Process::open_files).max().unwrap();
                    let (memory, open, mut tried) = (held(&pair), files(&pair), 0);
                    while let Some(row) = next() {
                        let began = Instant::now();
                        let found = pair.look(&row);
                        println!(
                            "{:>5} ms {} {} {}: {found:?}",
                            began.elapsed().as_millis(),
                            row.op,
                            row.how,
                            row.want,
                        );
                        wrong.lock().unwrap().extend(found);
                        tried += 1;
                    }
                    let after = held(&pair);
                    println!(
                        "kme: {tried} misbehaviours ridden through; memory {memory} kB before, {after} \
                              kB after"
                    );
                    assert!(
                        after < memory + 20_000,
                        "memory is bounded: {memory} kB before, {after} kB \
                                                      after"
                    );
                    pair.wait("no connection is left over", |pair| files(pair) <= open + 5);
                    for site in [0, 1] {
                        let failures = pair.show(site)["peers"][0]["rekey_failures"].clone();
                        assert!(
                            failures["confirmation"].is_null(),
                            "a wrong key came into an epoch: {failures}"
                        );
                    }
                    pair.assert_no_keys();
                });
            }
        });
        let wrong = wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
    });
}

/// The other site's KME is down for ten seconds, longer than the longest delay of a doubling back-off at that
/// time.
#[test]
fn keys_come_within_two_seconds_after_the_other_sites_kme_returns() {
    sandbox::run("keys_come_within_two_seconds_after_the_other_sites_kme_returns", || {
        loopback_up();
        let mut pair = Pair::new(0);
        let of = |pair: &Pair, outcome: &str| {
            pair.counts(0).get(&("enc_keys".to_owned(), outcome.to_owned())).copied().unwrap_or_default()
        };
        let lost = pair.lost(0);
        pair.kmes.misbehave("kme-a1", "enc_keys", "peer_kme_down");
        // One request a second.
        pair.wait("ten requests fail", |pair| of(pair, "peer_kme_down") >= 10);
        let kme = pair.show(0)["kmes"][0].clone();
        assert_eq!(kme["state"], "up", "our own KME works: {kme}");
        let error = kme["last_error"].as_str().unwrap();
        assert!(
            error.contains("the other site's KME is down") && error.contains("kme-b1 of SAE SITE-B"),
            "{error}"
        );
        assert!(!pair.daemons[0].log().contains("kme.down"), "no event blames our KME");
        assert_eq!(pair.lost(0), lost, "no key counts as lost");

        let before = of(&pair, "ok");
        pair.kmes.misbehave("kme-a1", "enc_keys", "none");
        let back = Instant::now();
        pair.wait("keys come again", |pair| of(pair, "ok") > before);
        let took = back.elapsed();
        println!("kme: keys came {} ms after the other site's KME returned", took.as_millis());
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(pair.show(0)["peers"][0]["state"], "up");
        pair.assert_no_keys();
    });
}
