//! `qvpn-ctl top` in a real terminal of 80 columns and 24 lines (tmux), at a gateway that carries traffic:
//! its screens are compared with snapshots in which numbers are `#`. Run with `BLESS=1` to rewrite them, and
//! review the difference.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::{Gateway, GatewayOptions, KmeOptions, Lab, Node, Site, Stream, binary, sandbox};

const START: Duration = Duration::from_secs(20);

/// A terminal in which a command runs at a node.
struct Terminal<'n> {
    node: &'n Node,
    socket: PathBuf,
}

impl<'n> Terminal<'n> {
    fn start(node: &'n Node, command: &str) -> Self {
        let terminal = Self { node, socket: node.dir().join("tmux") };
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", command]);
        terminal
    }

    fn tmux(&self, words: &[&str]) -> String {
        let mut tmux = self.node.command("tmux");
        tmux.args(["-u", "-f", "/dev/null", "-S"]).arg(&self.socket).args(words);
        let output = tmux.env("TERM", "xterm-256color").output().unwrap();
        assert!(output.status.success(), "tmux {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the 24 lines of the screen.
    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits for a screen that contains this.
    #[track_caller]
    fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(start.elapsed() < START, "{what}: not within {START:?}, but\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let mut tmux = self.node.command("tmux");
        let _ = tmux.arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

/// Returns a screen without the parts that change each second: numbers, and the units that depend on them.
fn skeleton(screen: &str) -> String {
    let keep = |word: &str| {
        let units = ["ms", "B/s", "KiB/s", "MiB/s", "GiB/s", "second", "seconds", "minute", "minutes"];
        !units.contains(&word.trim_end_matches(','))
    };
    let plain = |word: &str| {
        let is_name = word.starts_with("qvpn") || word.starts_with("kme-") || word.starts_with("qkd+");
        if !is_name && word.chars().any(|c| c.is_ascii_digit()) { "#".to_owned() } else { word.to_owned() }
    };
    let line =
        |line: &str| line.split_whitespace().filter(|w| keep(w)).map(plain).collect::<Vec<_>>().join(" ");
    screen.lines().map(|l| line(l) + "\n").collect()
}

/// Waits until the screen equals the snapshot.
fn snapshot(terminal: &Terminal<'_>, name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens").join(name);
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, skeleton(&terminal.screen())).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap();
    let start = Instant::now();
    loop {
        let seen = skeleton(&terminal.screen());
        if seen == expected {
            return;
        }
        let hint = "top has changed; if that is right, run this test with BLESS=1";
        assert!(start.elapsed() < START, "{hint}\n{seen}\ninstead of\n{expected}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn top_shows_a_running_tunnel_in_a_real_terminal() {
    sandbox::run("top_shows_a_running_tunnel_in_a_real_terminal", || {
        let lab = Lab::new();
        let _kmes = lab.start_kmes(&KmeOptions::default());
        // Only the initiator knows the time of the next rekey.
        let options = GatewayOptions { initiator: Some(Site::A), ..GatewayOptions::default() };
        let mut gateways: [Gateway<'_>; 2] = lab.start_both(&options);
        gateways.iter().for_each(|gateway| drop(gateway.wait_state("up", START)));
        let program = binary("qvpn-ctl").display().to_string();
        let terminal =
            Terminal::start(&lab.gw_a, &format!("{program} top qvpn0; echo \"exit status $?\"; exec cat"));
        let stream = Stream { count: 8_000, rate: 1000, ..Stream::default() }.start(&lab);
        let screen = terminal.wait("traffic on the screen", |s| s.contains("KiB/s") && s.contains("+chain"));
        assert_eq!(screen.lines().count(), 24, "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        assert!(screen.contains("1 of 1 peers up"), "{screen}");
        snapshot(&terminal, "top-up.txt");
        drop(stream.finish());

        // The daemon dies: the last numbers stay, with the remedy below them.
        gateways[0].process.kill();
        let screen = terminal.wait("the daemon is gone", |s| s.contains("the daemon of qvpn0 is gone"));
        assert!(screen.contains("systemctl restart qvpn@qvpn0") && screen.contains("site-b"), "{screen}");
        snapshot(&terminal, "top-gone.txt");
        // The screen recovers.
        let _again = lab.start_daemon(Site::A);
        terminal.wait("the daemon is back", |s| !s.contains("is gone") && s.contains("1 of 1 peers up"));

        terminal.tmux(&["send-keys", "q"]);
        let left = terminal.wait("top has ended", |s| s.contains("exit status 0"));
        assert!(!left.contains("qvpn-ctl top"), "the screen of before is back: {left}");
    });
}
