//! The admin socket: one JSON command a line, one JSON answer a line. It sets faults, controls links and
//! reports stores. It never delivers a key.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::faults::catalog::{Faults, Misbehaviour, Ops};
use crate::network::report::{Counts, LinkReport, LinkStats};
use crate::state::{Shared, until_stopped};

const MAX_LINE_BYTES: u64 = 64 * 1024;

/// A command of the admin socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Sets or clears a fault of a KME.
    Misbehave {
        /// Its name.
        kme: String,
        /// The operations; all if absent.
        #[serde(default)]
        op: Ops,
        /// The fault.
        how: Misbehaviour,
    },
    /// Pauses a link's supply. Stored keys can still be taken.
    PauseLink {
        /// The KMEs that it joins.
        kmes: [String; 2],
    },
    /// Resumes a link's supply.
    ResumeLink {
        /// The KMEs that it joins.
        kmes: [String; 2],
    },
    /// Simulates an eavesdropper who measures and resends pulses of a link.
    Eavesdrop {
        /// The KMEs or nodes that it joins.
        kmes: [String; 2],
        /// Share of the pulses, percent; 0 for none.
        percent: u8,
    },
    /// Reports the stores of links and KMEs.
    Stored {},
    /// Reports supply, error rate and counters of each link and KME since the start.
    Stats {},
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Answer {
    /// Whether the command succeeded.
    pub ok: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The links, in answer to `stored`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<LinkReport>>,
    /// The KMEs, in answer to `stored`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kmes: Option<Vec<KmeReport>>,
    /// In answer to `stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

/// The whole network at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Simulated time since the start, seconds.
    pub time_s: f64,
    /// The links; each hop of a chain is a link.
    pub links: Vec<LinkStats>,
    /// The counters of each KME.
    pub kmes: BTreeMap<String, Counts>,
}

/// A KME's store and faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KmeReport {
    /// Its name.
    pub name: String,
    /// Keys that a slave SAE has not fetched yet, including delayed ones.
    pub waiting_keys: usize,
    /// Its faults.
    pub misbehave: Faults,
}

impl Answer {
    fn done() -> Self {
        Self { ok: true, ..Self::default() }
    }

    fn failed(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }
}

/// Executes `command`. It is in force when this returns.
pub(crate) async fn execute(shared: &Shared, command: Command) -> Answer {
    let pause = |kmes: &[String; 2], paused| {
        if shared.network().pause_link(kmes, paused, shared.now()) {
            info!(link = %format!("{} - {}", kmes[0], kmes[1]), paused, "link supply switched");
            Answer::done()
        } else {
            Answer::failed(format!("there is no link between {:?} and {:?}", kmes[0], kmes[1]))
        }
    };
    match command {
        Command::Misbehave { kme, op, how } => match shared.misbehave(&kme, op, how).await {
            Ok(()) => Answer::done(),
            Err(error) => Answer::failed(error),
        },
        Command::PauseLink { kmes } => pause(&kmes, true),
        Command::ResumeLink { kmes } => pause(&kmes, false),
        Command::Eavesdrop { kmes, percent } => {
            if percent > 100 {
                return Answer::failed("percent is from 0 to 100");
            }
            if shared.network().eavesdrop(&kmes, percent, shared.now()) {
                info!(link = %format!("{} - {}", kmes[0], kmes[1]), percent, "eavesdropper switched");
                Answer::done()
            } else {
                Answer::failed(format!("there is no link between {:?} and {:?}", kmes[0], kmes[1]))
            }
        }
        Command::Stats {} => {
            let now = shared.now();
            let names: Vec<String> = shared.all_faults().keys().cloned().collect();
            let mut network = shared.network();
            let kmes = names.into_iter().map(|name| (name.clone(), network.counts(&name))).collect();
            let stats = Stats { time_s: now.as_secs_f64(), links: network.link_stats(now), kmes };
            Answer { stats: Some(stats), ..Answer::done() }
        }
        Command::Stored {} => {
            let faults = shared.all_faults().clone();
            let mut network = shared.network();
            let report = |(name, misbehave): (String, Faults)| KmeReport {
                waiting_keys: network.stored_keys(&name),
                name,
                misbehave,
            };
            let kmes = faults.into_iter().map(report).collect();
            Answer { links: Some(network.links(shared.now())), kmes: Some(kmes), ..Answer::done() }
        }
    }
}

/// Makes the socket at `path`, for its owner only. A stale socket is replaced.
pub(crate) async fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
        }
        std::fs::remove_file(path)?;
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Answers commands until the simulator stops.
pub(crate) async fn serve(socket: UnixListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = until_stopped(&mut stopped) => break,
            Some(_) = clients.join_next() => {}
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(client(stream, shared.clone()));
                }
                Err(error) => {
                    warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
    clients.shutdown().await;
}

async fn client(stream: UnixStream, shared: Arc<Shared>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        match (&mut read).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.ends_with(b"\n");
        let answer = match serde_json::from_slice(&line) {
            Ok(command) => execute(&shared, command).await,
            Err(error) => Answer::failed(format!("no command: {error}")),
        };
        let mut text = serde_json::to_vec(&answer).unwrap_or_default();
        text.push(b'\n');
        // Close after an incomplete line, or if the client doesn't read its answer.
        if write.write_all(&text).await.is_err() || !whole {
            return;
        }
    }
}

/// Sends one command (a line of JSON) to the admin socket at `path` and returns the answer.
///
/// # Errors
/// The system's error if nothing answers.
pub async fn send(path: &Path, command: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(command.trim_end().as_bytes()).await?;
    stream.write_all(b"\n").await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}
