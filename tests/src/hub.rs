//! A hub with one tunnel interface and a number of sites, without QKD. The kernel's routes choose the site
//! of a packet. Default routes are the WAN, so a packet that the tunnel does not carry would leave in clear
//! and be captured there.
//!
//! ```text
//!  lan-hub       hub                          wan                            gw-1       lan-1
//!  10.10.0.2 --- 10.10.0.1  198.51.100.1 --- .100.2 | .101.2 --- 198.51.101.1  10.20.1.1 --- 10.20.1.2
//!  fd10::2       fd10::1                                                       fd20:1::1     fd20:1::2
//!       tunnel:  10.77.0.1, fd77::1                         10.77.0.2, fd77::2
//! ```
//!
//! Site *n* has the networks 10.20.*n*.0/24 and fd20:*n*::/64, the WAN network 198.51.(100 + *n*).0/24 and
//! the tunnel addresses 10.77.0.(*n* + 1) and fd77::(*n* + 1).

use std::fs;
use std::path::PathBuf;

use crate::binaries::binary;
use crate::gateway::{Gateway, INTERFACE, Identity, PORT, ctl_pipe, write_secret};
use crate::node::Node;

/// A site: its gateway and a host in its LAN.
pub struct HubSite {
    /// The site's number, from 1.
    pub number: u8,
    /// The gateway.
    pub gw: Node,
    /// The host.
    pub lan: Node,
}

/// The machines.
pub struct HubLab {
    /// The router between all gateways, whose interfaces are named after them.
    pub wan: Node,
    /// The hub's gateway.
    pub hub: Node,
    /// The host in the hub's LAN.
    pub hub_lan: Node,
    /// The sites.
    pub sites: Vec<HubSite>,
}

/// More lines for the configs.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// For `[interface]` at the hub.
    pub hub: String,
    /// For `[interface]` at each site.
    pub site: String,
    /// `allowed_ips` of each site at the hub.
    pub allowed: String,
}

impl Default for HubOptions {
    /// Kernel routes everywhere; every site may have every prefix.
    fn default() -> Self {
        Self {
            hub: "routes = \"kernel\"".to_owned(),
            site: "routes = \"kernel\"".to_owned(),
            allowed: "[\"10.20.0.0/14\", \"fd20::/16\"]".to_owned(),
        }
    }
}

impl HubSite {
    /// Returns the addresses of its host, IPv4 and IPv6.
    #[must_use]
    pub fn host(&self) -> [String; 2] {
        [format!("10.20.{}.2", self.number), format!("fd20:{}::2", self.number)]
    }

    /// Returns its gateway's addresses in the tunnel.
    #[must_use]
    pub fn tunnel(&self) -> [String; 2] {
        [format!("10.77.0.{}", self.number + 1), format!("fd77::{}", self.number + 1)]
    }

    /// Returns its name as a peer.
    #[must_use]
    pub fn name(&self) -> String {
        format!("site-{}", self.number)
    }
}

impl HubLab {
    /// Builds the lab, within [`crate::sandbox`].
    ///
    /// # Panics
    /// If a command is missing or refused.
    #[must_use]
    pub fn new(sites: u8) -> Self {
        let [wan, hub, hub_lan] = ["wan", "hub", "lan-hub"].map(Node::new);
        let site = |number: u8| HubSite {
            number,
            gw: Node::new(&format!("gw-{number}")),
            lan: Node::new(&format!("lan-{number}")),
        };
        let sites: Vec<HubSite> = (1..=sites).map(site).collect();
        let lab = Self { wan, hub, hub_lan, sites };
        lab.connect(0, &lab.hub, &lab.hub_lan, ["10.10.0", "fd10:"]);
        for site in &lab.sites {
            let nets = [format!("10.20.{}", site.number), format!("fd20:{}:", site.number)];
            lab.connect(site.number, &site.gw, &site.lan, [&nets[0], &nets[1]]);
        }
        for router in lab.sites.iter().map(|site| &site.gw).chain([&lab.hub, &lab.wan]) {
            router.sysctl("net/ipv4/ip_forward", "1");
            router.sysctl("net/ipv6/conf/all/forwarding", "1");
        }
        lab
    }

    fn connect(&self, number: u8, gw: &Node, lan: &Node, [v4, v6]: [&str; 2]) {
        lan.join("lan", gw, "lan");
        gw.join("wan", &self.wan, gw.name());
        let net = 100 + u16::from(number);
        lan.run(&format!(
            "ip addr add {v4}.2/24 dev lan && ip addr add {v6}:2/64 dev lan nodad && \
             ip route add default via {v4}.1 && ip -6 route add default via {v6}:1"
        ));
        gw.run(&format!(
            "ip addr add {v4}.1/24 dev lan && ip addr add {v6}:1/64 dev lan nodad && \
             ip addr add 198.51.{net}.1/24 dev wan && ip route add default via 198.51.{net}.2 && \
             ip addr add 2001:db8:{number}::1/64 dev wan nodad && \
             ip -6 route add default via 2001:db8:{number}::2"
        ));
        self.wan.run(&format!(
            "ip addr add 198.51.{net}.2/24 dev {0} && ip addr add 2001:db8:{number}::2/64 dev {0} nodad",
            gw.name()
        ));
    }

    /// Returns the identity of a gateway, made at the first call.
    ///
    /// # Panics
    /// If `qvpn-ctl` fails.
    #[must_use]
    #[track_caller]
    pub fn identity(&self, gw: &Node) -> Identity {
        let file = gw.dir().join("qvpn0.key");
        if !file.exists() {
            write_secret(&file, &ctl_pipe(&["genkey"], ""));
        }
        let public = ctl_pipe(&["pubkey"], &fs::read_to_string(&file).unwrap()).trim().to_owned();
        Identity { file, public }
    }

    fn interface(&self, gw: &Node, host: u8, lines: &str) -> String {
        format!(
            "[interface]\nprivate_key_file = \"{}\"\nlisten_port = {PORT}\n\
             address = [\"10.77.0.{host}/24\", \"fd77::{host}/64\"]\nrekey_interval = \"10s\"\n{lines}\n",
            self.identity(gw).file.display()
        )
    }

    /// Writes the hub's config; returns its path.
    #[must_use]
    #[track_caller]
    pub fn configure_hub(&self, options: &HubOptions) -> PathBuf {
        let mut text = self.interface(&self.hub, 1, &options.hub);
        for site in &self.sites {
            text += &format!(
                "[[peer]]\nname = \"{}\"\npublic_key = \"{}\"\nendpoint = \"198.51.{}.1:{PORT}\"\n\
                 allowed_ips = {}\ntunnel_address = {:?}\nqkd = \"off\"\n",
                site.name(),
                self.identity(&site.gw).public,
                100 + u16::from(site.number),
                options.allowed,
                site.tunnel()
            );
        }
        let file = self.hub.dir().join("qvpn0.toml");
        fs::write(&file, text).unwrap();
        file
    }

    /// Writes a site's config; returns its path.
    #[must_use]
    #[track_caller]
    pub fn configure_site(&self, site: &HubSite, options: &HubOptions) -> PathBuf {
        let number = site.number;
        let lines = format!(
            "{}\nlocal = [{{ prefix = \"10.20.{number}.0/24\", device = \"lan\" }}, \
             {{ prefix = \"fd20:{number}::/64\", device = \"lan\" }}]",
            options.site
        );
        let text = self.interface(&site.gw, number + 1, &lines)
            + &format!(
                "[[peer]]\nname = \"hub\"\npublic_key = \"{}\"\nendpoint = \"198.51.100.1:{PORT}\"\n\
                 allowed_ips = [\"10.0.0.0/8\", \"fd00::/8\"]\n\
                 tunnel_address = [\"10.77.0.1\", \"fd77::1\"]\nqkd = \"off\"\n",
                self.identity(&self.hub).public
            );
        let file = site.gw.dir().join("qvpn0.toml");
        fs::write(&file, text).unwrap();
        file
    }

    /// Configures all gateways.
    #[track_caller]
    pub fn configure(&self, options: &HubOptions) {
        let _ = self.configure_hub(options);
        for site in &self.sites {
            let _ = self.configure_site(site, options);
        }
    }

    /// Starts the daemon of a gateway with its config.
    ///
    /// # Panics
    /// If it ends, or isn't ready within a minute.
    #[must_use]
    #[track_caller]
    pub fn start<'a>(&self, gw: &'a Node) -> Gateway<'a> {
        Gateway::start(gw, INTERFACE, &binary("qvpn-daemon"), &[])
    }

    /// Configures and starts all gateways: the hub's and the sites', in their order.
    #[must_use]
    #[track_caller]
    pub fn start_all(&self, options: &HubOptions) -> (Gateway<'_>, Vec<Gateway<'_>>) {
        self.configure(options);
        let hub = self.start(&self.hub);
        (hub, self.sites.iter().map(|site| self.start(&site.gw)).collect())
    }
}
