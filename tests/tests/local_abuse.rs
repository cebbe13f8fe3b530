//! Abuse of a gateway's control socket and metrics listener: connections that send nothing, never read, or
//! never close; endless and meaningless lines. Traffic and rekeys continue, memory doesn't grow, and the
//! operator is served as soon as connections are free.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::{GatewayOptions, KmeOptions, Lab, Site, Stream, sandbox, wait_until};

const START: Duration = Duration::from_secs(20);
/// A client's time limit for an answer. On a busy machine three hundred connections take a while.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Address of site B's metrics.
const METRICS: &str = "127.0.0.1:9790";

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
    stream
}

/// Returns the bytes to write, and whether the answer is read.
fn hostile_lines() -> Vec<(Vec<u8>, bool)> {
    vec![
        (vec![b'x'; 1 << 20], true),
        (vec![b'\n'; 1 << 16], true),
        ([&b"{\"v\":1,\"request\":\""[..], &vec![b'['; 60_000], b"\"}\n"].concat(), true),
        ([vec![b'['; 60_000], b"\n".to_vec()].concat(), true),
        (vec![0xff; 70_000], true),
        (b"{\"v\":1,\"request\":\"open_the_gates\"}\n".repeat(500), true),
        // The answers are never read.
        (b"{\"v\":1,\"request\":\"show\"}\n".repeat(2000), false),
        (b"{\"v\":1,\"request\":\"events\",\"follow\":true}\n".to_vec(), false),
        (b"{\"v\":1,\"requ".to_vec(), false),
    ]
}

/// Runs one round: `count` connections at once, and then each hostile line on its own connection. Returns the
/// number of connections.
fn round(socket: &Path, count: usize) -> usize {
    let mut silent: Vec<UnixStream> = (0..count).map(|_| connect(socket)).collect();
    let mut answer = [0; 1024];
    let last = silent.last_mut().unwrap();
    let length = last.read(&mut answer).unwrap();
    let words = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(words.contains("\"busy\""), "one too many gets an error: {words}");
    drop(silent);
    let mut kept = Vec::new();
    for (line, read) in hostile_lines() {
        let mut stream = connect(socket);
        // The daemon may end the connection before everything is written.
        let _ = stream.write_all(&line);
        if read {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        } else {
            kept.push(stream);
        }
    }
    count + hostile_lines().len()
}

fn abuse(rounds: usize) {
    let lab = Lab::new();
    let _kmes = lab.start_kmes(&KmeOptions::default());
    let options = |site: Site| GatewayOptions {
        interface: if site == Site::B { format!("metrics_listen = \"{METRICS}\"") } else { String::new() },
        ..GatewayOptions::default()
    };
    for site in Site::BOTH {
        let _ = lab.configure(site, &options(site));
    }
    let gateways = Site::BOTH.map(|site| lab.start_daemon(site));
    for gateway in &gateways {
        gateway.wait_state("up", START);
    }
    let [_, gateway] = &gateways;
    let socket = gateway.socket();
    round(&socket, 300);
    wait_until("the places are free", Duration::from_secs(15), || gateway.try_show().map(drop));
    let (before, open) = (gateway.process.memory(), gateway.process.open_files());
    let rekeys = gateway.peer()["rekeys"].as_u64().unwrap();

    // Clients of the metrics that send half a request and keep the connection open.
    let mut slow = lab.gw(Site::B).spawn(
        "python3",
        &[
            "-c",
            "import socket,time\n\
             s=[socket.create_connection(('127.0.0.1',9790)) for _ in range(100)]\n\
             for c in s:\n\
             \x20try: c.send(b'GET /metr')\n\
             \x20except OSError: pass\n\
             print('held', flush=True)\n\
             time.sleep(3600)\n",
        ],
    );
    slow.line("held", Duration::from_secs(10));
    let seconds = 6 * u64::try_from(rounds).unwrap();
    let stream = Stream { count: 500 * seconds, rate: 500, ..Stream::default() }.start(&lab);
    let began = Instant::now();
    let mut connections = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        connections += round(&socket, 300);
    }
    for report in stream.finish() {
        assert_eq!((report.received.lost, report.refused), (0, 0), "{report:?}");
    }
    // The daemon has closed the open connections by now, also those of clients that read nothing.
    wait_until("the operator is served", Duration::from_secs(15), || gateway.try_show().map(drop));
    wait_until("connections end", Duration::from_secs(20), || {
        (gateway.process.open_files() <= open + 10).then_some(())
    });
    let done = gateway.peer()["rekeys"].as_u64().unwrap() - rekeys;
    assert!(done >= seconds - 1, "rekeys go on: {done} in {seconds} s");
    let after = gateway.process.memory();
    assert!(after < before + 10_000, "memory is bounded: {before} kB before, {after} kB after");
    println!(
        "control: {connections} hostile connections in {seconds} s; {done} rekeys; memory {before} kB \
         before, {after} kB after"
    );

    // The metrics listener has closed the connections of slow clients.
    wait_until("a scrape", Duration::from_secs(15), || {
        let page = lab.gw(Site::B).try_run(&format!(
            "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{METRICS}/metrics\", \
             timeout=5).read().decode())'"
        ));
        String::from_utf8_lossy(&page.stdout).contains("qvpn_peer_state").then_some(())
    });
    assert!(slow.is_running());
}

#[test]
fn hostile_connections_do_no_harm_alone() {
    sandbox::run("hostile_connections_do_no_harm_alone", || abuse(1));
}

#[test]
#[ignore = "two minutes; `make evidence` runs it"]
fn hostile_connections_do_no_harm_for_long_alone() {
    sandbox::run("hostile_connections_do_no_harm_for_long_alone", || abuse(20));
}
