//! A site's `qvpn-daemon`: its keys and config as an operator would write them, its start, status and events.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::binaries::binary;
use crate::lab::{Lab, Outer, Site};
use crate::node::Node;
use crate::process::Process;
use crate::wait::wait_until;

/// The tunnel's name at both sites; further ones have other numbers.
pub const INTERFACE: &str = "qvpn0";
/// UDP port of the first tunnel at both sites; further ones follow.
pub const PORT: u16 = 51820;

/// A site's static key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The file with the private key.
    pub file: PathBuf,
    /// The public key as text.
    pub public: String,
}

/// Options for a site's config. Keys without a field here are given as lines of TOML.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Which tunnel of the site: number *n* is called `qvpn`*n*, listens on port 51820 + *n* and has the
    /// tunnel addresses 10.77.*n*.1 and .2.
    pub number: u8,
    /// `rekey_interval`.
    pub rekey_interval: String,
    /// `qkd` of the peer.
    pub qkd: String,
    /// `allowed_ips` of the peer; the other LAN's networks if empty.
    pub allowed_ips: Vec<String>,
    /// Which site is the initiator; `None` leaves it to the order of their public keys.
    pub initiator: Option<Site>,
    /// The IP version of the outer packets.
    pub outer: Outer,
    /// Whether the config has the peer's endpoint.
    pub endpoint: bool,
    /// More lines of `[interface]`.
    pub interface: String,
    /// More lines of `[kms]`; `None` leaves the whole section out.
    pub kms: Option<String>,
    /// More lines of the `[[kms.kme]]` of the site's KME.
    pub kme: String,
    /// Other `[[kms.kme]]` sections instead of that one.
    pub sources: Option<String>,
    /// More lines of `[[peer]]`.
    pub peer: String,
    /// The peer's public key in the config; its real one if `None`.
    pub peer_key: Option<String>,
}

impl Default for GatewayOptions {
    /// One rekey a second, QKD required, over IPv4.
    fn default() -> Self {
        Self {
            number: 0,
            rekey_interval: "1s".to_owned(),
            qkd: "required".to_owned(),
            allowed_ips: Vec::new(),
            initiator: None,
            outer: Outer::V4,
            endpoint: true,
            interface: String::new(),
            kms: Some(String::new()),
            kme: String::new(),
            sources: None,
            peer: String::new(),
            peer_key: None,
        }
    }
}

impl Lab {
    /// Returns the identity of a site, made with `qvpn-ctl` at the first call.
    ///
    /// # Panics
    /// If `qvpn-ctl` fails.
    #[must_use]
    #[track_caller]
    pub fn identity(&self, site: Site) -> Identity {
        let file = self.gw(site).dir().join("qvpn0.key");
        if !file.exists() {
            write_secret(&file, &ctl_pipe(&["genkey"], ""));
        }
        let public = ctl_pipe(&["pubkey"], &fs::read_to_string(&file).unwrap()).trim().to_owned();
        Identity { file, public }
    }

    /// Starts `qvpn-ctl guard --watch` at gateway A, and waits until it answers.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    #[track_caller]
    pub fn start_guard(&self) -> Process {
        let dir = self.gw_a.dir();
        let arguments = ["--config-dir", dir.to_str().unwrap(), "guard", "--watch"];
        let mut guard = self.gw_a.spawn(binary("qvpn-ctl"), &arguments);
        wait_until("the guard answers", Duration::from_secs(30), || {
            assert!(guard.is_running(), "{}", guard.log());
            UnixStream::connect(dir.join("run/guard.socket")).is_ok().then_some(())
        });
        guard
    }

    /// Writes a site's config; returns its path.
    #[must_use]
    #[track_caller]
    pub fn configure(&self, site: Site, options: &GatewayOptions) -> PathBuf {
        let (own, peer) = (self.identity(site), self.identity(site.other()));
        let other = site.other();
        let (number, host) = (options.number, site.pick(1, 2));
        let port = PORT + u16::from(number);
        let mut text = format!(
            "[interface]\nname = \"qvpn{number}\"\nprivate_key_file = \"{}\"\nlisten_port = {port}\naddress \
             = {:?}\n\
             rekey_interval = \"{}\"\n{}\n",
            own.file.display(),
            [format!("10.77.{number}.{host}/30"), format!("fd77:{number}::{host}/64")],
            options.rekey_interval,
            options.interface,
        );
        if let Some(lines) = &options.kms {
            let (kme, sae, address) = (site.kme(), site.sae(), site.kme_address());
            let certs = self.certificates();
            let certs = certs.display();
            let stem = sae.to_lowercase();
            let own = format!(
                "[[kms.kme]]\nname = \"{kme}\"\nurl = \"https://{address}\"\nca_file = \"{certs}/ca.pem\"\n\
                 cert_file = \"{certs}/{stem}.pem\"\nkey_file = \"{certs}/{stem}.key\"\n{}\n",
                options.kme,
            );
            let sources = options.sources.as_ref().unwrap_or(&own);
            text += &format!("[kms]\nsae_id = \"{sae}\"\n{lines}\n{sources}\n");
        }
        let networks = other.networks().map(str::to_owned).to_vec();
        let allowed = if options.allowed_ips.is_empty() { &networks } else { &options.allowed_ips };
        text += &format!(
            "[[peer]]\nname = \"{}\"\npublic_key = \"{}\"\nallowed_ips = {allowed:?}\nsae_id = \"{}\"\nqkd \
             = \"{}\"\n{}\n",
            other.name(),
            options.peer_key.as_ref().unwrap_or(&peer.public),
            other.sae(),
            options.qkd,
            options.peer,
        );
        if let Some(initiator) = options.initiator {
            let role = if initiator == site { "initiator" } else { "responder" };
            text += &format!("role = \"{role}\"\n");
        }
        if options.endpoint {
            let address = other.wan(options.outer);
            let endpoint = match options.outer {
                Outer::V6 => format!("[{address}]:{port}"),
                Outer::V4 => format!("{address}:{port}"),
            };
            text += &format!("endpoint = \"{endpoint}\"\n");
        }
        let file = self.gw(site).dir().join(format!("qvpn{number}.toml"));
        fs::write(&file, text).unwrap();
        file
    }

    /// Starts a site's daemon with the config that [`configure`](Self::configure) wrote, and waits until it
    /// reports that it is ready.
    ///
    /// # Panics
    /// If it ends, or isn't ready within a minute.
    #[must_use]
    #[track_caller]
    pub fn start_daemon(&self, site: Site) -> Gateway<'_> {
        self.start_daemon_as(site, INTERFACE, &binary("qvpn-daemon"), &[])
    }

    /// Starts the daemon of one of a site's tunnels from the executable `program`, with these environment
    /// variables.
    ///
    /// # Panics
    /// As [`start_daemon`](Self::start_daemon).
    #[must_use]
    #[track_caller]
    pub fn start_daemon_as(
        &self,
        site: Site,
        interface: &str,
        program: &Path,
        environment: &[(&str, &Path)],
    ) -> Gateway<'_> {
        Gateway::start(self.gw(site), interface, program, environment)
    }

    /// Configures and starts both sites with the same options.
    #[must_use]
    #[track_caller]
    pub fn start_both(&self, options: &GatewayOptions) -> [Gateway<'_>; 2] {
        for site in Site::BOTH {
            let _ = self.configure(site, options);
        }
        Site::BOTH.map(|site| self.start_daemon(site))
    }
}

/// A running daemon.
pub struct Gateway<'a> {
    node: &'a Node,
    interface: String,
    /// The `qvpn-daemon`.
    pub process: Process,
}

impl<'a> Gateway<'a> {
    /// Starts a daemon from the executable `program` on `node`, which has its config, with these environment
    /// variables, and waits until it reports that it is ready.
    ///
    /// # Panics
    /// If it ends, or isn't ready within a minute.
    #[must_use]
    #[track_caller]
    pub fn start(node: &'a Node, interface: &str, program: &Path, environment: &[(&str, &Path)]) -> Self {
        Self::start_with(node, interface, program, environment, &[])
    }

    /// As [`start`](Self::start), with more arguments.
    #[must_use]
    #[track_caller]
    pub(crate) fn start_with(
        node: &'a Node,
        interface: &str,
        program: &Path,
        environment: &[(&str, &Path)],
        arguments: &[&str],
    ) -> Self {
        let notify = node.dir().join(format!("{interface}.notify"));
        match fs::remove_file(&notify) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", notify.display()),
            _ => {}
        }
        let socket = UnixDatagram::bind(&notify).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut command = node.command(program);
        command.arg("--config").arg(node.dir().join(format!("{interface}.toml")));
        command.args(arguments).env("NOTIFY_SOCKET", &notify).envs(environment.iter().copied());
        let mut process = Process::spawn(format!("{} {interface}", node.name()), &mut command);
        wait_until(&format!("{}: READY=1", node.name()), Duration::from_secs(60), || {
            assert!(process.is_running(), "{}: the daemon has ended:\n{}", node.name(), process.log());
            let mut message = [0; 512];
            let length = socket.recv(&mut message).ok()?;
            String::from_utf8_lossy(&message[..length]).contains("READY=1").then_some(())
        });
        Gateway { node, interface: interface.to_owned(), process }
    }
}

impl Gateway<'_> {
    /// Runs `qvpn-ctl` with these arguments on the gateway.
    #[must_use]
    pub fn ctl(&self, words: &[&str]) -> Output {
        self.node.command(binary("qvpn-ctl")).args(words).stdin(Stdio::null()).output().unwrap()
    }

    /// Returns the interface's status (an element of `interfaces[]` in the schema), or `None` while the
    /// daemon doesn't answer.
    #[must_use]
    pub fn try_show(&self) -> Option<Value> {
        let output = self.ctl(&["show", &self.interface, "--json"]);
        let status: Value =
            serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())?;
        Some(status["interfaces"][0].clone())
    }

    /// Returns the interface's status, or `None` if the daemon doesn't answer within `limit`.
    #[must_use]
    pub fn try_show_within(&self, limit: Duration) -> Option<Value> {
        let mut command = self.node.command("timeout");
        command.arg(limit.as_secs_f64().to_string()).arg(binary("qvpn-ctl"));
        let output = command.args(["show", &self.interface, "--json"]).stdin(Stdio::null()).output().unwrap();
        let status: Value =
            serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())?;
        Some(status["interfaces"][0].clone())
    }

    /// Returns the interface's status.
    ///
    /// # Panics
    /// If the daemon doesn't answer.
    #[must_use]
    #[track_caller]
    pub fn show(&self) -> Value {
        self.try_show().unwrap_or_else(|| {
            panic!("{}: {:?}", self.node.name(), self.ctl(&["show", &self.interface, "--json"]))
        })
    }

    /// Returns the status of the only peer.
    #[must_use]
    #[track_caller]
    pub fn peer(&self) -> Value {
        self.show()["peers"][0].clone()
    }

    /// Waits until the peer's status satisfies `wanted`, and returns it.
    ///
    /// # Panics
    /// When `limit` has passed; the message has the last status.
    #[track_caller]
    pub fn wait_peer(&self, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.try_show() {
                last = status["peers"][0].clone();
            }
            if wanted(&last) {
                return last;
            }
            assert!(start.elapsed() < limit, "{}: {what}: not within {limit:?}; {last:#}", self.node.name());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the peer is in `state`.
    #[track_caller]
    pub fn wait_state(&self, state: &str, limit: Duration) -> Value {
        self.wait_peer(state, limit, |peer| peer["state"] == state)
    }

    /// Returns the path of the control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.node.dir().join("run").join(format!("{}.sock", self.interface))
    }

    /// Follows the events from now on: lines of JSON, to be awaited with [`Process::line`].
    #[must_use]
    pub fn events(&self) -> Process {
        self.node.spawn(binary("qvpn-ctl"), &["events", &self.interface, "--follow", "--json"])
    }
}

/// Pipes `input` through `qvpn-ctl`; returns what it printed.
#[track_caller]
pub(crate) fn ctl_pipe(words: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut command = Command::new(binary("qvpn-ctl"));
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "qvpn-ctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn write_secret(file: &Path, text: &str) {
    fs::write(file, "").unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(file, text).unwrap();
}
