//! Text input: the config, and lines of the control API.

use std::path::Path;

use qvpn_api::Config;
use qvpn_api::control::{LineBuffer, MAX_REQUEST, Message, Reply, Request};

/// Parses a config. Errors have positions in the text; an accepted config names each peer and KME once.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Config::parse(Path::new("/etc/qvpn/qvpn0.toml"), &text) {
        Ok(config) => {
            for (n, peer) in config.peers.iter().enumerate() {
                assert!(
                    config.peers[..n].iter().all(|p| p.name != peer.name && p.public_key != peer.public_key)
                );
                assert!(peer.allowed_ips.iter().all(|net| *net == net.trunc()), "no host bits");
                let _ = config.kmes_of(peer);
            }
        }
        Err(errors) => {
            let said = errors.to_string();
            let lines = text.lines().count() + 1;
            for line in said.lines().filter_map(|line| line.strip_prefix("/etc/qvpn/qvpn0.toml:")) {
                let at: Option<usize> = line.split(':').next().and_then(|number| number.parse().ok());
                assert!(at.is_none_or(|at| (1..=lines).contains(&at)), "{line}");
            }
            assert!(!said.is_empty());
        }
    }
}

/// Reads a stream of the control socket in pieces. An accepted message is the same after it is written and
/// read again.
pub fn control(bytes: &[u8]) {
    let Some((size, stream)) = bytes.split_first() else { return };
    let mut lines = LineBuffer::new(MAX_REQUEST);
    for piece in stream.chunks(usize::from(*size) + 1) {
        lines.push(piece);
        while let Ok(Some(line)) = lines.next_line() {
            if let Ok(request) = Request::from_line(&line) {
                let again = request.to_line().map(|line| Request::from_line(line.as_bytes()));
                assert!(matches!(again, Ok(Ok(again)) if again == request));
            }
            if let Ok(reply) = Reply::from_line(&line) {
                assert!(reply.to_line().is_ok());
            }
        }
    }
}
