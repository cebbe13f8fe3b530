//! The compared VPNs: how to start each one between two namespaces, and its processes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::{Node, Process, binary};
use x25519_dalek::{PublicKey, StaticSecret};

/// Inner MTU of every tunnel.
pub const MTU: usize = 1420;

/// Outer and inner addresses of the two sides.
pub const OUTER: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const INNER: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// Time limit for the first packet through a tunnel.
const START: Duration = Duration::from_secs(20);

/// The program that carries the packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// The plain link, without a tunnel.
    Plain,
    /// A userspace WireGuard with the cross-platform control socket: its program, and the arguments before
    /// the name of the interface.
    Wireguard(&'static str, &'static [&'static str]),
    /// The daemon with QKD keys of kme-sim: its suite and rekey interval.
    Daemon(&'static str, &'static str),
    /// The same, with this number of additional protected prefixes, no two of them adjacent.
    Protecting(&'static str, u16),
    /// Only the data path: its suite, and rekeys per second.
    Tunnel(&'static str, u32),
}

/// One VPN to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vpn {
    /// The name in tables and on the command line, short enough for an interface name.
    pub name: &'static str,
    pub kind: Kind,
    /// Whether it is measured in all rows, or only in a row of its own.
    pub everywhere: bool,
}

const fn everywhere(name: &'static str, kind: Kind) -> Vpn {
    Vpn { name, kind, everywhere: true }
}

const fn rekey_only(name: &'static str, kind: Kind) -> Vpn {
    Vpn { name, kind, everywhere: false }
}

/// All VPNs, in the order of measurement.
pub const ALL: &[Vpn] = &[
    everywhere("plain", Kind::Plain),
    everywhere("wireguard-go", Kind::Wireguard("wireguard-go", &["-f"])),
    everywhere("boringtun", Kind::Wireguard("boringtun-cli", &["-f", "--disable-drop-privileges"])),
    everywhere("gotatun", Kind::Wireguard("gotatun", &["-f", "--disable-drop-privileges", "-v", "error"])),
    everywhere("qvpn-chacha", Kind::Daemon("chacha20poly1305", "60s")),
    everywhere("qvpn-aes", Kind::Daemon("aes256gcm", "60s")),
    everywhere("null-cipher", Kind::Tunnel("null", 0)),
    rekey_only("lanes", Kind::Tunnel("chacha", 0)),
    rekey_only("lanes-10rk", Kind::Tunnel("chacha", 10)),
    rekey_only("qvpn-10rk", Kind::Daemon("chacha20poly1305", "100ms")),
    Vpn { name: "qvpn-10kpfx", kind: Kind::Protecting("chacha20poly1305", 10_000), everywhere: false },
];

/// A tunnel between two namespaces. Dropping it stops its processes.
pub struct Running {
    pub vpn: Vpn,
    /// The two hosts.
    pub nodes: [Node; 2],
    /// The destination addresses of the traffic, one for each side.
    pub inner: [&'static str; 2],
    /// The public identities of daemons.
    pub public: Vec<String>,
    /// The tunnel's own processes, one for each side.
    ends: Vec<Process>,
    /// Other required processes.
    _helpers: Vec<Process>,
}

impl Vpn {
    /// Starts the VPN and waits until a packet passes.
    ///
    /// # Errors
    /// A description for the notes of the table.
    pub fn start(self, peers: &Path, lanes: u8) -> Result<Running> {
        let nodes = ["a", "b"].map(|side| Node::new(&format!("{}-{side}", self.name)));
        nodes[0].join("wan", &nodes[1], "wan");
        for (node, outer) in nodes.iter().zip(OUTER) {
            node.run(&format!("ip addr add {outer}/24 dev wan"));
        }
        let mut running = Running {
            vpn: self,
            nodes,
            inner: INNER,
            public: Vec::new(),
            ends: Vec::new(),
            _helpers: Vec::new(),
        };
        match self.kind {
            Kind::Plain => running.inner = OUTER,
            Kind::Wireguard(program, words) => running.start_wireguard(&peers.join(program), words)?,
            Kind::Daemon(suite, rekey) => running.start_daemons(suite, rekey, lanes, 0)?,
            Kind::Protecting(suite, prefixes) => running.start_daemons(suite, "60s", lanes, prefixes)?,
            Kind::Tunnel(suite, rekeys) => running.start_lanes(suite, rekeys, lanes)?,
        }
        let begun = Instant::now();
        while !running.nodes[0].pings(running.inner[1]) {
            for end in &mut running.ends {
                ensure!(end.is_running(), "it has ended:\n{}", end.log());
            }
            ensure!(begun.elapsed() < START, "no packet passed within {START:?}");
        }
        Ok(running)
    }
}

impl Running {
    /// Returns the name of a side's device, within the kernel's limit.
    fn device(&self, end: usize) -> String {
        let name: String = self.vpn.name.chars().take(13).collect();
        format!("{name}{end}")
    }

    fn bring_up(&self, end: usize) {
        let device = self.device(end);
        let address = INNER[end];
        self.nodes[end]
            .run(&format!("ip addr add {address}/24 dev {device} && ip link set {device} mtu {MTU} up"));
    }

    fn start_wireguard(&mut self, program: &Path, words: &[&str]) -> Result<()> {
        ensure!(program.is_file(), "SKIPPED: it can't be had here (scripts/bench-peers.sh says why)");
        let secrets = [StaticSecret::from([1; 32]), StaticSecret::from([2; 32])];
        for end in 0..2 {
            let device = self.device(end);
            let mut command = self.nodes[end].command(program);
            command.args(words).arg(&device).env("LOG_LEVEL", "error");
            self.ends.push(Process::spawn(format!("{} {end}", self.vpn.name), &mut command));
            let socket = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
            let settings = format!(
                "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint={}:51820\n\
                 replace_allowed_ips=true\nallowed_ip=10.77.0.0/24\n\n",
                hex(secrets[end].as_bytes()),
                hex(PublicKey::from(&secrets[1 - end]).as_bytes()),
                OUTER[1 - end],
            );
            let answer = uapi(&socket, &settings, &mut self.ends[end])?;
            ensure!(answer.contains("errno=0"), "it refused its settings: {answer}");
            self.bring_up(end);
        }
        Ok(())
    }

    fn start_lanes(&mut self, suite: &str, rekeys: u32, lanes: u8) -> Result<()> {
        for (end, side) in ["a", "b"].into_iter().enumerate() {
            let device = self.device(end);
            let (rekeys, lanes) = (rekeys.to_string(), lanes.to_string());
            let words = ["--tun", &device, "--peer", OUTER[1 - end], "--side", side, "--suite", suite];
            let more = ["--rekeys", &rekeys, "--lanes", &lanes];
            let mut process = self.nodes[end].spawn(binary("bench-tunnel"), &[&words[..], &more].concat());
            process
                .find_line(START, |line| line == "ready")
                .map_err(|why| anyhow::anyhow!("bench-tunnel: {why}\n{}", process.log()))?;
            self.ends.push(process);
            self.bring_up(end);
        }
        Ok(())
    }

    /// Starts a kme-sim with both KMEs on the first host, and the daemons. The second daemon reaches its KME
    /// over the link between the hosts.
    fn start_daemons(&mut self, suite: &str, rekey: &str, lanes: u8, protected: u16) -> Result<()> {
        let protect = (0..protected).map(|i| {
            let [high, low] = i.to_be_bytes();
            format!("100.{}.{low}.0/25", u16::from(high) + 64)
        });
        let protect: Vec<String> = protect.collect();
        let names = ["a", "b"];
        let kmes = [8443, 8444].map(|port| format!("{}:{port}", OUTER[0]));
        let dir = self.nodes[0].dir().to_owned();
        let certs = dir.join("certs");
        let mut command = Command::new(binary("kme-sim"));
        command.arg("certs").arg(&certs);
        for name in names {
            command.args(["--kme", &format!("kme-{name}={}", OUTER[0]), "--sae", &format!("SITE-{name}")]);
        }
        run(&mut command)?;
        let certs = certs.display();
        let mut config = format!("admin = \"{}/admin.sock\"\n", dir.display());
        for (name, address) in names.iter().zip(&kmes) {
            config += &format!(
                "[[kme]]\nname = \"kme-{name}\"\nlisten = \"{address}\"\ncert_file \
                 = \"{certs}/kme-{name}.pem\"\n\
                 key_file = \"{certs}/kme-{name}.key\"\nclient_ca_file = \"{certs}/ca.pem\"\n\
                 [[sae]]\nid = \"SITE-{name}\"\nkme = \"kme-{name}\"\n"
            );
        }
        config += "[[link]]\nkmes = [\"kme-a\", \"kme-b\"]\nkey_size = 256\nrate_bits_per_s = \
                   25600\ninitial_keys = 1000\n";
        let file = dir.join("kme-sim.toml");
        fs::write(&file, config)?;
        let mut kme =
            self.nodes[0].spawn(binary("kme-sim"), &["--config", file.to_str().context("a path in UTF-8")?]);
        kme.find_line(START, |line| line.contains("listening admin"))
            .map_err(|why| anyhow::anyhow!("kme-sim: {why}\n{}", kme.log()))?;
        self._helpers.push(kme);

        let mut public = Vec::new();
        for node in &self.nodes {
            let key = node.dir().join("qvpn.key");
            let (ctl, key) = (binary("qvpn-ctl"), key.display());
            node.run(&format!("umask 077; {} genkey > {key}", ctl.display()));
            public.push(node.run(&format!("{} pubkey < {key}", ctl.display())).trim().to_owned());
        }
        self.public.clone_from(&public);
        for (end, name) in names.into_iter().enumerate() {
            let (other, dir) = (names[1 - end], self.nodes[end].dir().to_owned());
            let stem = format!("site-{name}");
            let config = format!(
                "[interface]\nname = \"{}\"\nprivate_key_file = \"{}/qvpn.key\"\nlisten_port = 51820\n\
                 address = [\"{}/24\"]\nmtu = {MTU}\nsuite = \"{suite}\"\nrekey_interval \
                 = \"{rekey}\"\nlanes = {lanes}\n\
                 protect = {protect:?}\n[kms]\nsae_id = \"SITE-{name}\"\n[[kms.kme]]\nname = \
                 \"kme-{name}\"\nurl = \"https://{}\"\n\
                 ca_file = \"{certs}/ca.pem\"\ncert_file = \"{certs}/{stem}.pem\"\nkey_file \
                 = \"{certs}/{stem}.key\"\n\
                 [[peer]]\nname = \"site-{other}\"\npublic_key = \"{}\"\nendpoint = \"{}:51820\"\n\
                 allowed_ips = [\"{}/32\"]\nsae_id = \"SITE-{other}\"\nqkd = \"required\"\n",
                self.device(end),
                dir.display(),
                INNER[end],
                kmes[end],
                public[1 - end],
                OUTER[1 - end],
                INNER[1 - end],
            );
            let file = dir.join("qvpn.toml");
            fs::write(&file, config)?;
            let file = file.to_str().context("a path in UTF-8")?;
            let process = self.nodes[end].spawn(binary("qvpn-daemon"), &["--config", file, "--log", "warn"]);
            self.ends.push(process);
        }
        Ok(())
    }

    /// Returns the seconds of CPU time that the tunnel's processes have used, on both sides.
    ///
    /// # Errors
    /// If a process has ended.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let mut ticks = 0;
        for end in &self.ends {
            let stat = fs::read_to_string(format!("/proc/{}/stat", end.id()))?;
            // After the name, which may contain any character, utime and stime are the 12th and 13th fields.
            let (_, fields) = stat.rsplit_once(')').context("the form of /proc/PID/stat")?;
            for field in fields.split_whitespace().skip(11).take(2) {
                ticks += field.parse::<u64>()?;
            }
        }
        // USER_HZ is 100 on every Linux that this runs on.
        Ok(ticks as f64 / 100.0)
    }

    /// Returns the peak resident memory of the side that used more, in MB (10^6 bytes).
    ///
    /// # Errors
    /// If a process has ended.
    pub fn peak_memory(&self) -> Result<f64> {
        let mut most = 0;
        for end in &self.ends {
            let status = fs::read_to_string(format!("/proc/{}/status", end.id()))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
            most = most.max(line.trim().trim_end_matches(" kB").parse::<u64>()?);
        }
        Ok(most as f64 * 1024.0 / 1e6)
    }

    /// Returns the output of a process that has ended, if there is one.
    pub fn exit_report(&mut self) -> Option<String> {
        self.ends.iter_mut().find_map(|end| (!end.is_running()).then(|| end.log()))
    }
}

/// Sends settings to a userspace WireGuard once its socket exists. Returns its reply.
fn uapi(socket: &Path, settings: &str, process: &mut Process) -> Result<String> {
    let begun = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) => {
                ensure!(process.is_running(), "it has ended:\n{}", process.log());
                ensure!(begun.elapsed() < START, "{}: {error}", socket.display());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    };
    stream.set_read_timeout(Some(START))?;
    stream.write_all(settings.as_bytes())?;
    let mut answer = String::new();
    let mut buffer = [0; 256];
    while !answer.contains("errno=") {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "the socket closed: {answer}");
        answer += &String::from_utf8_lossy(&buffer[..length]);
    }
    Ok(answer)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
