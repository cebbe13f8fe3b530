//! What the grammar accepts, with its defaults; and that no input makes the parser panic.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use qvpn_api::Config;
use qvpn_api::config::{
    Dialect, Dscp, KmeAccess, KmeApi, Mtu, OnStop, QkdPolicy, Role, Routes, Suite, Table,
};

const EXAMPLE: &str = include_str!("examples/qvpn0.toml");
const PATH: &str = "/etc/qvpn/qvpn0.toml";

fn parse(text: &str) -> Config {
    Config::parse(Path::new(PATH), text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_example_is_read_whole() {
    let config = parse(EXAMPLE);
    let i = &config.interface;
    assert_eq!((i.name.as_str(), i.listen_port, i.lanes, i.fwmark), ("qvpn0", 51820, 1, 0));
    assert_eq!(i.private_key_file, PathBuf::from("/etc/qvpn/qvpn0.key"));
    assert_eq!(i.address.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.77.0.1/30", "fd77::1/64"]);
    assert_eq!((i.mtu, i.table, i.dscp, i.on_stop), (Mtu::Auto, Table::Auto, Dscp::Inherit, OnStop::Block));
    assert_eq!((i.suite, i.rekey_interval), (Suite::ChaCha20Poly1305, Duration::from_secs(60)));
    assert_eq!(i.metrics_listen.unwrap().to_string(), "127.0.0.1:9790");

    let kms = config.kms.as_ref().unwrap();
    assert_eq!((kms.sae_id.as_str(), kms.stock), ("SITE-A", 5));
    let (a1, a2) = (&kms.kmes[0], &kms.kmes[1]);
    assert_eq!((a1.name.as_str(), a1.api(), a1.sae_id.as_str()), ("kme-a1", KmeApi::Etsi014, "SITE-A-GW"));
    assert_eq!(a1.url(), "https://kme-a1.site-a.example:8443");
    let server = a1.server().unwrap();
    assert_eq!(server.server_name.as_deref(), Some("kme-a1"));
    assert_eq!(server.cert_file, PathBuf::from("/etc/qvpn/kms/site-a.pem"));
    assert_eq!((a2.sae_id.as_str(), a2.server().unwrap().server_name.as_deref()), ("SITE-A", None));

    let b = &config.peers[0];
    assert_eq!((b.name.as_str(), b.qkd, b.role), ("site-b", QkdPolicy::Required, Role::Initiator));
    assert_eq!(b.endpoint.as_ref().unwrap().to_string(), "203.0.113.9:51820");
    assert_eq!((b.suite, b.rekey_interval), (Suite::Aes256Gcm, Duration::from_millis(100)));
    assert_eq!(config.min_rekey_interval(b), Duration::from_millis(100));
    assert_eq!(b.persistent_keepalive, Some(Duration::from_secs(25)));
    let names: Vec<_> = config.kmes_of(b).iter().map(|k| k.name.clone()).collect();
    assert_eq!(names, ["kme-a2", "kme-a1"]);

    let c = &config.peers[1];
    assert_eq!((c.name.as_str(), c.qkd, c.role, &c.endpoint), ("büro-c", QkdPolicy::Off, Role::Auto, &None));
    assert_eq!((c.suite, c.rekey_interval), (Suite::ChaCha20Poly1305, Duration::from_secs(60)));
    assert_eq!(config.min_rekey_interval(c), Duration::from_secs(6), "a tenth");
    let with = EXAMPLE.replace("rekey_interval = \"60s\"", "min_rekey_interval = \"30s\"");
    let config = parse(&with);
    assert!(config.peers.iter().all(|peer| config.min_rekey_interval(peer) == Duration::from_secs(30)));
    assert_eq!((&c.sae_id, c.kmes.len(), c.persistent_keepalive), (&None, 0, None));
    assert_eq!(c.allowed_ips[2].to_string(), "192.0.2.7/32");

    assert_eq!(config.peer("site-b").unwrap().name, "site-b");
    assert_eq!(config.peer(&c.public_key.to_string()).unwrap().name, "büro-c");
    assert!(config.peer("site").is_none());
}

#[test]
fn other_key_sources_are_read() {
    let https = "url = \"https://kp:8443\"\nca_file = \"ca\"\ncert_file = \"c\"\nkey_file = \"k\"\n";
    let config = parse(&format!(
        "[interface]\n[kms]\nsae_id = \"KP-A\"\n[[kms.kme]]\nname = \"kp\"\napi = \"skip\"\n{https}\
         [[kms.kme]]\nname = \"disk\"\napi = \"file\"\nkeys_file = \"/srv/b.keys\"\n"
    ));
    let kmes = config.kms.unwrap().kmes;
    assert_eq!((kmes[0].api(), kmes[0].url().as_str()), (KmeApi::Skip, "https://kp:8443"));
    assert_eq!(kmes[1].access, KmeAccess::File("/srv/b.keys".into()));
    assert_eq!((kmes[1].api(), kmes[1].url().as_str()), (KmeApi::File, "file:/srv/b.keys"));
}

#[test]
fn key_streams_are_read() {
    let files = "ca_file = \"ca\"\ncert_file = \"c\"\nkey_file = \"k\"\n";
    let config = parse(&format!(
        "[interface]\n[kms]\nsae_id = \"A\"\n[[kms.kme]]\nname = \"s1\"\napi = \"etsi004\"\n\
         url = \"tls://10.0.0.9:443/\"\n{files}\
         [[kms.kme]]\nname = \"s2\"\napi = \"etsi004\"\nurl = \"tls://kme\"\ndialect = \"c\"\n\
         link = \"fibre-2\"\n{files}"
    ));
    let kmes = config.kms.unwrap().kmes;
    assert_eq!((kmes[0].api(), kmes[0].url().as_str()), (KmeApi::Etsi004, "tls://10.0.0.9:443"));
    let options = |i: usize| match &kmes[i].access {
        KmeAccess::Etsi004(_, options) => (options.dialect, options.link.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(options(0), (Dialect::Auto, None));
    assert_eq!(options(1), (Dialect::C, Some("fibre-2".to_owned())));
}

#[test]
fn an_empty_interface_has_all_defaults() {
    let config = Config::parse(Path::new("conf/wan1.toml"), "[interface]\n").unwrap();
    let i = &config.interface;
    assert_eq!((i.name.as_str(), i.listen_port, i.lanes, i.dscp), ("wan1", 51820, 1, Dscp::Value(0)));
    assert_eq!(i.private_key_file, PathBuf::from("conf/wan1.key"));
    assert!(i.address.is_empty() && config.kms.is_none() && config.peers.is_empty());
    assert_eq!((i.mtu, i.table, i.metrics_listen), (Mtu::Auto, Table::Auto, None));
}

#[test]
fn values_at_their_limits_are_taken() {
    let rows = [
        "mtu = 576",
        "mtu = 65455",
        "rekey_interval = \"100ms\"",
        "rekey_interval = \"2m\"",
        "lanes = 16\nlisten_port = 65520",
        "table = 254",
        "table = 1",
        "table = \"off\"",
        "fwmark = 0xffff_ffff",
        "dscp = 63",
        "name = \"abcdefghijklmno\"",
        "metrics_listen = \"[::1]:9790\"",
        "on_stop = \"open\"",
        "protect = [\"10.64.0.0/10\", \"::/0\"]\nlocal = [{ prefix = \"10.70.0.0/16\", device = \"eth1\" }]",
        "local = \"connected\"",
        "mtu = 1280\naddress = [\"fd77::1/64\"]",
    ];
    for row in rows {
        parse(&format!("[interface]\n{row}\n"));
    }
}

#[test]
fn default_routes_and_tunnels_in_tunnels_are_no_loop() {
    let peers = |b: &str, c: &str| {
        let keys: Vec<_> = EXAMPLE.lines().filter(|l| l.starts_with("public_key")).collect();
        format!(
            "[interface]\n[[peer]]\nname = \"b\"\nqkd = \"off\"\n{}\n{b}\n[[peer]]\nname = \"c\"\nqkd = \
             \"off\"\n{}\n{c}\n",
            keys[0], keys[1]
        )
    };
    let b = "endpoint = \"203.0.113.9:1\"\nallowed_ips = [\"0.0.0.0/0\", \"::/0\"]";
    parse(&peers(b, "endpoint = \"10.1.2.3:1\"\nallowed_ips = [\"10.9.0.0/16\"]"));
    // Site c is reached through the tunnel to b and needs no route of its own.
    let b = "endpoint = \"203.0.113.9:1\"\nallowed_ips = [\"10.20.0.0/16\"]";
    parse(&peers(b, "endpoint = \"10.20.0.9:1\"\nallowed_ips = [\"10.30.0.0/16\"]"));
}

#[test]
fn under_kernel_routes_allowed_ips_overlap_and_each_peer_has_a_link_local_next_hop() {
    let keys: Vec<_> = EXAMPLE.lines().filter(|l| l.starts_with("public_key")).collect();
    let peer = |name: &str, key: &str, address: &str| {
        format!(
            "[[peer]]\nname = \"{name}\"\nqkd = \"off\"\nallowed_ips = [\"10.0.0.0/8\"]\n{key}\n\
             tunnel_address = [{address}]\n"
        )
    };
    let config = parse(&format!(
        "[interface]\naddress = [\"10.77.0.1/24\"]\nroutes = \"kernel\"\nroutes_table = 100\n{}{}",
        peer("b", keys[0], "\"10.77.0.2\""),
        peer("c", keys[1], "\"10.77.0.3\", \"fe80::3\"")
    ));
    assert_eq!((config.interface.routes, config.interface.routes_table), (Routes::Kernel, 100));
    let [b, c] = &config.peers[..] else { panic!("{:?}", config.peers) };
    assert_eq!(b.next_hops(), ["10.77.0.2".parse::<IpAddr>().unwrap(), b.public_key.link_local().into()]);
    assert_eq!(c.next_hops(), c.tunnel_address, "its own link-local address counts alone");
    let ours = config.interface.device_addresses(&c.public_key);
    assert_eq!(ours[1].to_string(), format!("{}/64", c.public_key.link_local()));
    let main = parse("[interface]\nroutes = \"kernel\"\naddress = [\"fe80::1/64\"]\n").interface;
    assert_eq!((main.routes_table, main.device_addresses(&b.public_key).len()), (254, 1));
    let still = parse("[interface]\naddress = [\"10.77.0.1/24\"]\n").interface;
    assert_eq!(
        (still.routes, still.device_addresses(&b.public_key)),
        (Routes::Config, still.address.clone())
    );
}

#[test]
fn a_thousand_peers_are_read() {
    let mut text = String::from("[interface]\n");
    for i in 0..1000u32 {
        let (hi, lo) = (i / 250, i % 250);
        text += &format!("[[peer]]\nname = \"p{i}\"\nqkd = \"off\"\npublic_key = \"{}\"\n", key_of(i));
        text += &format!("endpoint = \"198.51.{hi}.{lo}:51820\"\nallowed_ips = [\"10.{hi}.{lo}.0/24\"]\n");
    }
    assert_eq!(parse(&text).peers.len(), 1000);
}

/// Returns a public key that differs for each `i` and whose X25519 half is not a point of small order.
fn key_of(i: u32) -> String {
    let base = EXAMPLE.lines().find(|l| l.starts_with("public_key")).unwrap();
    let base = base.split('"').nth(1).unwrap();
    let digit = |n: u32| char::from(b'A' + u8::try_from(n % 26).unwrap());
    let tail: String = [i, i / 26, i / 676].map(digit).iter().collect();
    format!("{}{tail}{}", &base[..10], &base[13..])
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*") {
        let _ = Config::parse(Path::new(PATH), &text);
    }

    #[test]
    fn any_config_like_text_is_read_or_refused(lines in prop::collection::vec(
        "(\\[interface\\]|\\[kms\\]|\\[\\[kms.kme\\]\\]|\\[\\[peer\\]\\]\
         |(name|mtu|lanes|table|address|url|endpoint|allowed_ips|qkd|kmes|dscp|rekey_interval|public_key)\
         \x20= (\"[a-z0-9:/.\\[\\]%-]{0,12}\"|-?[0-9]{1,30}\
         |\\[\"[0-9./:a-f]{0,12}\"\\]|1.5|true|\\{ a = 1 \\}))",
        0..30,
    )) {
        let _ = Config::parse(Path::new(PATH), &lines.join("\n"));
    }

    #[test]
    fn a_mutated_example_is_read_or_refused_with_a_place(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), "[ -~\\n\"=\\[\\]é]{0,3}"), 1..6),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, with) in cuts {
            let mut at = at.index(text.len());
            while !text.is_char_boundary(at) { at -= 1; }
            let end = (at + 1..=text.len()).find(|e| text.is_char_boundary(*e)).unwrap_or(at);
            text.replace_range(at..end, &with);
        }
        if let Err(errors) = Config::parse(Path::new(PATH), &text) {
            let lines = text.lines().count() + 1;
            for error in errors.list() {
                let place = error.position.unwrap();
                prop_assert!(place.line >= 1 && place.line <= lines && place.column >= 1, "{error}");
                prop_assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

#[test]
fn a_credential_is_where_systemd_puts_it() {
    let text = EXAMPLE.replace("\"/etc/qvpn/qvpn0.key\"", "\"credential:qvpn0.key\"");
    let told = PathBuf::from("/run/credentials/qvpn@qvpn0.service/qvpn0.key");
    assert_eq!(parse(&text).interface.private_key_file, told);
    for bad in ["credential:", "credential:../x", "credential:a/b", "credential:.."] {
        let text = EXAMPLE.replace("/etc/qvpn/qvpn0.key", bad);
        let error = Config::parse(Path::new(PATH), &text).unwrap_err().to_string();
        assert!(error.contains("doesn't name a credential of systemd"), "{bad}: {error}");
    }
}

#[test]
fn the_section_access_names_users_and_groups() {
    let config = parse("[interface]\n[access]\nobserve = [\"@monitoring\", \"bob\"]\nadmin = [\"alice\"]\n");
    let access = config.access.unwrap();
    let named: Vec<_> = access.principals().map(|(permission, who)| format!("{permission} {who}")).collect();
    assert_eq!(named, ["observe @monitoring", "observe bob", "admin alice"]);
    assert!(access.operate.is_empty());
    assert_eq!(parse("[interface]\n").access, None);
    let unknown =
        parse("[interface]\n[access]\noperate = [\"root\", \"@no-such-group\", \"no-such-user\"]\n");
    let errors = unknown.check_access().unwrap_err().to_string();
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 2, "{errors}");
    assert!(
        lines[0].starts_with("/etc/qvpn/qvpn0.toml:3:20: this machine has no group \"no-such-group\"; "),
        "{errors}"
    );
    assert!(
        lines[1].contains("no user \"no-such-user\"; write a user of `getent passwd`, or \"@no-such-user\""),
        "{errors}"
    );
}
