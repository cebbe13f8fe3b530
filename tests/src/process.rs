//! A program under test: its output is collected, can be awaited line by line, and is printed when a test
//! fails. The program is killed when its handle is dropped.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Lines of a program's output that are printed when the test fails.
const MAX_SHOWN_LINES: usize = 120;

#[derive(Default)]
struct Output {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    /// Streams (of standard output and error) that have ended.
    ended: usize,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Each push is one whole line, so a poisoned lock is still consistent.
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
    /// The number of lines that [`line`](Self::line) has passed.
    read: usize,
    quiet: bool,
}

impl Process {
    /// Starts `command`; `name` precedes its lines when they are printed.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn(name: impl Into<String>, command: &mut Command) -> Self {
        let name = name.into();
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{name} can't be started: {error}"));
        let output = Arc::new(Output::default());
        collect(child.stdout.take().unwrap(), Arc::clone(&output));
        collect(child.stderr.take().unwrap(), Arc::clone(&output));
        let stdin = child.stdin.take();
        Self { name, child, stdin, output, read: 0, quiet: false }
    }

    /// Suppresses the program's output when a test fails.
    #[must_use]
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Returns its process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns its memory that is not swapped out, in kB.
    ///
    /// # Panics
    /// If it has ended.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Returns the number of files that it has open.
    ///
    /// # Panics
    /// If it has ended.
    #[must_use]
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    /// Waits for a line that contains `text`, after the last one that this function returned.
    ///
    /// # Panics
    /// When `limit` has passed, or the program has ended without such a line.
    #[track_caller]
    pub fn line(&mut self, text: &str, limit: Duration) -> String {
        let found = self.find_line(limit, |line| line.contains(text));
        found.unwrap_or_else(|why| panic!("{}: no line with `{text}` ({why})", self.name))
    }

    /// Waits as [`line`](Self::line) for a line that satisfies `wanted`; returns the reason if there is none.
    pub fn find_line(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String, String> {
        let end = Instant::now() + limit;
        let mut lines = self.output.lock();
        loop {
            while self.read < lines.all.len() {
                self.read += 1;
                if wanted(&lines.all[self.read - 1]) {
                    return Ok(lines.all[self.read - 1].clone());
                }
            }
            if lines.ended == 2 {
                return Err("it has ended".to_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("not within {limit:?}"));
            }
            lines = self
                .output
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
    }

    /// Returns its output so far, standard output and error mixed.
    #[must_use]
    pub fn log(&self) -> String {
        self.output.lock().all.join("\n")
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Kills it with SIGKILL, which simulates a crash.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    }

    /// Sends SIGTERM and waits until it ends.
    ///
    /// # Panics
    /// If it still runs after 10 s.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(Duration::from_secs(10))
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// If it still runs after `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        // Its output streams end with it, and unlike `wait` they can be awaited with a deadline.
        if let Err(why) = self.find_line(limit, |_| false)
            && why != "it has ended"
        {
            panic!("{}: it hasn't ended ({why})", self.name);
        }
        self.child.wait().unwrap()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() && !self.quiet {
            let lines = self.output.lock();
            let skipped = lines.all.len().saturating_sub(MAX_SHOWN_LINES);
            eprintln!("--- output of {} ({skipped} lines left out)", self.name);
            for line in &lines.all[skipped..] {
                eprintln!("{}| {line}", self.name);
            }
        }
    }
}

fn collect(stream: impl Read + Send + 'static, output: Arc<Output>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            output.lock().all.push(String::from_utf8_lossy(&line).trim_end().to_owned());
            output.grown.notify_all();
            line.clear();
        }
        output.lock().ended += 1;
        output.grown.notify_all();
    });
}
