//! Samples both gateways and the QKD link ten times a second over their sockets.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::{Gateway, Kmes};

const EVERY: Duration = Duration::from_millis(100);

/// Returns the seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// One sample.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Seconds since 1970.
    pub at: f64,
    pub ends: [End; 2],
    pub link: Link,
}

/// A gateway's peer.
#[derive(Debug, Clone, Default)]
pub struct End {
    pub state: String,
    pub stock: f64,
    pub rekeys: u64,
    /// Age of the key in use, in seconds; `None` without one.
    pub age: Option<f64>,
}

/// The QKD link.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Quantum bit error rate, 0 to 1.
    pub qber: f64,
    pub bits_per_s: f64,
    pub stored_keys: f64,
}

/// A connection with one line of reply for each line of request.
struct Lines(BufReader<UnixStream>);

impl Lines {
    fn open(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, line: &str) -> Value {
        writeln!(self.0.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{line}: {e}: {answer:?}"))
    }
}

/// A thread that samples until [`Watch::stop`].
pub struct Watch {
    samples: Arc<Mutex<Vec<Sample>>>,
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn start(gateways: &[Gateway<'_>; 2], kmes: &Kmes) -> Self {
        let mut ends = gateways.each_ref().map(|gateway| Lines::open(&gateway.socket()));
        let mut link = Lines::open(kmes.socket());
        let (samples, stopped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (into, until) = (Arc::clone(&samples), Arc::clone(&stopped));
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Acquire) {
                let at = now();
                let ends = ends.each_mut().map(|socket| end(&socket.ask("{\"v\":1,\"request\":\"show\"}")));
                let stats = link.ask("{\"cmd\":\"stats\"}");
                let hop = &stats["stats"]["links"][0];
                let number = |name: &str| hop[name].as_f64().unwrap();
                let link = Link {
                    qber: number("qber"),
                    bits_per_s: number("bits_per_s"),
                    stored_keys: (number("stored_bits") / 256.0).floor(),
                };
                into.lock().unwrap_or_else(PoisonError::into_inner).push(Sample { at, ends, link });
                thread::sleep(EVERY.saturating_sub(Duration::from_secs_f64((now() - at).max(0.0))));
            }
        });
        Self { samples, stopped, thread }
    }

    /// Returns the latest sample.
    pub fn latest(&self) -> Option<Sample> {
        assert!(!self.thread.is_finished(), "the watch has ended; its message is above");
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    pub fn stop(self) -> Vec<Sample> {
        self.stopped.store(true, Ordering::Release);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn end(answer: &Value) -> End {
    let peer = &answer["body"]["interfaces"][0]["peers"][0];
    End {
        state: peer["state"].as_str().unwrap().to_owned(),
        stock: peer["qkd_stock"].as_f64().unwrap_or(0.0),
        rekeys: peer["rekeys"].as_u64().unwrap(),
        age: peer["epoch_age_s"].as_f64(),
    }
}
