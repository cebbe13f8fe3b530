//! The metrics of a running gateway, scraped by a real Prometheus: each documented name is there, the alert
//! rules are accepted, and each query of the dashboard has a result. Prometheus runs in the gateway's
//! namespace.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Node, Site, Stream, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
const LISTEN: &str = "127.0.0.1:9790";
const PROMETHEUS: &str = "http://127.0.0.1:9090";

/// The metrics that interfaces.md fixes.
const FIXED: [&str; 20] = [
    "qvpn_peer_state",
    "qvpn_peer_epoch_age_seconds",
    "qvpn_peer_qkd_key_age_seconds",
    "qvpn_peer_qkd_stock_keys",
    "qvpn_peer_rekeys_total",
    "qvpn_peer_rekey_failures_total",
    "qvpn_peer_receive_bytes_total",
    "qvpn_peer_transmit_bytes_total",
    "qvpn_peer_receive_packets_total",
    "qvpn_peer_transmit_packets_total",
    "qvpn_peer_drops_total",
    "qvpn_interface_drops_total",
    "qvpn_guard_in_force",
    "qvpn_guard_dropped_packets_total",
    "qvpn_kme_up",
    "qvpn_kme_requests_total",
    "qvpn_kme_request_duration_seconds",
    "qvpn_kme_certificate_expiry_timestamp_seconds",
    "qvpn_rekey_duration_seconds",
    "qvpn_build_info",
];

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)
}

fn options() -> GatewayOptions {
    GatewayOptions {
        interface: format!("metrics_listen = \"{LISTEN}\""),
        initiator: Some(Site::A),
        ..GatewayOptions::default()
    }
}

/// Returns Prometheus' result of a query: a list of samples.
fn ask(node: &Node, query: &str) -> Vec<Value> {
    let mut command = node.command("promtool");
    let output = command.args(["query", "instant", "-o", "json", PROMETHEUS, query]).output().unwrap();
    assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns each query of the dashboard with its panel's title. Variables stand for everything, like `All`.
fn dashboard_queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(packaging("grafana/qvpn.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let mut query = target["expr"].as_str().unwrap().replace("$__rate_interval", "10s");
            for variable in ["$interface", "$peer", "$instance"] {
                query = query.replace(variable, ".*");
            }
            assert!(!query.contains('$'), "a variable that this test doesn't know: {query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    queries
}

/// Returns the names of qvpn's metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("qvpn_")).map(str::to_owned).collect()
}

fn page(gateway: &Gateway<'_>) -> String {
    let output = gateway.ctl(&["metrics", "qvpn0"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_real_prometheus_finds_all_that_the_dashboard_asks_for() {
    sandbox::run("a_real_prometheus_finds_all_that_the_dashboard_asks_for", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = lab.start_both(&options());
        gateways.iter().for_each(|gateway| drop(gateway.wait_state("up", START)));
        let dir = lab.gw_a.dir().join("prometheus");
        fs::create_dir_all(&dir).unwrap();
        let config = dir.join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 500ms, evaluation_interval: 1s}}\nrule_files: [{:?}]\n\
                 scrape_configs:\n- job_name: qvpn\n  static_configs: [{{targets: [\"{LISTEN}\"]}}]\n",
                packaging("prometheus/qvpn.rules.yml").canonicalize().unwrap()
            ),
        )
        .unwrap();
        let _prometheus = lab.gw_a.spawn(
            "prometheus",
            &[
                &format!("--config.file={}", config.display()),
                &format!("--storage.tsdb.path={}", dir.join("data").display()),
                "--web.listen-address=127.0.0.1:9090",
            ],
        );
        wait_until("the first scrape", START, || {
            let mut command = lab.gw_a.command("promtool");
            let output =
                command.args(["query", "instant", "-o", "json", PROMETHEUS, "up == 1"]).output().unwrap();
            (output.status.success() && output.stdout.starts_with(b"[{")).then_some(())
        });
        // Traffic, and a packet without a destination, so that rates exist.
        let reports = Stream { count: 1000, rate: 500, ..Stream::default() }.run(&lab);
        assert!(reports.iter().all(|report| report.received.lost == 0), "{reports:?}");

        let mut open = dashboard_queries();
        assert!(open.len() > 15, "{open:?}");
        wait_until("an answer to each query of the dashboard", START, || {
            open.retain(|(_, query)| ask(&lab.gw_a, query).is_empty());
            if !open.is_empty() {
                println!("still without an answer: {open:#?}");
            }
            open.is_empty().then_some(())
        });
        let states = ask(&lab.gw_a, "qvpn_peer_state == 1");
        assert_eq!(states[0]["metric"]["state"], "up", "{states:?}");
        assert_eq!(states[0]["metric"]["peer"], "site-b", "{states:?}");
        let expiry = ask(&lab.gw_a, "qvpn_kme_certificate_expiry_timestamp_seconds - time() > 86400");
        assert_eq!(expiry.len(), 1, "{expiry:?}");
        // All metrics in the rules exist, and no alert fires.
        let known = names(&page(&gateways[0]));
        for file in ["prometheus/qvpn.rules.yml", "grafana/qvpn.json"] {
            let asked = names(&fs::read_to_string(packaging(file)).unwrap());
            assert!(!asked.is_empty());
            let unknown: Vec<_> = asked.difference(&known).collect();
            assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
        }
        let alerts = ask(&lab.gw_a, "ALERTS{alertstate=\"firing\"}");
        assert!(alerts.is_empty(), "{alerts:?}");
    });
}

#[test]
fn the_page_has_each_fixed_name_and_is_as_promtool_wants_it() {
    sandbox::run("the_page_has_each_fixed_name_and_is_as_promtool_wants_it", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        let gateways = lab.start_both(&options());
        gateways.iter().for_each(|gateway| drop(gateway.wait_state("up", START)));
        let text = page(&gateways[0]);
        for name in FIXED {
            assert!(
                text.contains(&format!("\n# TYPE {name} ")) || text.starts_with(&format!("# HELP {name} ")),
                "{name}: {text}"
            );
            let sample = text
                .lines()
                .any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ', '_'])));
            assert!(sample, "no sample of {name}: {text}");
        }
        // A scrape and the output of the command differ only in times.
        let scraped = lab.gw_a.run(&format!(
            "python3 -c 'import urllib.request as u; \
                                             print(u.urlopen(\"http://{LISTEN}/metrics\").read().decode())'"
        ));
        let kinds =
            |text: &str| text.lines().filter(|l| l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(kinds(&scraped), kinds(&text));
        let mut lint = lab.gw_a.command("sh");
        lint.args(["-c", "promtool check metrics < \"$1\"", "sh"]);
        let file = lab.gw_a.dir().join("page.txt");
        fs::write(&file, &text).unwrap();
        let output = lint.arg(&file).output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

#[test]
fn the_listener_follows_a_reload_and_a_taken_port_is_refused() {
    sandbox::run("the_listener_follows_a_reload_and_a_taken_port_is_refused", || {
        let lab = Lab::new();
        let options = |lines: &str| GatewayOptions {
            interface: lines.to_owned(),
            qkd: "off".to_owned(),
            kms: None,
            ..GatewayOptions::default()
        };
        let file = lab.configure(Site::A, &options(""));
        let gateway = lab.start_daemon(Site::A);
        let scrape = |port: u16| {
            lab.gw_a
                .try_run(&format!(
                    "python3 -c 'import urllib.request as u; \
                                   u.urlopen(\"http://127.0.0.1:{port}/metrics\").read()'"
                ))
                .status
                .success()
        };
        assert!(!scrape(9790));
        for (port, gone) in [(9790, 9791), (9791, 9790)] {
            let _ = lab.configure(Site::A, &options(&format!("metrics_listen = \"127.0.0.1:{port}\"")));
            let reload = gateway.ctl(&["reload", "qvpn0"]);
            assert_eq!(String::from_utf8_lossy(&reload.stdout), "[interface] metrics_listen changed\n");
            assert!(scrape(port) && !scrape(gone), "{port}");
        }
        // The port is in use: the reload is refused, and the old listener stays.
        let script = "import socket,sys;s=socket.create_server(('127.0.0.1',9792));print('on',flush=True);\
                      sys.stdin.read()";
        let mut taken = lab.gw_a.spawn("python3", &["-c", script]);
        taken.line("on", START);
        let _ = lab.configure(Site::A, &options("metrics_listen = \"127.0.0.1:9792\""));
        let reload = gateway.ctl(&["reload", "qvpn0"]);
        let said = String::from_utf8_lossy(&reload.stderr);
        assert_eq!(reload.status.code(), Some(3), "{said}");
        assert!(
            said.contains("metrics_listen = \"127.0.0.1:9792\"") && said.contains("`ss -tlpn`"),
            "{said}"
        );
        assert!(scrape(9791));
        // The log level changes with the config, and the change is reported.
        fs::write(
            &file,
            fs::read_to_string(&file).unwrap().replace("metrics_listen", "log_level = \"debug\"\n#"),
        )
        .unwrap();
        let reload = gateway.ctl(&["reload", "qvpn0"]);
        let said = String::from_utf8_lossy(&reload.stdout);
        assert!(said.contains("log_level changed") && said.contains("metrics_listen changed"), "{said}");
        assert!(!scrape(9791));
        let mut gateway = gateway;
        // The guard logs each foreign route at that level.
        lab.gw_a.run("ip route add 192.0.2.0/24 via 198.51.100.2");
        gateway.process.line("DEBUG", START);
    });
}

#[test]
fn the_rules_are_right_in_promtools_eyes() {
    for (what, file) in [("check", "qvpn.rules.yml"), ("test", "qvpn.rules.test.yml")] {
        let output = Command::new("promtool")
            .args([what, "rules", file])
            .current_dir(packaging("prometheus"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
