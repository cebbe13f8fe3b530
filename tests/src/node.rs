//! One machine of the lab: a network namespace with its own `/run/qvpn` and `/var/lib/qvpn`, so that both
//! gateways can name their tunnel `qvpn0`. Files and processes are shared with the sandbox.

use std::fs::File;
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, setns};

use crate::process::Process;

/// A machine of the lab. Its namespaces live as long as the handle.
pub struct Node {
    name: String,
    /// Directory for this machine's files, with the same path inside and outside.
    dir: PathBuf,
    /// The process that holds the namespaces.
    holder: Process,
}

impl Node {
    /// Makes a machine with nothing but a loopback interface. IPv6 addresses are usable at once (no duplicate
    /// detection).
    ///
    /// # Panics
    /// Outside [`crate::sandbox`].
    #[must_use]
    pub fn new(name: &str) -> Self {
        let dir = Path::new("/run/lab").join(name);
        std::fs::create_dir_all(dir.join("run")).unwrap();
        // A machine of the same name may have been in this sandbox before, and this one is new.
        let _ = std::fs::remove_dir_all(dir.join("state"));
        std::fs::create_dir_all(dir.join("state")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--", "sh", "-c"]);
        command.arg(format!(
            "mount --bind {0}/run /run/qvpn && mount --bind {0}/state /var/lib/qvpn && \
             echo ready && exec sleep infinity",
            dir.display()
        ));
        let mut holder = Process::spawn(format!("node {name}"), &mut command).quiet();
        holder.line("ready", std::time::Duration::from_secs(10));
        let node = Self { name: name.to_owned(), dir, holder };
        for key in ["net/ipv6/conf/all/accept_dad", "net/ipv6/conf/default/accept_dad"] {
            node.sysctl(key, "0");
        }
        node.run("ip link set lo up");
        node
    }

    /// Returns the machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a directory for this machine's files, with the same path inside and outside.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Connects two machines: interface `ours` here and `theirs` there, both up and without addresses.
    pub fn join(&self, ours: &str, other: &Node, theirs: &str) {
        let id = other.holder.id();
        self.run(&format!(
            "ip link add {ours} type veth peer name {theirs} netns {id} && ip link set {ours} up"
        ));
        other.run(&format!("ip link set {theirs} up"));
    }

    /// Returns a command that runs on this machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let id = self.holder.id();
        command.arg(format!("--net=/proc/{id}/ns/net")).arg(format!("--mount=/proc/{id}/ns/mnt"));
        command.arg("--").arg(program);
        command
    }

    /// Runs a line of shell on this machine and returns its output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: `{line}` failed ({})\n{out}{error}", self.name, output.status);
        out.into_owned()
    }

    /// Runs a line of shell on this machine; it may fail.
    #[must_use]
    pub fn try_run(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).stdin(Stdio::null()).output().unwrap()
    }

    /// Starts a program on this machine.
    #[track_caller]
    pub fn spawn(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Process {
        let program = program.as_ref();
        let short = Path::new(program).file_name().unwrap_or(program).to_string_lossy();
        Process::spawn(format!("{} {short}", self.name), self.command(program).args(args))
    }

    /// Opens a UDP socket of the test's own process in this namespace, bound to this address.
    ///
    /// # Panics
    /// If the address can't be bound.
    #[must_use]
    #[track_caller]
    pub fn udp(&self, address: &str) -> UdpSocket {
        self.udp_sockets(address, 1).remove(0)
    }

    /// As [`udp`](Self::udp), several with the same address, whose port should be 0 then.
    #[must_use]
    #[track_caller]
    pub fn udp_sockets(&self, address: &str, count: usize) -> Vec<UdpSocket> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        let address = address.to_owned();
        // A socket belongs to the namespace of the thread that creates it.
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let bind = || UdpSocket::bind(&address).unwrap_or_else(|error| panic!("{address}: {error}"));
            (0..count).map(|_| bind()).collect()
        });
        thread.join().unwrap()
    }

    /// Sets a sysctl, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.run(&format!("echo {value} > /proc/sys/{key}"));
    }

    /// Whether one echo request to `address` is answered within a second.
    #[must_use]
    pub fn pings(&self, address: &str) -> bool {
        self.try_run(&format!("ping -n -c 1 -W 1 {address}")).status.success()
    }

    /// Drops this share (0 to 1) of all forwarded packets that match `what` (nft syntax, such as `meta
    /// l4proto udp`).
    pub fn drop_fraction(&self, what: &str, share: f64) {
        assert!((0.0..=1.0).contains(&share));
        self.nft_rule(
            "forward",
            &format!("{what} numgen random mod 10000 < {:.0} counter drop", share * 10_000.0),
        );
    }

    /// From now on, drops all packets at `hook` (`input`, `output`, `forward`) that match `what` (nft
    /// syntax).
    pub fn block(&self, hook: &str, what: &str) {
        self.nft_rule(hook, &format!("{what} counter drop"));
    }

    /// Removes all rules of [`drop_fraction`](Self::drop_fraction) and [`block`](Self::block).
    pub fn unblock(&self) {
        self.nft("table inet lab {}\ndelete table inet lab\n");
    }

    /// Returns the number of packets that rules of [`block`](Self::block) and
    /// [`drop_fraction`](Self::drop_fraction) have dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let text = self.run("nft -j list ruleset");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rules =
            json["nftables"].as_array().unwrap().iter().filter_map(|item| item["rule"]["expr"].as_array());
        rules.flatten().filter_map(|expression| expression["counter"]["packets"].as_u64()).sum()
    }

    fn nft_rule(&self, hook: &str, rule: &str) {
        self.nft(&format!(
            "table inet lab {{\nchain {hook} {{\ntype filter hook {hook} priority 0;\n}}\n}}\nadd rule inet \
             lab {hook} {rule}\n"
        ));
    }

    /// Passes `script` to nft, such as `table ip nat { ... }`.
    ///
    /// # Panics
    /// If nft refuses it.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        let mut child = self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "nft refused:\n{script}");
    }
}
