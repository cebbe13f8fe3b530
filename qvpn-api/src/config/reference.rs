//! The reference of all config keys, for the man page qvpn.toml(5). A test compares it with the grammar.

/// A section.
#[derive(Debug)]
pub struct SectionHelp {
    /// The section's header.
    pub title: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [KeyHelp],
}

/// A key.
#[derive(Debug)]
pub struct KeyHelp {
    /// The key.
    pub name: &'static str,
    /// The values that are allowed.
    pub values: &'static str,
    /// The default; empty if there is none.
    pub default: &'static str,
    /// What it does.
    pub about: &'static str,
}

const fn key(
    name: &'static str,
    values: &'static str,
    default: &'static str,
    about: &'static str,
) -> KeyHelp {
    KeyHelp { name, values, default, about }
}

/// All sections, in the order in which a config has them.
pub const REFERENCE: &[SectionHelp] = &[
    SectionHelp {
        title: "[interface]",
        about: "The tunnel's device and its daemon.",
        keys: &[
            key("name", "\"NAME\"", "the file's stem", "The device's name, 1 to 15 bytes."),
            key(
                "private_key_file",
                "\"FILE\"",
                "NAME.key beside the config",
                "The secret key, as `qvpn-ctl genkey` makes it. A file that others can read is refused. \
                 \"credential:NAME\", here and for each other file, is the credential that \
                 LoadCredential= of the unit names.",
            ),
            key(
                "listen_port",
                "1 to 65535",
                "51820",
                "The UDP port of lane 0; lane i uses the port i above it.",
            ),
            key("address", "[\"ADDRESS/LENGTH\", …]", "none", "The device's addresses."),
            key(
                "mtu",
                "\"auto\" or 576 to 65455",
                "\"auto\"",
                "The device's MTU in bytes, at least 1280 where there is IPv6. With \"auto\" it is 1420, \
                 and the routes to each peer get the MTU that was measured on its path, 1200 to 1420.",
            ),
            key(
                "suite",
                "\"chacha20poly1305\" or \"aes256gcm\"",
                "\"chacha20poly1305\"",
                "The AEAD of peers without their own `suite`. Both sites must have the same.",
            ),
            key(
                "rekey_interval",
                "\"100ms\" to \"120s\"",
                "\"60s\"",
                "How often a new key is made. The shorter interval of both sites applies, but none below \
                 `min_rekey_interval` of either.",
            ),
            key(
                "min_rekey_interval",
                "\"100ms\" to \"120s\"",
                "a tenth of `rekey_interval`, at least \"100ms\"",
                "The shortest interval that a peer can ask for. It bounds the QKD keys and the work that a \
                 peer costs.",
            ),
            key(
                "liveness",
                "\"100ms\" to \"60s\" or \"off\"",
                "\"2s\"",
                "A peer from which nothing came for this long is pinged; after three lost pings, 5 s with \
                 the default, it is `silent` and called at every endpoint that is known. \"off\": a peer \
                 that is gone shows when its key expires. One site's setting is enough for both.",
            ),
            key("lanes", "1 to 16", "1", "How many lanes share the traffic; the same number at both sites."),
            key(
                "table",
                "\"auto\", \"off\" or a number",
                "\"auto\"",
                "Where routes for allowed IPs go. \"auto\": the table of all tunnels (29046), which a rule \
                 before the main table looks up. A number: that table, for rules of your own; what they \
                 don't send there is not blocked. \"off\": nowhere, and only `protect` is blocked.",
            ),
            key(
                "fwmark",
                "0 to 4294967295",
                "0",
                "The firewall mark of outer packets; 0 stands for 0x71760000.",
            ),
            key(
                "dscp",
                "\"inherit\" or 0 to 63",
                "0",
                "The DSCP of outer packets; \"inherit\" copies the inner packet's.",
            ),
            key(
                "on_stop",
                "\"block\" or \"open\"",
                "\"block\"",
                "What happens to allowed IPs while the daemon is stopped: \"block\" makes them \
                 unreachable, \"open\" removes our routes.",
            ),
            key(
                "protect",
                "[\"PREFIX\", …]",
                "none",
                "More prefixes that may leave this host through the tunnel only. Allowed IPs always are, \
                 unless table is \"off\" or a number.",
            ),
            key(
                "local",
                "[{ prefix = \"PREFIX\", device = \"DEVICE\" }, …] or \"connected\"",
                "none",
                "This site's own networks inside protected prefixes, each reachable through its device \
                 without \
                 the tunnel. \"connected\": those that this host was connected to when the daemon first \
                 started, \
                 but none of an uplink, of a device that leads to an endpoint, or of DHCP; `qvpn-ctl local \
                 accept` \
                 adds others.",
            ),
            key(
                "routes",
                "\"config\" or \"kernel\"",
                "\"config\"",
                "What decides which peer a packet goes to. \"config\": the longest prefix in `allowed_ips`. \
                 \"kernel\": the routes of `routes_table` through this device, as FRR, bird or you make \
                 them; each leads to the peer whose `tunnel_address` is its next hop. `allowed_ips` then \
                 only bound what a peer may get and send, and may overlap. Only a restart changes it.",
            ),
            key(
                "routes_table",
                "\"main\" or a number",
                "\"main\"",
                "The routing table that `routes = \"kernel\"` follows. Only a restart changes it.",
            ),
            key(
                "metrics_listen",
                "\"ADDRESS:PORT\"",
                "off",
                "The address where Prometheus scrapes /metrics, without TLS and password.",
            ),
            key(
                "log_level",
                "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
                "\"info\"",
                "How much the daemon logs; a reload changes it.",
            ),
            key(
                "include",
                "\"DIR/*.toml\"",
                "none",
                "Further files with sections [[peer]], read in the order of their names; best one peer a \
                 file. DIR and relative paths in the files start from this config's directory. One \
                 broken file refuses the whole config. `--save` changes a peer in its file, and makes \
                 PEER.toml for a new one.",
            ),
        ],
    },
    SectionHelp {
        title: "[kms]",
        about: "This site's side of the QKD network. Without it each peer must say qkd = \"off\".",
        keys: &[
            key("sae_id", "\"ID\"", "", "Our SAE ID, as the KME knows it."),
            key(
                "stock",
                "1 to 100",
                "5",
                "The number of QKD keys held ahead for each peer, to bridge an outage.",
            ),
            key("kme", "[[kms.kme]]", "", "The KMEs, one section each."),
        ],
    },
    SectionHelp {
        title: "[[kms.kme]]",
        about: "A source of keys: a key management entity, a SKIP key provider, or a file of keys.",
        keys: &[
            key("name", "\"NAME\"", "", "Its name in this config."),
            key(
                "api",
                "\"etsi014\", \"etsi004\", \"skip\" or \"file\"",
                "\"etsi014\"",
                "What it is: ETSI GS QKD 014, ETSI GS QKD 004, SKIP (draft-cisco-skip-02) over mutual \
                 TLS, or a file of keys that was brought on a disk. Keys from a file are shown as \
                 `file` and never count as QKD.",
            ),
            key("sae_id", "\"ID\"", "that of [kms]", "The SAE ID by which it knows us."),
            key(
                "url",
                "\"https://HOST:PORT\"",
                "",
                "Its URL; for api = \"etsi004\" \"tls://HOST:PORT\". Required, but not for a file.",
            ),
            key(
                "dialect",
                "\"auto\", \"c\" or \"python\"",
                "\"auto\"",
                "The byte format of an ETSI GS QKD 004 server: that of ETSI's C reference, or that of \
                 QUBIP's Python server. \"auto\" finds it by trying. For api = \"etsi004\" alone.",
            ),
            key(
                "link",
                "\"NAME\"",
                "",
                "The name of the link behind an ETSI GS QKD 004 server, the same at both sites. Needed \
                 where a peer has two such servers. For api = \"etsi004\" alone.",
            ),
            key("server_name", "\"NAME\"", "the URL's host", "The name in its certificate. Not for a file."),
            key(
                "ca_file",
                "\"FILE\"",
                "",
                "The CA that its certificate must chain to, PEM. Required, but not for a file.",
            ),
            key("cert_file", "\"FILE\"", "", "Our client certificate, PEM. Required, but not for a file."),
            key(
                "key_file",
                "\"FILE\" or \"pkcs11:…\"",
                "",
                "The key of our certificate, PEM, in a file that others can't read; or the URI (RFC 7512) \
                 of a key in a PKCS#11 token, with module-path, object or id, and optionally token, \
                 serial and pin-source. Required, but not for a file.",
            ),
            key(
                "keys_file",
                "\"FILE\"",
                "",
                "The file of keys, for api = \"file\" alone and needed there; both sites have the same, \
                 each line is overwritten before its key is used, and one peer alone may use it.",
            ),
        ],
    },
    SectionHelp {
        title: "[[peer]]",
        about: "Another site.",
        keys: &[
            key("name", "\"NAME\"", "", "Its name here, 1 to 64 characters without spaces."),
            key(
                "public_key",
                "\"qvpn1-…\"",
                "",
                "What `qvpn-ctl pubkey` prints there. A list of two while the site changes its key.",
            ),
            key(
                "endpoint",
                "\"HOST:PORT\"",
                "learned from its packets",
                "Where it is. A host name is looked up again when the peer is silent.",
            ),
            key(
                "allowed_ips",
                "[\"PREFIX\", …]",
                "",
                "The networks behind it. A prefix belongs to one peer; of nested ones the longest wins.",
            ),
            key(
                "tunnel_address",
                "[\"ADDRESS\", …]",
                "required under routes = \"kernel\"",
                "The peer's own addresses in the tunnel: the next hops by which the kernel's routes lead to \
                 it, and allowed sources. Unless one of them is link-local, the link-local address that is \
                 derived from its public key counts too. Without effect under routes = \"config\".",
            ),
            key("sae_id", "\"ID\"", "", "Its SAE ID; needed unless qkd is \"off\"."),
            key(
                "kmes",
                "[\"NAME\", …]",
                "all, in their order",
                "The KMEs that serve the pair, in the order of preference.",
            ),
            key(
                "qkd",
                "\"required\", \"preferred\" or \"off\"",
                "\"required\"",
                "Whether its keys need QKD: no QKD no traffic, traffic goes on and is shown as degraded, \
                 or never. The stricter site's holds.",
            ),
            key("role", "\"auto\", \"initiator\" or \"responder\"", "\"auto\"", "Who proposes keys."),
            key(
                "preshared_key_file",
                "\"FILE\"",
                "none",
                "A pre-shared key that goes into each traffic key, as `qvpn-ctl genpsk` makes it.",
            ),
            key(
                "persistent_keepalive",
                "\"1s\" to \"65535s\"",
                "off",
                "How often something is sent at least, to keep a NAT's mapping.",
            ),
            key("suite", "as in [interface]", "the interface's", "The peer's AEAD."),
            key("rekey_interval", "as in [interface]", "the interface's", "The peer's rekey interval."),
            key(
                "disabled",
                "true or false",
                "false",
                "true: no traffic and no handshakes with it. Its networks stay blocked.",
            ),
        ],
    },
    SectionHelp {
        title: "[access]",
        about: "Who may use the control socket besides root, by the names of users and groups (\"@GROUP\"). \
                Nobody gets access to key files by it. With this section everybody else is refused; \
                without it, members of the group `qvpn` may do everything, and everybody who can connect \
                may look. A reload changes the lists; to add or remove the section, restart the daemon.",
        keys: &[
            key(
                "observe",
                "[\"NAME\", …]",
                "none",
                "May look: show, events, metrics, top, doctor, peer list.",
            ),
            key(
                "operate",
                "[\"NAME\", …]",
                "none",
                "May also rekey, reload (also as a dry run) and confirm.",
            ),
            key("admin", "[\"NAME\", …]", "none", "May also change peers: peer add, set, remove."),
        ],
    },
    SectionHelp {
        title: "[audit]",
        about: "What the audit log records besides changes, see docs/audit.md. There is a log once `qvpn-ctl \
                audit setup` was run.",
        keys: &[key(
            "epochs",
            "\"all\", \"changes\" or \"off\"",
            "\"changes\"",
            "Which epochs it records: each (one line a minute for each peer), those whose key is made of \
             other sources than the one before, or none.",
        )],
    },
];
