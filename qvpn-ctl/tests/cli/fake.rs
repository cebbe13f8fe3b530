//! A scripted daemon: each request line is answered by the lines of a script.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use qvpn_api::control::{Message, Reply};

/// The fake daemon; its thread ends with the test's process.
pub(crate) struct Fake {
    requests: Receiver<String>,
}

impl Fake {
    /// Answers each request of `interface` with `answer`, byte for byte, then closes the connection.
    pub(crate) fn raw(dir: &Path, interface: &str, answer: &[u8]) -> Self {
        let listener = UnixListener::bind(dir.join(format!("{interface}.sock"))).unwrap();
        let (sender, requests) = channel();
        let answer = answer.to_owned();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut line = String::new();
                let _ = stream.read_line(&mut line);
                let _ = sender.send(line);
                // The client may be gone.
                let _ = stream.get_mut().write_all(&answer);
            }
        });
        Self { requests }
    }

    /// Answers each request with these replies.
    pub(crate) fn new(dir: &Path, interface: &str, replies: &[Reply]) -> Self {
        let lines: String = replies.iter().map(|r| r.to_line().unwrap()).collect();
        Self::raw(dir, interface, lines.as_bytes())
    }

    /// Returns the request that arrived.
    pub(crate) fn request(&self) -> String {
        self.requests.recv().unwrap().trim_end().to_owned()
    }
}
