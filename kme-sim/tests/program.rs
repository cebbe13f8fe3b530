//! The program itself: its output, how it stops, its admin socket, and that its log has each key ID once for
//! each side and never a key.
#![allow(clippy::unwrap_used)] // a failure in a helper is a failure of the test

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::{CONFIG, Client, client_config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kme-sim");

/// A running `kme-sim --config`.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: tokio::task::JoinHandle<String>,
    addresses: BTreeMap<String, SocketAddr>,
    admin: PathBuf,
}

async fn start(directory: &Path) -> Running {
    common::certificates(directory);
    std::fs::write(directory.join("kmes.toml"), format!("admin = \"admin.sock\"\n{CONFIG}")).unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["--log", "trace", "--config"])
        .arg(directory.join("kmes.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let log = tokio::spawn(async move {
        let mut text = String::new();
        stderr.read_to_string(&mut text).await.unwrap();
        text
    });
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut addresses = BTreeMap::new();
    loop {
        let mut line = String::new();
        assert_ne!(stdout.read_line(&mut line).await.unwrap(), 0, "it ended");
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["listening", "admin", path] => {
                return Running { child, stdout, log, addresses, admin: PathBuf::from(path) };
            }
            ["listening", kme, address] => {
                addresses.insert(kme.to_owned(), address.parse().unwrap());
            }
            _ => panic!("{line}"),
        }
    }
}

impl Running {
    async fn client(&self, directory: &Path, kme: &str, sae: &str) -> Client {
        let config = client_config(directory, Some(sae), rustls::ALL_VERSIONS);
        Client::connect(self.addresses[kme], kme, config).await.unwrap()
    }

    async fn admin(&self, words: &[&str]) -> Output {
        Command::new(PROGRAM).arg("admin").arg(&self.admin).args(words).output().await.unwrap()
    }

    /// Stops it with `signal`; returns its log.
    async fn stop(mut self, signal: Signal) -> String {
        kill(Pid::from_raw(self.child.id().unwrap().try_into().unwrap()), signal).unwrap();
        assert!(self.child.wait().await.unwrap().success());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "", "nothing but the listening lines goes to standard output");
        assert!(!self.admin.exists());
        self.log.await.unwrap()
    }
}

#[tokio::test]
async fn it_serves_logs_each_id_once_a_side_and_never_a_key_and_stops_cleanly() {
    let directory = TempDir::new().unwrap();
    let directory = directory.path();
    let running = start(directory).await;
    assert_eq!(running.addresses.keys().collect::<Vec<_>>(), ["kme-a1", "kme-b1", "kme-c1"]);

    let mut a = running.client(directory, "kme-a1", "site-a").await;
    let mut b = running.client(directory, "kme-b1", "site-b").await;
    let mut keys = a.get("/api/v1/keys/SITE-B/enc_keys?number=5").await.keys();
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(b.dec_keys("SITE-A", &ids).await.keys(), keys);
    // Refusals and faults leave no key in the log either.
    b.dec_keys("SITE-A", &ids).await.message(400);
    assert!(running.admin(&["misbehave", "kme-a1", "enc_keys", "wrong_bytes"]).await.status.success());
    let more = a.get("/api/v1/keys/SITE-C/enc_keys").await.keys();
    let mut c = running.client(directory, "kme-c1", "site-c").await;
    let got = c.dec_keys("SITE-A", &[&more[0].0]).await.keys();
    assert_ne!(got, more);
    let taken = [&keys[..], &got[..]].concat();
    keys.extend(more);
    keys.extend(got);

    let log = running.stop(Signal::SIGTERM).await;
    for (id, _) in &taken {
        for side in ["master", "slave"] {
            let lines =
                log.lines().filter(|l| l.contains(id.as_str()) && l.contains(&format!("side=\"{side}\"")));
            assert_eq!(lines.count(), 1, "{id} {side}:\n{log}");
        }
    }
    assert!(log.contains("THE KEYS OF THE LINK kme-a1 - kme-b1 ARE NOT SECRET"), "{log}");
    for (_, key) in &keys {
        // In each form, and in part: eight bytes of a key are not there by chance.
        for part in [&key[..8], &key[8..16]] {
            let decimal = part.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            for text in [data_encoding::HEXLOWER.encode(part), data_encoding::HEXUPPER.encode(part), decimal]
            {
                assert!(!log.contains(&text), "{text}:\n{log}");
            }
        }
        // Base64 of a whole number of three-byte groups stays the same no matter what follows.
        assert!(!log.contains(&data_encoding::BASE64.encode(&key[..12])), "{log}");
    }
}

#[tokio::test]
async fn the_admin_socket_takes_words_and_json_lines() {
    let directory = TempDir::new().unwrap();
    let running = start(directory.path()).await;
    let mode = std::fs::metadata(&running.admin).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();

    let output = running.admin(&["stored"]).await;
    assert!(output.status.success());
    let stored = answer(&output);
    assert_eq!(
        stored["links"][0],
        json!({"kmes": ["kme-a1", "kme-b1"], "stored_key_count": 500, "max_key_count": 1000, "paused": false})
    );
    assert_eq!(stored["kmes"][1]["name"], "kme-b1");
    assert_eq!(stored["kmes"][1]["waiting_keys"], 0);

    assert!(running.admin(&["pause-link", "kme-b1", "kme-a1"]).await.status.success());
    let line = r#"{"cmd":"misbehave","kme":"kme-b1","how":"http_503"}"#;
    assert!(running.admin(&[line]).await.status.success());
    let stored = answer(&running.admin(&["stored"]).await);
    assert_eq!(stored["links"][0]["paused"], true);
    assert_eq!(
        stored["kmes"][1]["misbehave"],
        json!({"port": "none", "status": "http_503", "enc_keys": "http_503", "dec_keys": "http_503"})
    );
    assert!(running.admin(&["resume-link", "kme-a1", "kme-b1"]).await.status.success());

    for words in [
        &["resume-link", "kme-b1", "kme-c1"][..],
        &["misbehave", "kme-x", "all", "hang"],
        &[r#"{"cmd":"misbehave","kme":"kme-b1","how":"explode"}"#],
        &[r#"{"cmd":"stored","x":1}"#],
        &["{}"],
    ] {
        let output = running.admin(words).await;
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert_eq!(answer(&output)["ok"], false);
    }

    // Several commands on one connection.
    let mut stream = BufReader::new(tokio::net::UnixStream::connect(&running.admin).await.unwrap());
    for _ in 0..3 {
        stream.write_all(b"{\"cmd\":\"stored\"}\n").await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["ok"], true);
    }
    // A second simulator doesn't take the socket of a running one.
    let second =
        Command::new(PROGRAM).arg("--config").arg(directory.path().join("kmes.toml")).output().await.unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process answers there"));
    let (admin, log) = (running.admin.clone(), running.stop(Signal::SIGINT).await);
    assert!(log.contains("misbehaviour set"));
    let gone = Command::new(PROGRAM).arg("admin").arg(&admin).arg("stored").output().await.unwrap();
    assert_eq!(gone.status.code(), Some(4));
}

#[tokio::test]
async fn a_socket_that_a_killed_process_left_is_replaced() {
    let directory = TempDir::new().unwrap();
    let mut running = start(directory.path()).await;
    running.child.kill().await.unwrap();
    assert!(running.admin.exists());
    for name in std::fs::read_dir(directory.path()).unwrap() {
        let path = name.unwrap().path();
        if path != running.admin {
            std::fs::remove_file(path).unwrap();
        }
    }
    let again = start(directory.path()).await;
    assert!(again.admin(&["stored"]).await.status.success());
    again.stop(Signal::SIGTERM).await;
}

#[tokio::test]
async fn bad_configs_and_bad_use_have_their_exit_codes() {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("bad.toml");
    std::fs::write(&config, "[[kme]]\nname = 1\n").unwrap();
    let output = Command::new(PROGRAM).arg("--config").arg(&config).output().await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with(&format!("{}:2:8: ", config.display())), "{message}");
    assert!(output.stdout.is_empty());

    // The certificates don't exist.
    std::fs::write(&config, CONFIG).unwrap();
    let output = Command::new(PROGRAM).arg("--config").arg(&config).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("kme-a1.pem") && message.contains("kme-sim certs"), "{message}");

    for words in [&[][..], &["--config"], &["certs"], &["admin", "x", "misbehave", "k", "all", "explode"]] {
        let output = Command::new(PROGRAM).args(words).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
}

#[tokio::test]
async fn the_man_pages_say_what_the_help_says() {
    let directory = TempDir::new().unwrap();
    let output = Command::new(PROGRAM).arg("man").arg(directory.path().join("man")).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let page = |name: &str| std::fs::read_to_string(directory.path().join("man").join(name)).unwrap();
    assert!(page("kme-sim.1").contains("Run the KMEs of this file"));
    assert!(page("kme-sim-certs.1").contains("Make a new CA and overwrite existing files"));
    let output = Command::new(PROGRAM).args(["man", "/dev/null/man"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
