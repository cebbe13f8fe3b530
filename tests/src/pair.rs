//! Site A of the lab with two gateways and the real keepalived, by the packages' example.
//!
//! ```text
//!                  gw-a   10.10.0.11 -- 198.51.100.11
//!  lan-a 10.10.0.2   shared  10.10.0.1     198.51.100.1   wan   (site B as in the lab)
//!                  gw-a2  10.10.0.12 -- 198.51.100.12
//! ```
//!
//! Bridges in `lan-a`, `wan` and `kme` join both gateways to the same networks; the ports of the second one
//! are called `lan2`, and `site-a2` in `wan` and `kme`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binaries::binary;
use crate::gateway::{Gateway, GatewayOptions, INTERFACE};
use crate::lab::{Lab, Site};
use crate::node::Node;
use crate::process::Process;
use crate::wait::wait_until;

/// Where the examples stand.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/examples/keepalived");

/// A lab whose site A has two gateways.
pub struct PairLab {
    /// Everything else; its `gw_a` is the first gateway.
    pub lab: Lab,
    /// The second gateway of site A.
    pub gw_a2: Node,
}

/// One gateway of the pair with what runs on it.
pub struct PairGateway<'a> {
    node: &'a Node,
    /// The tunnel's daemon.
    pub daemon: Gateway<'a>,
    /// The program that writes the files that keepalived tracks.
    pub watch: Process,
    /// keepalived.
    pub keepalived: Process,
}

impl PairLab {
    /// Builds it, within [`crate::sandbox`], and writes the configs of both sites.
    ///
    /// # Panics
    /// If a command is missing or refused.
    #[must_use]
    pub fn new(options: &GatewayOptions) -> Self {
        let lab = Lab::new();
        let gw_a2 = Node::new("gw-a2");
        let (lan, wan, kme) = (&lab.lan_a, &lab.wan, &lab.kme);
        gw_a2.join("lan", lan, "lan2");
        gw_a2.join("wan", wan, "site-a2");
        gw_a2.join("kme", kme, "site-a2");
        let bridge = |node: &Node, ports: [&str; 2], addresses: &[&str]| {
            node.run("ip link add bridge type bridge && ip link set bridge up");
            for port in ports {
                node.run(&format!("ip addr flush dev {port} && ip link set {port} master bridge"));
            }
            for address in addresses {
                node.run(&format!("ip addr add {address} dev bridge"));
            }
        };
        bridge(lan, ["lan", "lan2"], &["10.10.0.2/16"]);
        lan.run("ip route add default via 10.10.0.1");
        bridge(wan, ["site-a", "site-a2"], &["198.51.100.2/24"]);
        bridge(kme, ["site-a", "site-a2"], &["10.30.0.2/24"]);
        gw_a2.sysctl("net/ipv4/ip_forward", "1");
        for (node, host, kme) in [(&lab.gw_a, 11, 1), (&gw_a2, 12, 3)] {
            node.run(&format!(
                "ip addr flush dev lan && ip addr flush dev wan && ip addr flush dev kme && \
                 ip addr add 10.10.0.{host}/16 dev lan && ip addr add 198.51.100.{host}/24 dev wan && \
                 ip addr add 10.30.0.{kme}/24 dev kme && ip route replace default via 198.51.100.2"
            ));
        }
        for site in Site::BOTH {
            let _ = lab.configure(site, options);
        }
        fs::copy(lab.gw_a.dir().join("qvpn0.toml"), gw_a2.dir().join("qvpn0.toml")).unwrap();
        Self { lab, gw_a2 }
    }

    /// The first or the second gateway of site A.
    #[must_use]
    pub fn node(&self, second: bool) -> &Node {
        if second { &self.gw_a2 } else { &self.lab.gw_a }
    }

    /// Starts daemon, watch and keepalived of a gateway.
    #[must_use]
    #[track_caller]
    pub fn start(&self, second: bool) -> PairGateway<'_> {
        let node = self.node(second);
        fs::create_dir_all(node.dir().join("vrrp")).unwrap();
        PairGateway {
            node,
            daemon: standby_daemon(node),
            watch: script(node, &["watch", INTERFACE]),
            keepalived: keepalived(node, second),
        }
    }

    /// Takes the link between a gateway and one of its networks down (`lan` or `wan`), or up again. The
    /// gateway sees no carrier.
    pub fn link(&self, second: bool, network: &str, up: bool) {
        let (node, port) = match (network, second) {
            ("lan", false) => (&self.lab.lan_a, "lan"),
            ("lan", true) => (&self.lab.lan_a, "lan2"),
            (_, false) => (&self.lab.wan, "site-a"),
            (_, true) => (&self.lab.wan, "site-a2"),
        };
        node.run(&format!("ip link set {port} {}", if up { "up" } else { "down" }));
    }
}

impl PairGateway<'_> {
    /// Waits until the gateway is `active` or in `standby`.
    #[track_caller]
    pub fn wait_mode(&self, mode: &str, limit: Duration) {
        wait_until(&format!("{}: {mode}", self.node.name()), limit, || {
            (self.daemon.try_show()?["gateway"]["state"] == mode).then_some(())
        });
    }

    /// As systemd does after a crash: starts the daemon again.
    pub fn restart_daemon(&mut self) {
        self.daemon = standby_daemon(self.node);
    }

    /// Ends everything here at once, as a power failure would. Take the links down before.
    pub fn power_off(&mut self) {
        let child = fs::read_to_string(self.node.dir().join("vrrp.pid")).unwrap();
        self.keepalived.kill();
        // It may have ended with its parent.
        let _ = kill(Pid::from_raw(child.trim().parse().unwrap()), Signal::SIGKILL);
        self.watch.kill();
        self.daemon.process.kill();
    }

    /// Moves the traffic to the other gateway, as for planned work, or lets it come back.
    pub fn away(&self, away: bool) {
        fs::write(self.node.dir().join("vrrp/qvpn0.away"), if away { "1\n" } else { "0\n" }).unwrap();
    }
}

fn standby_daemon(node: &Node) -> Gateway<'_> {
    Gateway::start_with(node, INTERFACE, &binary("qvpn-daemon"), &[], &["--standby"])
}

/// A command in the gateway's namespaces with what the script needs.
fn command(node: &Node, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = node.command(program);
    let bin = binary("qvpn-ctl").parent().unwrap().to_owned();
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", bin.display()));
    command.env("QVPN_VRRP_DIR", node.dir().join("vrrp"));
    command
}

fn script(node: &Node, words: &[&str]) -> Process {
    let file = Path::new(EXAMPLES).join("qvpn-vrrp");
    Process::spawn(format!("{} qvpn-vrrp", node.name()), command(node, file).args(words))
}

fn keepalived(node: &Node, second: bool) -> Process {
    let example = fs::read_to_string(Path::new(EXAMPLES).join("keepalived.conf")).unwrap();
    let mut text = example
        .replace("/etc/keepalived/qvpn-vrrp", &format!("{EXAMPLES}/qvpn-vrrp"))
        .replace("/run/qvpn-vrrp", &node.dir().join("vrrp").display().to_string())
        // A developer's home directory is not root's.
        .replace("    enable_script_security\n", "");
    if second {
        text = text.replace("gateway-1", "gateway-2").replace("priority 150", "priority 100");
    }
    let (file, dir) = (node.dir().join("keepalived.conf"), node.dir());
    fs::write(&file, text).unwrap();
    let mut command = command(node, "keepalived");
    command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"]).arg(file);
    command.arg("--pid").arg(dir.join("keepalived.pid")).arg("--vrrp_pid").arg(dir.join("vrrp.pid"));
    Process::spawn(format!("{} keepalived", node.name()), &mut command)
}
