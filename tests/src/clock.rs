//! A clock of a site's daemon that a test can set. A test must not set the machine's clock, so a small C
//! library (`clock.c`) is preloaded into the daemon and adds offsets to the kernel's time.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::binaries::binary;
use crate::gateway::{Gateway, INTERFACE};
use crate::lab::{Lab, Site};

/// The offsets of a daemon's clocks.
pub struct Clock {
    file: File,
    path: PathBuf,
    library: PathBuf,
}

impl Lab {
    /// Makes a clock for a site's daemon, without an offset at first.
    ///
    /// # Panics
    /// If there is no C compiler.
    #[must_use]
    #[track_caller]
    pub fn clock(&self, site: Site) -> Clock {
        let dir = self.gw(site).dir();
        let (path, library) = (dir.join("clock"), dir.join("clock.so"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .unwrap_or_else(|error| panic!("cc: {error}; install build-essential"));
        assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        file.set_len(16).unwrap();
        Clock { file, path, library }
    }

    /// Starts a site's daemon with this clock, as [`start_daemon`](Self::start_daemon) does.
    #[must_use]
    #[track_caller]
    pub fn start_daemon_with(&self, site: Site, clock: &Clock) -> Gateway<'_> {
        let environment = [("LD_PRELOAD", clock.library.as_path()), ("LAB_CLOCK", clock.path.as_path())];
        self.start_daemon_as(site, INTERFACE, &binary("qvpn-daemon"), &environment)
    }
}

impl Clock {
    /// Sets the wall clock (`CLOCK_REALTIME`) this many seconds ahead of the right time, or behind it if
    /// negative.
    pub fn set_wall(&self, seconds: i64) {
        self.write(0, seconds * 1_000_000_000);
    }

    /// Simulates that the machine was suspended for `span`: `CLOCK_BOOTTIME` and the wall clock advance,
    /// others do not.
    pub fn slept(&self, span: Duration) {
        let nanos = i64::try_from(span.as_nanos()).unwrap();
        self.write(8, self.read(8) + nanos);
        self.write(0, self.read(0) + nanos);
    }

    fn write(&self, at: u64, nanos: i64) {
        self.file.write_all_at(&nanos.to_ne_bytes(), at).unwrap();
    }

    fn read(&self, at: u64) -> i64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        i64::from_ne_bytes(bytes)
    }
}
