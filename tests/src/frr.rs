//! FRR (Debian's `frr`) on a machine of the lab, with its files and sockets in the machine's own directory.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::node::Node;
use crate::process::Process;
use crate::wait::wait_until;

/// Where the package has its daemons.
const DAEMONS: &str = "/usr/lib/frr";
const START: Duration = Duration::from_secs(20);

/// Running daemons of FRR. They end when it is dropped.
pub struct Frr<'a> {
    node: &'a Node,
    dir: PathBuf,
    daemons: Vec<(String, Process)>,
}

impl<'a> Frr<'a> {
    /// Starts `zebra` and these daemons with their configs.
    ///
    /// # Panics
    /// If FRR isn't installed, or a daemon doesn't start.
    #[must_use]
    #[track_caller]
    pub fn start(node: &'a Node, configs: &[(&str, &str)]) -> Self {
        let dir = node.dir().join("frr");
        fs::create_dir_all(dir.join("etc")).unwrap();
        fs::write(dir.join("etc/vtysh.conf"), "").unwrap();
        // The daemons require this group to exist, and only root is mapped into the lab.
        fs::write(dir.join("group"), "root:x:0:\nfrr:x:0:root\nfrrvty:x:0:root\n").unwrap();
        let text = dir.display();
        node.run(&format!("mount --bind {text}/group /etc/group && mount --bind {text}/etc /etc/frr"));
        let mut frr = Self { node, dir, daemons: Vec::new() };
        frr.daemon("zebra", "");
        for (name, config) in configs {
            frr.daemon(name, config);
        }
        frr
    }

    #[track_caller]
    fn daemon(&mut self, name: &str, config: &str) {
        let dir = self.dir.display().to_string();
        fs::write(self.dir.join(format!("{name}.conf")), format!("log stdout warnings\n{config}")).unwrap();
        let mut args = vec!["-u".to_owned(), "root".to_owned(), "-g".to_owned(), "root".to_owned()];
        for (flag, file) in
            [("-z", "zserv.api"), ("-i", &format!("{name}.pid")), ("-f", &format!("{name}.conf"))]
        {
            args.extend([flag.to_owned(), format!("{dir}/{file}")]);
        }
        args.extend(["--vty_socket".to_owned(), dir.clone(), "-P".to_owned(), "0".to_owned()]);
        if name == "bfdd" {
            args.extend(["--bfdctl".to_owned(), format!("{dir}/bfdd.sock")]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut process = self.node.spawn(format!("{DAEMONS}/{name}"), &args);
        let socket = self.dir.join(format!("{name}.vty"));
        wait_until(&format!("{name} answers"), START, || {
            assert!(process.is_running(), "{name} has ended; is `frr` installed?\n{}", process.log());
            std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(())
        });
        self.daemons.push((name.to_owned(), process));
    }

    /// Runs commands in `vtysh` and returns what they print.
    ///
    /// # Panics
    /// If `vtysh` fails.
    #[track_caller]
    pub fn vtysh(&self, commands: &[&str]) -> String {
        let mut line = format!("vtysh --vty_socket {}", self.dir.display());
        for command in commands {
            line += &format!(" -c '{command}'");
        }
        self.node.run(&line)
    }

    /// Applies lines of configuration to the running daemons.
    ///
    /// # Panics
    /// If a daemon refuses a line.
    #[track_caller]
    pub fn apply(&self, config: &str) {
        let file = self.dir.join("apply.conf");
        fs::write(&file, config).unwrap();
        self.node.run(&format!("vtysh --vty_socket {} -f {}", self.dir.display(), file.display()));
    }

    /// Returns the JSON that a `show` command prints; null if it prints none yet.
    #[must_use]
    #[track_caller]
    pub fn show(&self, command: &str) -> Value {
        serde_json::from_str(&self.vtysh(&[&format!("{command} json")])).unwrap_or_default()
    }

    /// Kills one of the daemons.
    pub fn kill(&mut self, name: &str) {
        for (_, daemon) in self.daemons.iter_mut().filter(|(daemon, _)| daemon == name) {
            daemon.kill();
        }
    }
}

/// Prints the state of FRR and of the kernel if the test failed.
impl Drop for Frr<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut lines = String::new();
            for command in
                ["bgp summary", "bgp ipv4", "bfd peers brief", "ip ospf neighbor", "ip route", "ipv6 route"]
            {
                lines += &format!("vtysh --vty_socket {} -c \"show {command}\"; ", self.dir.display());
            }
            let output =
                self.node.try_run(&format!("{lines} ip route; ip -6 route; ip nexthop; ip addr show qvpn0"));
            eprintln!("--- FRR of {}\n{}", self.node.name(), String::from_utf8_lossy(&output.stdout));
        }
    }
}
