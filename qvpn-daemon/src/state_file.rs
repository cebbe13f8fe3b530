//! `/var/lib/qvpn/IFACE.state`: where each peer was last, so that a gateway that restarts can call peers that
//! only know how to call it, and the time of its last handshake initiation, so that recorded ones start
//! nothing. Nothing in it is secret, and losing it costs only time.
//!
//! It is text: a header, a line for each peer, and a last line with their number, which a truncated file
//! lacks.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use qvpn_identity::PublicIdentity;
use qvpn_proto::session::Tai64n;
use qvpn_types::Time;
use tokio::task::JoinHandle;

use crate::clock;

/// Where state files are, unless the command line says otherwise.
pub(crate) const STATE_DIR: &str = "/var/lib/qvpn";
const VERSION: &str = "1";
/// A larger file is none of ours: it has one line of some hundred bytes for each peer.
const MAX_BYTES: u64 = 16 << 20;
/// A file from this far ahead was written under a wrong clock, or the clock is wrong now.
const MAX_AHEAD: Duration = Duration::from_secs(60);
/// How often the file is written at most, and how often that is tried again after a failure.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How often the file is written at most if only times of initiations changed, which each handshake does.
const TIMES_INTERVAL: Duration = Duration::from_secs(60);
/// What stands for a missing value.
const NONE: &str = "-";

/// What is stored about a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PeerState {
    /// The endpoint at which it was last.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The greatest time in one of its handshake initiations.
    pub(crate) initiation: Option<Tai64n>,
}

/// What is stored about each peer, by X25519 key.
pub(crate) type PeerStates = BTreeMap<[u8; 32], PeerState>;

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    saved_at: i64,
    peers: PeerStates,
}

/// The state file of a daemon.
pub(crate) struct StateFile {
    path: PathBuf,
    /// The lines that say whose file it is.
    owner: String,
    /// What the file holds, as far as we know.
    saved: Option<PeerStates>,
    writing: Option<JoinHandle<io::Result<PeerStates>>>,
    next_try: Time,
    /// When it is written although only times changed.
    times_due: Time,
    /// Whether the last write failed, which was logged.
    failed: bool,
}

impl StateFile {
    /// Reads the file of an interface. A file that is unusable is reported in one log line, and replaced
    /// later.
    pub(crate) fn open(dir: &Path, interface: &str, own: &PublicIdentity) -> (Self, PeerStates) {
        let path = dir.join(format!("{interface}.state"));
        let owner = owner(interface, own);
        let contents = read(&path, &owner);
        let mut state = Self {
            path,
            owner,
            saved: None,
            writing: None,
            next_try: Time::default(),
            times_due: Time::default(),
            failed: false,
        };
        let peers = match contents {
            Ok(Some(contents)) => {
                state.report_future(&contents);
                state.saved = Some(contents.peers.clone());
                without_future(contents.peers)
            }
            Ok(None) => PeerStates::new(),
            Err(why) => {
                tracing::warn!(
                    "{}: {why}; it is not used and will be replaced: peers without an `endpoint` are reached \
                     when they call",
                    state.path.display()
                );
                PeerStates::new()
            }
        };
        (state, peers)
    }

    /// Notes that our key is another one. The file is written again, so that the next start uses it.
    pub(crate) fn set_owner(&mut self, interface: &str, own: &PublicIdentity) {
        let owner = owner(interface, own);
        if owner != self.owner {
            self.owner = owner;
            self.saved = None;
            self.next_try = Time::default();
        }
    }

    fn report_future(&self, contents: &Contents) {
        let ahead = u64::try_from(contents.saved_at - clock::unix_seconds()).unwrap_or(0);
        if Duration::from_secs(ahead) > MAX_AHEAD {
            tracing::warn!(
                "{}: it was saved {ahead} s from now: a clock was or is wrong; its endpoints are used, since \
                 a wrong one costs nothing; check this machine's clock",
                self.path.display()
            );
        }
    }

    /// Writes the file if something changed. Call it often: it writes in another thread, and at most each two
    /// seconds, or each minute if no endpoint changed.
    pub(crate) async fn poll(&mut self, peers: impl FnOnce() -> PeerStates, now: Time) {
        if let Some(writing) = self.writing.take_if(|writing| writing.is_finished()) {
            let result = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.on_written(result, now);
        }
        if self.writing.is_some() || now < self.next_try {
            return;
        }
        self.next_try = now + SAVE_INTERVAL;
        let peers = peers();
        let due = match &self.saved {
            Some(saved) if same_endpoints(saved, &peers) => *saved != peers && now >= self.times_due,
            _ => true,
        };
        if due {
            self.times_due = now + TIMES_INTERVAL;
            let (path, text) = (self.path.clone(), self.text(&peers));
            self.writing = Some(tokio::task::spawn_blocking(move || write(&path, &text).map(|()| peers)));
        }
    }

    /// Writes the file at once.
    pub(crate) async fn save_now(&mut self, peers: PeerStates, now: Time) {
        if let Some(writing) = self.writing.take() {
            let result = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            self.on_written(result, now);
        }
        self.close(peers, now);
    }

    /// What the file holds now: what another gateway knew, if its file was copied here.
    pub(crate) fn read_again(&mut self) -> PeerStates {
        match read(&self.path, &self.owner) {
            Ok(Some(contents)) => {
                self.report_future(&contents);
                self.saved = Some(contents.peers);
            }
            Ok(None) => {}
            Err(why) => tracing::warn!("{}: {why}; it is not used", self.path.display()),
        }
        without_future(self.saved.clone().unwrap_or_default())
    }

    /// Writes the file for the last time.
    pub(crate) fn close(&mut self, peers: PeerStates, now: Time) {
        if self.saved.as_ref() != Some(&peers) {
            let result = write(&self.path, &self.text(&peers)).map(|()| peers);
            self.on_written(result, now);
        }
    }

    fn on_written(&mut self, result: io::Result<PeerStates>, now: Time) {
        match result {
            Ok(peers) => {
                self.saved = Some(peers);
                if std::mem::take(&mut self.failed) {
                    tracing::info!("{}: saved again", self.path.display());
                }
            }
            Err(error) => {
                self.next_try = now + RETRY_INTERVAL;
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(
                        "{}: {error}; after a restart, peers without an `endpoint` are reached only when \
                         they call; make the directory writable for the daemon's user (the unit does by \
                         StateDirectory=qvpn), and free disk space",
                        self.path.display()
                    );
                }
            }
        }
    }

    fn text(&self, peers: &PeerStates) -> String {
        let mut text = format!(
            "# Where each peer of a qvpn tunnel was last, and the time of its last handshake (TAI64N).\n\
             # Nothing here is secret, and the file may be deleted.\n\
             version {VERSION}\n{}saved {}\n",
            self.owner,
            clock::unix_seconds()
        );
        for (key, peer) in peers {
            let endpoint = peer.endpoint.map_or_else(|| NONE.to_owned(), |endpoint| endpoint.to_string());
            let time = peer.initiation.map_or_else(|| NONE.to_owned(), |t| HEXLOWER.encode(&t.to_bytes()));
            text += &format!("peer {} {endpoint} {time}\n", BASE64.encode(key));
        }
        text + &format!("end {}\n", peers.len())
    }
}

/// The lines that say whose file it is.
fn owner(interface: &str, own: &PublicIdentity) -> String {
    format!("interface {interface}\nidentity {}\n", own.fingerprint())
}

/// Returns the contents of a file; `None` if there is none, and an error in words if it is unusable.
fn read(path: &Path, owner: &str) -> Result<Option<Contents>, String> {
    match fs::metadata(path) {
        Ok(found) if found.len() > MAX_BYTES => return Err("it is too large for a state file".to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text, owner).map(Some)
}

/// Parses a whole file, or says what is wrong with it.
fn parse(text: &str, owner: &str) -> Result<Contents, String> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    match lines.next().and_then(|line| line.strip_prefix("version ")) {
        Some(VERSION) => {}
        Some(version) => {
            return Err(format!("it has version {version} of the format, this release knows {VERSION}"));
        }
        None => return Err("it is no state file, or is damaged".to_owned()),
    }
    let damaged = || "it is damaged or was cut off".to_owned();
    let whose = [lines.next(), lines.next()].map(Option::unwrap_or_default);
    if whose.iter().any(|line| line.is_empty()) {
        return Err(damaged());
    }
    if format!("{}\n{}\n", whose[0], whose[1]) != owner {
        let whose = whose.map(|line| line.chars().filter(|c| !c.is_control()).take(80).collect::<String>());
        return Err(format!("it belongs to another tunnel ({}, {})", whose[0], whose[1]));
    }
    let saved_at =
        lines.next().and_then(|line| line.strip_prefix("saved ")?.parse().ok()).ok_or_else(damaged)?;
    let mut peers = PeerStates::new();
    for line in lines.by_ref() {
        if let Some(count) = line.strip_prefix("end ") {
            let whole = count.parse() == Ok(peers.len()) && lines.next().is_none() && text.ends_with('\n');
            return if whole { Ok(Contents { saved_at, peers }) } else { Err(damaged()) };
        }
        let (key, peer) = peer(line).ok_or_else(damaged)?;
        peers.insert(key, peer);
    }
    Err(damaged())
}

fn peer(line: &str) -> Option<([u8; 32], PeerState)> {
    let mut words = line.strip_prefix("peer ")?.split(' ');
    let [key, endpoint, time] = [words.next()?, words.next()?, words.next()?];
    let key = BASE64.decode(key.as_bytes()).ok()?.try_into().ok()?;
    let endpoint = if endpoint == NONE { None } else { Some(endpoint.parse().ok()?) };
    let initiation = match time {
        NONE => None,
        time => Some(Tai64n::from_bytes(HEXLOWER.decode(time.as_bytes()).ok()?.try_into().ok()?)),
    };
    words.next().is_none().then_some((key, PeerState { endpoint, initiation }))
}

fn same_endpoints(a: &PeerStates, b: &PeerStates) -> bool {
    let pairs = |(key, peer): (&[u8; 32], &PeerState)| (*key, peer.endpoint);
    a.iter().map(pairs).eq(b.iter().map(pairs))
}

/// Drops times ahead of our clock, which would make us refuse a peer until then.
fn without_future(mut peers: PeerStates) -> PeerStates {
    let now = Duration::from_secs(u64::try_from(clock::unix_seconds()).unwrap_or(0));
    let latest = Tai64n::from_unix(now + MAX_AHEAD);
    for peer in peers.values_mut() {
        peer.initiation = peer.initiation.filter(|time| *time <= latest);
    }
    peers
}

/// Replaces the file as a whole: a reader finds the former contents or these.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("state.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // A file that was cut off by a full disk would keep the disk full.
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests;
