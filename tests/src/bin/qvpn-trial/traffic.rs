//! The continuous traffic of the LAN hosts: a numbered stream like a video's in both directions, a bulk
//! transfer from site B to site A, and probes of the round trip from site A.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tests::{Lab, Process, Site, binary};

/// Datagrams of the video a second, in each direction.
pub const VIDEO_RATE: u64 = 500;
/// Bytes of each datagram.
pub const VIDEO_SIZE: u64 = 1200;
/// The rate of the bulk transfer.
pub const BULK_MBIT: u64 = 20;
const PROBE_RATE: u64 = 20;
const LIMIT: Duration = Duration::from_secs(30);

/// Running traffic.
pub struct Traffic {
    dir: PathBuf,
    video: [Process; 2],
    bulk: [Process; 2],
    probe: [Process; 2],
}

/// The complete record. Times are seconds since 1970.
pub struct Flows {
    /// From site A to B, and from B to A.
    pub video: [Video; 2],
    pub bulk: Bulk,
    /// Each probe's time, and its round trip in milliseconds.
    pub probes: Vec<(f64, Option<f64>)>,
}

/// One direction of the video.
pub struct Video {
    /// When each datagram was sent, and when it arrived.
    pub datagrams: Vec<(f64, Option<f64>)>,
    pub doubled: u64,
    pub reordered: u64,
}

/// The bulk transfer.
pub struct Bulk {
    pub bytes: u64,
    /// Bytes that differ from the sent ones.
    pub wrong: u64,
    /// Bytes that arrived in the tenth of a second from that time on.
    pub tenths: Vec<(f64, u64)>,
}

impl Traffic {
    pub fn start(lab: &Lab) -> Self {
        let dir = PathBuf::from("/run/lab/traffic");
        fs::create_dir_all(&dir).unwrap();
        let [host_a, host_b] = Site::BOTH.map(|site| site.host()[0]);
        let file = |name: &str| dir.join(name).display().to_string();
        let start = |site: Site, words: &[&str]| {
            let mut process = lab.lan(site).spawn(binary("lab-traffic"), words);
            process.line("ready", LIMIT);
            process
        };
        let address = |host: &str, port: u16| format!("{host}:{port}");
        let (rate, size) = (VIDEO_RATE.to_string(), VIDEO_SIZE.to_string());
        let (video_a, video_b) = (address(host_a, 7000), address(host_b, 7000));
        let video = [
            start(Site::A, &["video", &video_a, &video_b, &rate, &size, &file("video-a")]),
            start(Site::B, &["video", &video_b, &video_a, &rate, &size, &file("video-b")]),
        ];
        let bulk_a = address(host_a, 7001);
        let bulk = [
            start(Site::A, &["bulk-recv", &bulk_a, &file("bulk")]),
            start(Site::B, &["bulk-send", &bulk_a, &BULK_MBIT.to_string()]),
        ];
        let (probe_a, echo_b) = (address(host_a, 7002), address(host_b, 7002));
        let probe = [
            start(Site::B, &["echo", &echo_b]),
            start(Site::A, &["probe", &probe_a, &echo_b, &PROBE_RATE.to_string(), &file("probe")]),
        ];
        let mut traffic = Self { dir, video, bulk, probe };
        traffic.tell("go");
        traffic
    }

    fn tell(&mut self, word: &str) {
        for process in self.bulk.iter_mut().chain(&mut self.probe).chain(&mut self.video) {
            process.tell(word);
        }
    }

    /// Ends the traffic and reads its files.
    pub fn finish(mut self) -> Flows {
        self.tell("stop");
        let mut report =
            |process: &mut Process| -> Value { serde_json::from_str(&process.line("{", LIMIT)).unwrap() };
        let [a, b] = self.video.each_mut().map(&mut report);
        let [bulk, _] = self.bulk.each_mut().map(&mut report);
        let _ = self.probe.each_mut().map(&mut report);
        let number = |report: &Value, name: &str| report[name].as_u64().unwrap();
        let read = |name: &str| read(&self.dir.join(name));
        let video = |from: &str, to: &str, receiver: &Value| {
            let (sent, got) = (read(&format!("{from}.sent")), read(&format!("{to}.got")));
            let arrival = |at: usize| got.get(at).filter(|time| **time > 0).map(|time| seconds(*time));
            Video {
                datagrams: sent.iter().enumerate().map(|(at, time)| (seconds(*time), arrival(at))).collect(),
                doubled: number(receiver, "doubled"),
                reordered: number(receiver, "reordered"),
            }
        };
        Flows {
            video: [video("video-a", "video-b", &b), video("video-b", "video-a", &a)],
            bulk: Bulk {
                bytes: number(&bulk, "received"),
                wrong: number(&bulk, "wrong"),
                tenths: read("bulk").chunks(2).map(|pair| (seconds(pair[0]), pair[1])).collect(),
            },
            probes: read("probe")
                .chunks(2)
                .map(|pair| (seconds(pair[0]), (pair[1] > 0).then(|| pair[1] as f64 / 1e3)))
                .collect(),
        }
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn read(file: &Path) -> Vec<u64> {
    let bytes = fs::read(file).unwrap();
    bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect()
}
