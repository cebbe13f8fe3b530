//! Talks to a daemon over its control socket.

use std::io::{BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use qvpn_api::control::{MAX_REPLY, Message, Reply, Request, read_line, socket_path};
use qvpn_api::exit;

use crate::Failure;
use crate::keys::print;

/// A connection to one daemon.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(dir: &Path, interface: &str) -> Result<Self, Failure> {
        let path = socket_path(dir, interface);
        let stream = UnixStream::connect(&path).map_err(|error| {
            let at = path.display();
            let text = match error.kind() {
                ErrorKind::PermissionDenied => {
                    format!("may not talk to the daemon of {interface} ({at}): run as root, or join the group qvpn")
                }
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                    "no daemon runs for {interface} ({at}: {error}): start it with `systemctl start qvpn@{interface}`, or see `journalctl -u qvpn@{interface}`"
                ),
                _ => format!("cannot reach the daemon of {interface} at {at}: {error}"),
            };
            Failure { code: exit::DAEMON_UNREACHABLE, text }
        })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(crate) fn send(&mut self, request: &Request) -> Result<(), Failure> {
        let line = request.to_line().map_err(|e| Failure::new(e.to_string()))?;
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|e| lost(&e.to_string()))
    }

    /// The next reply; an error reply is a failure.
    pub(crate) fn receive(&mut self) -> Result<Reply, Failure> {
        let line = read_line(&mut self.stream, MAX_REPLY).map_err(|e| lost(&e.to_string()))?;
        let line = line.ok_or_else(|| lost("it closed the connection"))?;
        match Reply::from_line(&line).map_err(|e| Failure::new(e.to_string()))? {
            Reply::Error(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, Failure> {
        self.send(request)?;
        self.receive()
    }
}

fn lost(why: &str) -> Failure {
    Failure { code: exit::DAEMON_UNREACHABLE, text: format!("the daemon did not answer: {why}; see its log") }
}

pub(crate) fn unexpected() -> Failure {
    Failure::new(
        "the daemon gave an answer that does not belong to the question; install the same version of both programs",
    )
}

pub(crate) fn rekey(dir: &Path, interface: &str, peer: Option<String>) -> Result<(), Failure> {
    match Client::connect(dir, interface)?.ask(&Request::Rekey { peer })? {
        Reply::Rekey { peers } => print(&format!("rekey under way: {}", peers.join(", "))),
        _ => Err(unexpected()),
    }
}

pub(crate) fn reload(dir: &Path, interface: &str) -> Result<(), Failure> {
    match Client::connect(dir, interface)?.ask(&Request::Reload)? {
        Reply::Reload { changes } if changes.is_empty() => print("nothing changed"),
        Reply::Reload { changes } => print(&changes.join("\n")),
        _ => Err(unexpected()),
    }
}

pub(crate) fn peers(dir: &Path, interface: &str, json: bool) -> Result<(), Failure> {
    let Reply::Peers(peers) = Client::connect(dir, interface)?.ask(&Request::Peers)? else {
        return Err(unexpected());
    };
    if json {
        let all = serde_json::json!({ "schema": 1, "peers": peers });
        return print(&all.to_string());
    }
    for peer in peers {
        let endpoint = peer.endpoint.as_deref().unwrap_or("(learned)");
        print(&format!(
            "{}\t{}\t{endpoint}\t{}\tqkd={}\t{}",
            peer.name,
            peer.fingerprint,
            peer.allowed_ips.join(","),
            peer.qkd.as_str(),
            peer.public_key
        ))?;
    }
    Ok(())
}
