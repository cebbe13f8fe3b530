//! What the grammar refuses: each row has the position, what is wrong and what to write instead. `¦` marks
//! where an error must point, so a row without the error at exactly that position fails.

use std::path::Path;

use qvpn_api::Config;

const KEY_B: &str = "qvpn1-UqPFxf26QCxGqk1wiKfZx0Kxb+3jT49b63iPWVAbF2tw2xyJrx7OgoU1cpBp\
    GXHe9rN17iNWKKSWARmubkuEbr6oe40Wmjg9EhJguZfDLJo=";
const KEY_C: &str = "qvpn1-yVYf4yxjlE8ykREQ4U3CENFcTDQC+CoF8cXIM0FyIWtT0E3wvsanrVPx1w9K\
    Pvy6yTRNwocscb0t5hWBs1JxwxOAwwqdOM773u3+0lOAwzo=";
/// `KEY_B` with another ML-KEM half.
const KEY_B2: &str = "qvpn1-UqPFxf26QCxGqk1wiKfZx0Kxb+3jT49b63iPWVAbF2tw2xyJrx7OgoU1cpBp\
    GXHe9rN17iNWKKSWARmubkuEbr6oe40Wmjg9EhJguZfAAAA=";
const FILES: &str = "ca_file = \"ca.pem\"\ncert_file = \"c.pem\"\nkey_file = \"c.key\"\n";

/// Parses `text` without its marks, and expects the errors `expected`, one at each mark, in this order.
fn refused(path: &str, text: &str, expected: &[&str]) {
    let text = text
        .replace("KEY_B2", KEY_B2)
        .replace("KEY_B", KEY_B)
        .replace("KEY_C", KEY_C)
        .replace("FILES", FILES)
        .replace("KME1", &format!("[[kms.kme]]\nname = \"kme-a1\"\nurl = \"https://kme-a1:8443\"\n{FILES}"))
        .replace("OFF", "qkd = \"off\"");
    let mut places = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (earlier, (at, _)) in line.match_indices('¦').enumerate() {
            places.push((number + 1, line[..at].chars().count() + 1 - earlier));
        }
    }
    assert_eq!(places.len(), expected.len(), "marks and errors of a row must match:\n{text}");
    let clean = text.replace('¦', "");
    let errors = match Config::parse(Path::new(path), &clean) {
        Ok(_) => panic!("this was taken, but should give {expected:?}:\n{clean}"),
        Err(errors) => errors.to_string(),
    };
    let expected: Vec<String> =
        places.iter().zip(expected).map(|((l, c), e)| format!("{path}:{l}:{c}: {e}")).collect();
    assert_eq!(errors, expected.join("\n"), "for\n{clean}");
}

/// Checks one error for each row, inside `[interface]`.
fn interface_rows(rows: &[(&str, &str)]) {
    for (line, error) in rows {
        refused("/etc/qvpn/qvpn0.toml", &format!("[interface]\n{line}\n"), &[error]);
    }
}

/// Checks one error for each row, inside a peer that is otherwise valid and has no QKD.
fn peer_rows(rows: &[(&str, &str)]) {
    for (line, error) in rows {
        let peer = "[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = [\"10.20.0.0/16\"]";
        refused("/etc/qvpn/qvpn0.toml", &format!("[interface]\nlanes = 4\n{peer}\n{line}\n"), &[error]);
    }
}

/// Checks the errors in a whole file.
fn file_rows(rows: &[(&str, &[&str])]) {
    for (text, errors) in rows {
        refused("/etc/qvpn/qvpn0.toml", text, errors);
    }
}

#[test]
fn unknown_keys_and_sections() {
    interface_rows(&[
        ("¦listen_prt = 1", "[interface] has no key `listen_prt`; did you mean `listen_port`?"),
        ("¦ListenPort = 1", "[interface] has no key `ListenPort`; did you mean `listen_port`?"),
        ("¦adress = []", "[interface] has no key `adress`; did you mean `address`?"),
        ("¦allowed_ips = []", "[interface] has no key `allowed_ips`; `allowed_ips` belongs in [[peer]]"),
        (
            "¦PrivateKey = \"x\"",
            "[interface] has no key `PrivateKey`; `PrivateKey` belongs in a file that `private_key_file` \
             in [interface] names",
        ),
        (
            "¦colour = 1",
            "[interface] has no key `colour`; its keys are `name`, `private_key_file`, `lanes`, \
             `listen_port`, `address`, `mtu`, `suite`, `rekey_interval`, `min_rekey_interval`, `liveness`, \
             `table`, `fwmark`, `dscp`, `on_stop`, `protect`, `local`, `routes`, `routes_table`, \
             `metrics_listen`, `log_level`, `include`",
        ),
        (
            "  ¦x = 1",
            "[interface] has no key `x`; its keys are `name`, `private_key_file`, `lanes`, `listen_port`, \
             `address`, `mtu`, `suite`, `rekey_interval`, `min_rekey_interval`, `liveness`, \
             `table`, `fwmark`, `dscp`, `on_stop`, `protect`, `local`, `routes`, `routes_table`, \
             `metrics_listen`, `log_level`, `include`",
        ),
    ]);
    peer_rows(&[
        ("¦endpiont = \"x:1\"", "[[peer]] \"b\" has no key `endpiont`; did you mean `endpoint`?"),
        ("¦listen_port = 1", "[[peer]] \"b\" has no key `listen_port`; `listen_port` belongs in [interface]"),
    ]);
    file_rows(&[
        ("[interface]\n[¦peers]\n", &["a config has no key `peers`; did you mean `peer`?"]),
        (
            "¦listen_port = 1\n[interface]\n",
            &["a config has no key `listen_port`; `listen_port` belongs in [interface]"],
        ),
        (
            "¦[[interface]]\n",
            &["[interface] must be one section; write `[interface]` on a line of its own, once"],
        ),
        (
            "[interface]\n¦[peer]\nname = \"b\"\n",
            &["[[peer]] must have two brackets on each side, since there can be several; write `[[peer]]`"],
        ),
        ("¦", &["there is no section [interface]; write `[interface]` and its keys"]),
        ("¦# only a comment\n", &["there is no section [interface]; write `[interface]` and its keys"]),
    ]);
}

#[test]
fn wrong_types() {
    interface_rows(&[
        (
            "listen_port = ¦\"51820\"",
            "`listen_port` must be a number, but this is a string; write `listen_port = 51820`",
        ),
        (
            "lanes = ¦1.5",
            "`lanes` must be a number, but this is a number with a fraction; write `lanes = \
         1`",
        ),
        (
            "address = ¦\"10.0.0.1/8\"",
            "`address` must be a list of strings, but this is a string; write `address = \
             [\"10.77.0.1/30\"]`",
        ),
        (
            "address = [¦7]",
            "`address` must be a list of strings, but this is a number; write `address = \
             [\"10.77.0.1/30\"]`",
        ),
        (
            "name = ¦true",
            "`name` must be a string in quotes, but this is true or false; write `name = \"qvpn0\"`",
        ),
        (
            "suite = ¦1979-05-27",
            "`suite` must be a string in quotes, but this is a date; write `suite = \"chacha20poly1305\"`",
        ),
        ("mtu = ¦[]", "`mtu` must be a number, but this is a list; write `mtu = 1420`"),
        ("table = ¦{}", "`table` must be a number, but this is a section; write `table = \"auto\"`"),
        (
            "rekey_interval = ¦60",
            "the duration `rekey_interval` has no unit; write `rekey_interval = \"60s\"` for seconds",
        ),
        (
            "rekey_interval = ¦true",
            "`rekey_interval` must be a string in quotes, but this is true or false; write \
             `rekey_interval = \"60s\"`",
        ),
    ]);
}

#[test]
fn values_of_the_interface() {
    interface_rows(&[
        (
            "name = ¦\"\"",
            "\"\" has 0 bytes, and the name of a network device has 1 to 15; write for example \"qvpn0\"",
        ),
        (
            "name = ¦\"abcdefghijklmnop\"",
            "\"abcdefghijklmnop\" has 16 bytes, and the name of a network device has 1 to 15; write for \
             example \"qvpn0\"",
        ),
        ("name = ¦\"a/b\"", "the name of a network device can't hold '/'; write for example \"qvpn0\""),
        ("name = ¦\"a b\"", "the name of a network device can't hold ' '; write for example \"qvpn0\""),
        ("name = ¦\"..\"", "\"..\" can't be the name of a network device; write for example \"qvpn0\""),
        (
            "private_key_file = ¦\"\"",
            "`private_key_file` is not a file name; write a path such as \"/etc/qvpn/…\"",
        ),
        (
            "listen_port = ¦0",
            "`listen_port` must be from 1 to 65535, but this is 0; write for example `listen_port = 51820`",
        ),
        (
            "listen_port = ¦65536",
            "`listen_port` must be from 1 to 65535, but this is 65536; write for example `listen_port = \
             51820`",
        ),
        (
            "listen_port = ¦65535\nlanes = 2",
            "listen_port 65535 leaves no room for 2 lanes, which use one port each; write `listen_port = \
             65534` or less",
        ),
        ("lanes = ¦0", "`lanes` must be from 1 to 16, but this is 0; write for example `lanes = 1`"),
        ("lanes = ¦17", "`lanes` must be from 1 to 16, but this is 17; write for example `lanes = 1`"),
        ("lanes = ¦-1", "`lanes` must be from 1 to 16, but this is -1; write for example `lanes = 1`"),
        (
            "address = [¦\"10.0.0.1/33\"]",
            "\"10.0.0.1/33\" is not an address with a prefix length; write a prefix length from 0 to 32 \
             after the slash: \"10.0.0.1/32\" is one host",
        ),
        (
            "address = [\"10.0.0.1/30\", ¦\"ten\"]",
            "\"ten\" is not an address with a prefix length; write for example \"10.20.0.0/16\" or \
             \"fd20::/64\"",
        ),
        (
            "address = [¦\"0.0.0.0/0\"]",
            "0.0.0.0 is not the address of one host; write this gateway's own address, for example \
             \"10.77.0.1/30\"",
        ),
        ("address = [\"10.0.0.1/30\", ¦\"10.0.0.1/30\"]", "10.0.0.1/30 is here twice; remove one of them"),
        ("mtu = ¦575", "`mtu` must be from 576 to 65455, but this is 575; write for example `mtu = 1420`"),
        (
            "mtu = ¦65456",
            "`mtu` must be from 576 to 65455, but this is 65456; write for example `mtu = 1420`",
        ),
        ("mtu = ¦\"big\"", "`mtu` is \"auto\" or a number; write `mtu = \"auto\"` or `mtu = 1420`"),
        (
            "mtu = ¦1279\naddress = [\"fd77::1/64\"]",
            "an MTU of 1279 is too small for IPv6, which fd77::1/64 brings (RFC 8200 section 5); write \
             `mtu = 1280` or more, or \"auto\"",
        ),
        ("suite = ¦\"aes256\"", "`suite` can't be \"aes256\"; did you mean \"aes256gcm\"?"),
        ("suite = ¦\"des\"", "`suite` can't be \"des\"; write \"chacha20poly1305\" or \"aes256gcm\""),
        (
            "rekey_interval = ¦\"99ms\"",
            "\"99ms\" is out of range; write a duration from \"100ms\" to \"120s\"",
        ),
        (
            "rekey_interval = ¦\"121s\"",
            "\"121s\" is out of range; write a duration from \"100ms\" to \"120s\"",
        ),
        ("rekey_interval = ¦\"3m\"", "\"3m\" is out of range; write a duration from \"100ms\" to \"120s\""),
        ("rekey_interval = ¦\"60\"", "the duration \"60\" has no unit; write \"60s\" for seconds"),
        (
            "rekey_interval = ¦\"1h\"",
            "\"1h\" is not a duration; write a whole number and ms, s or m, from \"100ms\" to \"120s\"",
        ),
        (
            "rekey_interval = ¦\"\"",
            "\"\" is not a duration; write a whole number and ms, s or m, from \"100ms\" to \"120s\"",
        ),
        (
            "rekey_interval = ¦\"99999999999999999999s\"",
            "\"99999999999999999999s\" is out of range; write a duration from \"100ms\" to \"120s\"",
        ),
        ("table = ¦\"of\"", "`table` can't be \"of\"; did you mean \"off\"?"),
        (
            "table = ¦\"51820\"",
            "`table` can't be \"51820\"; write \"auto\", \"off\" or \"a number without quotes\"",
        ),
        (
            "table = ¦255",
            "routing table 255 belongs to the kernel; write \"auto\", \"off\", 254 for the main table, or \
             another number",
        ),
        (
            "fwmark = ¦4294967296",
            "`fwmark` must be from 0 to 4294967295, but this is 4294967296; write for example `fwmark = 0`",
        ),
        ("dscp = ¦64", "`dscp` must be from 0 to 63, but this is 64; write for example `dscp = 0`"),
        (
            "dscp = ¦\"ef\"",
            "`dscp` is \"inherit\" or a number from 0 to 63; write `dscp = \"inherit\"` or a number such \
             as `dscp = 46`",
        ),
        ("on_stop = ¦\"close\"", "`on_stop` can't be \"close\"; write \"block\" or \"open\""),
        (
            "protect = ¦\"10.0.0.0/8\"",
            "`protect` must be a list of strings, but this is a string; write `protect = [\"10.64.0.0/10\"]`",
        ),
        (
            "protect = [\"10.0.0.0/8\", ¦\"10.0.0.1/8\"]",
            "\"10.0.0.1/8\" has bits set after its prefix length; write \"10.0.0.0/8\" for the network, or \
             \"10.0.0.1/32\" for the one host",
        ),
        ("protect = [\"10.0.0.0/8\", ¦\"10.0.0.0/8\"]", "10.0.0.0/8 stands here twice; take one of them out"),
        (
            "local = [¦\"10.10.0.0/16\"]",
            "`local` must be a list of `{ … }`, but this is a string; write \
             `local = [{ prefix = \"10.10.0.0/16\", device = \"eth1\" }]`",
        ),
        (
            "local = [¦{ prefix = \"10.10.0.0/16\" }]",
            "an entry of `local` needs `device`; write `device = \"eth1\"`",
        ),
        (
            "metrics_listen = ¦\"9790\"",
            "\"9790\" is not an address and a port; write for example `metrics_listen = \"127.0.0.1:9790\"`",
        ),
        (
            "metrics_listen = ¦\"localhost:9790\"",
            "\"localhost:9790\" is not an address and a port; write for example `metrics_listen = \
             \"127.0.0.1:9790\"`",
        ),
    ]);
    refused(
        "/etc/qvpn/much-too-long-a-name.toml",
        "¦[interface]\n",
        &["the interface takes its name from the file, and \"much-too-long-a-name\" has 20 bytes, and \
             the name of a network device has 1 to 15; write `name = \"qvpn0\"`, or give the file another \
             name"],
    );
}

#[test]
fn values_of_a_peer() {
    const EXAMPLES: &str =
        "write \"203.0.113.9:51820\", \"[2001:db8::9]:51820\" or \"gateway.example:51820\"";
    let rows: Vec<(&str, String)> = vec![
        ("endpoint = ¦\"203.0.113.9\"", format!("the endpoint \"203.0.113.9\" has no port; {EXAMPLES}")),
        (
            "endpoint = ¦\"2001:db8::9\"",
            "the endpoint \"2001:db8::9\" has no port, or its address no \
         brackets; write \"[2001:db8::9]:51820\""
                .into(),
        ),
        (
            "endpoint = ¦\"2001:db8::zz:51820\"",
            format!(
                "the IPv6 address in \"2001:db8::zz:51820\" needs \
         brackets; {EXAMPLES}"
            ),
        ),
        ("endpoint = ¦\"[::zz]:51820\"", format!("\"[::zz]\" is not an IPv6 address; {EXAMPLES}")),
        ("endpoint = ¦\"gw:0\"", "\"0\" is not a UDP port; write a port from 1 to 65535".into()),
        ("endpoint = ¦\"gw:70000\"", "\"70000\" is not a UDP port; write a port from 1 to 65535".into()),
        ("endpoint = ¦\"gw:+5\"", "\"+5\" is not a UDP port; write a port from 1 to 65535".into()),
        (
            "endpoint = ¦\"gw:65533\"",
            "port 65533 leaves no room for 4 lanes, which use one port each; \
         write a port of at most 65532"
                .into(),
        ),
        (
            "endpoint = ¦\"300.1.1.1:5\"",
            format!(
                "\"300.1.1.1\" is neither an address nor a host name; \
         {EXAMPLES}"
            ),
        ),
        ("endpoint = ¦\"a b:5\"", format!("\"a b\" is neither an address nor a host name; {EXAMPLES}")),
        ("endpoint = ¦\"0.0.0.0:5\"", format!("0.0.0.0 is not the address of one host; {EXAMPLES}")),
        (
            "role = ¦\"master\"",
            "`role` can't be \"master\"; write \"auto\", \"initiator\" or \
         \"responder\""
                .into(),
        ),
        ("role = ¦\"initator\"", "`role` can't be \"initator\"; did you mean \"initiator\"?".into()),
        (
            "persistent_keepalive = ¦25",
            "the duration `persistent_keepalive` has no unit; write \
         `persistent_keepalive = \"25s\"` for seconds"
                .into(),
        ),
        (
            "persistent_keepalive = ¦\"0s\"",
            "\"0s\" is out of range; write a duration from \"1s\" to \
         \"65535s\""
                .into(),
        ),
        (
            "suite = ¦\"null\"",
            "`suite` can't be \"null\"; write \"chacha20poly1305\" or \
         \"aes256gcm\""
                .into(),
        ),
        (
            "rekey_interval = ¦\"1ms\"",
            "\"1ms\" is out of range; write a duration from \"100ms\" to \
         \"120s\""
                .into(),
        ),
        (
            "kmes = [¦\"kme-a1\"]",
            "there is no KME \"kme-a1\", since there is no section [kms]; write a \
         section [kms] with this site's KMEs, or remove `kmes`"
                .into(),
        ),
    ];
    let rows: Vec<(&str, &str)> = rows.iter().map(|(line, error)| (*line, error.as_str())).collect();
    peer_rows(&rows);
    let name = |name: &str| {
        format!("[interface]\n[[peer]]\nname = ¦{name:?}\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = []\n")
    };
    let long = "x".repeat(65);
    let fix = "write a short name such as \"site-b\"";
    for (text, what) in [
        ("", "a name has 1 to 64 characters"),
        (long.as_str(), "a name has 1 to 64 characters"),
        ("site b", "a name can't hold ' '"),
        ("a\u{202e}b", "a name can't hold '\\u{202e}'"),
        ("qvpn1-x", "a name that begins with `qvpn1-` looks like a key"),
        ("-b", "a name that begins with `-` looks like an option"),
    ] {
        let text = name(text).replace("\\u{202e}", "\\u202e");
        refused("/etc/qvpn/qvpn0.toml", &text, &[&format!("{what}; {fix}")]);
    }
}

#[test]
fn keys_that_a_peer_needs() {
    file_rows(&[
        (
            "[interface]\n¦¦¦[[peer]]\nOFF\n",
            &[
                "[[peer]] needs `name`; write `name = \"site-b\"`",
                "[[peer]] needs `public_key`; write `public_key = \"qvpn1-…\"`",
                "[[peer]] needs `allowed_ips`; write `allowed_ips = [\"10.20.0.0/16\"]`",
            ],
        ),
        (
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = ¦\"qvpn1-short\"\nallowed_ips = []\nOFF\n",
            &["a public key has 114 characters, this has 11; copy the whole line"],
        ),
        (
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \
             ¦\"eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg=\"\nallowed_ips = []\nOFF\n",
            &["expected a public key, but this is a WireGuard key; qvpn's keys hold an ML-KEM key too: \
                 make one with `qvpn-ctl genkey` and `qvpn-ctl pubkey`"],
        ),
    ]);
}

#[test]
fn prefixes() {
    file_rows(&[
        (
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = \
             [¦\"10.20.0.1/16\", ¦\"fd20::1/64\"]\n",
            &[
                "\"10.20.0.1/16\" has bits set after its prefix length; write \"10.20.0.0/16\" for the \
                 network, or \"10.20.0.1/32\" for the one host",
                "\"fd20::1/64\" has bits set after its prefix length; write \"fd20::/64\" for the \
                 network, or \"fd20::1/128\" for the one host",
            ],
        ),
        (
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = \
             [\"10.0.0.0/8\", ¦\"10.0.0.0/8\"]\n",
            &["10.0.0.0/8 is here twice; remove one of them"],
        ),
        (
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = \
             [\"10.0.0.0/8\"]\n[[peer]]\nname = \"c\"\npublic_key = \"KEY_C\"\nOFF\nallowed_ips = \
             [\"10.1.0.0/16\", ¦\"10.0.0.0/8\"]\n",
            &["10.0.0.0/8 belongs to peer \"b\" already (line 6); a prefix leads to one peer: remove it \
                 from one of them, write a longer prefix here, or let routes choose, with `routes = \
                 \"kernel\"`"],
        ),
        (
            "[interface]\nmtu = ¦600\n[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = \
             [\"::/0\"]\n",
            &["an MTU of 600 is too small for IPv6, which ::/0 brings (RFC 8200 section 5); write `mtu \
                 = 1280` or more, or \"auto\""],
        ),
    ]);
}

#[test]
fn what_stands_twice() {
    file_rows(&[
        (
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = \
             []\n[[peer]]\nname = ¦\"b\"\npublic_key = ¦\"KEY_B\"\nOFF\nallowed_ips = []\n",
            &[
                "a peer named \"b\" is in line 3 already; give one of them another name",
                "this public key is in line 4 already; write this peer's own key, or merge the two sections",
            ],
        ),
        (
            "[interface]\n[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nOFF\nallowed_ips = \
             []\n[[peer]]\nname = \"c\"\npublic_key = ¦\"KEY_B2\"\nOFF\nallowed_ips = []\n",
            &["this key has the same X25519 half as the one in line 4; compare `qvpn-ctl fingerprint` \
                 at both sites; one of the keys was tampered with"],
        ),
        (
            "[interface]\n[kms]\nsae_id = \"A\"\nKME1\n[[kms.kme]]\nname = ¦\"kme-a1\"\nurl = \
             \"https://two\"\nFILES\n",
            &["a KME named \"kme-a1\" is in line 5 already; give one of them another name"],
        ),
        (
            "[interface]\nlanes = 1\n¦lanes = 2\n",
            &["this is not TOML: duplicate key; keep one of the \
         lines"],
        ),
    ]);
}

#[test]
fn the_key_supply() {
    const PEER: &str = "[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nallowed_ips = []\n";
    let kms = format!("[interface]\n[kms]\nsae_id = \"SITE-A\"\nKME1\n{PEER}");
    let rows: Vec<(String, Vec<&str>)> = vec![
        (
            format!("[interface]\n¦{PEER}"),
            vec![
                "[[peer]] \"b\" wants QKD keys (qkd = \"required\" is the default), and there is no \
                 section [kms]; write a section [kms] with this site's KMEs, or `qkd = \"off\"` for a \
                 peer without QKD",
            ],
        ),
        (
            format!("[interface]\n{PEER}qkd = ¦\"preferred\"\n"),
            vec![
                "[[peer]] \"b\" wants QKD keys, and there is no section [kms]; write a section [kms] with \
                 this site's KMEs, or `qkd = \"off\"` for a peer without QKD",
            ],
        ),
        (
            format!("[interface]\n{PEER}qkd = ¦\"of\"\n"),
            vec![
                "`qkd` can't be \"of\"; did you mean \
         \"off\"?",
            ],
        ),
        (
            kms.replace("[[peer]]", "¦[[peer]]"),
            vec!["[[peer]] \"b\" needs `sae_id`; write `sae_id = \"SITE-B\"`"],
        ),
        (
            format!("{kms}sae_id = ¦\"SITE-A\"\n"),
            vec!["the peer's sae_id \"SITE-A\" is our own, from [kms]; write the SAE ID of the other site"],
        ),
        (
            format!("{kms}sae_id = ¦\"\"\n"),
            vec!["an SAE ID has 1 to 255 bytes; write the ID that the KME knows, as in the certificate"],
        ),
        (
            format!("{kms}sae_id = \"SITE-B\"\nkmes = [¦\"kme-a2\"]\n"),
            vec!["there is no KME \"kme-a2\" in [kms]; did you mean \"kme-a1\"?"],
        ),
        (
            format!("{kms}sae_id = \"SITE-B\"\nkmes = [¦\"other\"]\n"),
            vec!["there is no KME \"other\" in [kms]; write \"kme-a1\""],
        ),
        (
            format!("{kms}sae_id = \"SITE-B\"\nkmes = [\"kme-a1\", ¦\"kme-a1\"]\n"),
            vec!["KME \"kme-a1\" is here twice; remove one of them"],
        ),
        (
            format!("{kms}sae_id = \"SITE-B\"\nkmes = ¦[]\n"),
            vec![
                "`kmes` is empty, so the peer could get no QKD key; name a KME, remove the line to use \
                 all of them, or write `qkd = \"off\"`",
            ],
        ),
        (
            "[interface]\n¦¦[kms]\n".into(),
            vec![
                "[kms] needs `sae_id`; write `sae_id = \"SITE-A\"`",
                "[kms] names no KME; write a section `[[kms.kme]]` with name, url, ca_file, cert_file and \
                 key_file, or remove [kms]",
            ],
        ),
        (
            "[interface]\n[kms]\nsae_id = \"A\"\nstock = ¦0\nKME1".into(),
            vec!["`stock` must be from 1 to 100, but this is 0; write for example `stock = 5`"],
        ),
        (
            "[interface]\n[kms]\nsae_id = \"A\"\nkme = ¦\"kme-a1\"\n".into(),
            vec![
                "[[kms.kme]] must have two brackets on each side, since there can be several; write \
                 `[[kms.kme]]`",
            ],
        ),
    ];
    for (text, errors) in &rows {
        refused("/etc/qvpn/qvpn0.toml", text, errors);
    }
}

#[test]
fn values_of_a_kme() {
    const FIX: &str = "write for example \"https://kme-a1.site-a.example:8443\"";
    let rows: Vec<(&str, String)> = vec![
        ("url = ¦\"kme-a1\"", format!("\"kme-a1\" is not a URL (relative URL without a base); {FIX}")),
        (
            "url = ¦\"http://kme-a1:8080\"",
            "a KME is reached over https, and this URL begins with `http:`; \
         write \"https://kme-a1:8080\""
                .into(),
        ),
        (
            "url = ¦\"kme-a1:8443\"",
            format!(
                "a KME is reached over https, and this URL begins with \
         `kme-a1:`; {FIX}"
            ),
        ),
        (
            "url = ¦\"https://me:pw@kme\"",
            "this URL has a user name or password; leave it out: a KME \
         identifies us by our certificate"
                .into(),
        ),
        (
            "url = ¦\"https://kme/?x=1\"",
            "this URL has a query or a fragment; write only scheme, host, \
         port and, if needed, a path"
                .into(),
        ),
        (
            "url = ¦\"https://kme:8443/api/v1/keys/\"",
            "this URL names the path of the keys; write the part \
         before it: \"https://kme:8443\""
                .into(),
        ),
        (
            "url = \"https://k\"\napi = \"skip\"\nkeys_file = ¦\"k\"",
            "`keys_file` is for `api = \"file\"`; \
         write that, or remove the line; the key of our certificate is `key_file`"
                .into(),
        ),
        (
            "url = \"https://k\"\napi = ¦\"etsi014v2\"",
            "`api` can't be \"etsi014v2\"; did you mean \
         \"etsi014\"?"
                .into(),
        ),
        (
            "url = ¦\"https://k\"\napi = \"etsi004\"",
            "ETSI GS QKD 004 runs over TLS, and \"https://k\" doesn't begin with `tls://`; write for \
             example \"tls://kme-a1.site-a.example:25575\""
                .into(),
        ),
        (
            "url = ¦\"tls://k/api\"\napi = \"etsi004\"",
            "this URL has more than a host and a port; write for example \
             \"tls://kme-a1.site-a.example:25575\""
                .into(),
        ),
        (
            "url = \"tls://k\"\napi = \"etsi004\"\ndialect = ¦\"rust\"",
            "`dialect` can't be \"rust\"; write \"auto\", \"c\" or \"python\"".into(),
        ),
        (
            "url = \"https://k\"\nlink = ¦\"x\"",
            "`link` is for `api = \"etsi004\"`; write that, or remove the line".into(),
        ),
        (
            "url = \"https://k\"\nserver_name = ¦\"https://k\"",
            "\"https://k\" can't be the name in a \
         certificate; write a host name or an address, without scheme and port"
                .into(),
        ),
        (
            "url = \"https://k\"\nsae_id = ¦\"a\\u0000\"",
            "an SAE ID can't hold '\\0'; write the ID that \
         the KME knows"
                .into(),
        ),
    ];
    for (lines, error) in rows {
        let text = format!(
            "[interface]\n[kms]\nsae_id = \"A\"\n[[kms.kme]]\nname = \
         \"k\"\n{FILES}{lines}\n"
        );
        refused("/etc/qvpn/qvpn0.toml", &text, &[&error]);
    }
    file_rows(&[(
        "[interface]\n[kms]\nsae_id = \"A\"\n¦¦¦¦¦[[kms.kme]]\n",
        &[
            "[[kms.kme]] needs `name`; write `name = \"kme-a1\"`",
            "[[kms.kme]] needs `url`; write `url = \"https://kme-a1.site-a.example:8443\"`",
            "[[kms.kme]] needs `ca_file`; write `ca_file = \"/etc/qvpn/kms/ca.pem\"`",
            "[[kms.kme]] needs `cert_file`; write `cert_file = \"/etc/qvpn/kms/site-a.pem\"`",
            "[[kms.kme]] needs `key_file`; write `key_file = \"/etc/qvpn/kms/site-a.key\"`",
        ],
    )]);
}

#[test]
fn two_key_streams_of_a_peer_need_links() {
    let stream = |name: &str, more: &str| {
        format!("[[kms.kme]]\nname = \"{name}\"\napi = \"etsi004\"\nurl = \"tls://{name}\"\n{more}FILES")
    };
    let kms = "[interface]\n[kms]\nsae_id = \"A\"\n";
    let peer = "[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nsae_id = \"B\"\nallowed_ips = []\n";
    refused(
        "/etc/qvpn/qvpn0.toml",
        &format!("{kms}{}¦{}{peer}", stream("s", ""), stream("t", "")),
        &["peer \"b\" has two ETSI GS QKD 004 servers with no `link`, the other in line 4; write a \
           `link` into each, a name that both sites give the same link"],
    );
    refused(
        "/etc/qvpn/qvpn0.toml",
        &format!("{kms}{}{}{peer}", stream("s", "link = \"x\"\n"), stream("t", "link = ¦\"x\"\n")),
        &["peer \"b\" has two ETSI GS QKD 004 servers with the link \"x\", the other in line 8; write \
           a `link` into each, a name that both sites give the same link"],
    );
    for (more, kmes) in [("link = \"y\"\n", ""), ("", ""), ("link = \"x\"\n", "kmes = [\"s\"]\n")] {
        let text = format!("{kms}{}{}{peer}{kmes}", stream("s", "link = \"x\"\n"), stream("t", more));
        let text = text.replace("FILES", FILES).replace("KEY_B", KEY_B);
        assert!(Config::parse(Path::new("/etc/qvpn/qvpn0.toml"), &text).is_ok(), "{text}");
    }
}

#[test]
fn files_of_keys() {
    let peer = |name: &str, more: &str| {
        format!(
            "[[peer]]\nname = \"{name}\"\npublic_key = \"KEY_{}\"\nsae_id = \"{name}\"\nallowed_ips = \
             []\n{more}\n",
            name.to_uppercase()
        )
    };
    let file = |name: &str, path: &str| {
        format!("[[kms.kme]]\nname = \"{name}\"\napi = \"file\"\nkeys_file = {path}\n")
    };
    let kms = "[interface]\n[kms]\nsae_id = \"A\"\n";
    let rows = [
        (
            format!(
                "{kms}¦[[kms.kme]]\nname = \"d\"\napi = \"file\"\nurl = ¦\"https://k\"\nca_file = ¦\"ca\"\n"
            ),
            vec![
                "[[kms.kme]] \"d\" needs `keys_file`; write `keys_file = \"/srv/qvpn/site-b.keys\"`",
                "a file of keys has no `url`; remove the line, or write another `api`",
                "a file of keys has no `ca_file`; remove the line, or write another `api`",
            ],
        ),
        (
            format!("{kms}{}{}{}", file("d", "\"k\""), file("e", "¦\"k\""), peer("b", "kmes = [\"d\"]")),
            vec![
                "the file /etc/qvpn/k is in line 7 already; give each [[kms.kme]] a file of its own, or \
                 keep one of the two",
            ],
        ),
        (
            format!("{kms}{}{}{}", file("d", "¦\"k\""), peer("b", ""), peer("c", "")),
            vec![
                "the file of \"d\" would serve peer \"b\" and peer \"c\", and each peer needs a file of \
                 its own; write a [[kms.kme]] for each, and name it in that peer's `kmes`",
            ],
        ),
    ];
    for (text, errors) in &rows {
        refused("/etc/qvpn/qvpn0.toml", text, errors);
    }
}

#[test]
fn tunnels_that_need_themselves() {
    const WAN: &str = "write the peer's address on the WAN, or remove it from `allowed_ips`";
    let two = |b: &str, c: &str| {
        format!(
            "[interface]\naddress = [\"10.77.0.1/30\"]\n[[peer]]\nname = \"b\"\npublic_key = \
             \"KEY_B\"\nOFF\n{b}\n[[peer]]\nname = \"c\"\npublic_key = \"KEY_C\"\nOFF\n{c}\n"
        )
    };
    let inside = |ip: &str, net: &str| {
        format!(
            "the endpoint {ip} lies in {net}, so it would be reached through the tunnel that needs it; {WAN}"
        )
    };
    let path = "/etc/qvpn/qvpn0.toml";
    refused(
        path,
        &two(
            "endpoint = ¦\"10.20.0.9:1\"\nallowed_ips = [\"0.0.0.0/0\", \"10.20.0.0/16\"]",
            "allowed_ips = []",
        ),
        &[&inside("10.20.0.9", "10.20.0.0/16")],
    );
    // Each endpoint is reached through the other tunnel.
    refused(
        path,
        &two(
            "endpoint = ¦\"[fd30::9]:1\"\nallowed_ips = [\"fd20::/64\"]",
            "endpoint = ¦\"[fd20::9]:1\"\nallowed_ips = [\"fd30::/64\"]",
        ),
        &[&inside("fd30::9", "fd30::/64"), &inside("fd20::9", "fd20::/64")],
    );
    refused(
        path,
        &two("endpoint = ¦\"10.77.0.2:1\"\nallowed_ips = []", "allowed_ips = []"),
        &["the endpoint 10.77.0.2 lies in the interface's own network 10.77.0.0/30; write the peer's \
             address on the WAN"],
    );
    let kme = |policy: &str, url: &str| {
        format!(
            "[interface]\n[kms]\nsae_id = \"A\"\n[[kms.kme]]\nname = \"k\"\nurl = \
             {url}\nFILES[[peer]]\nname = \"b\"\npublic_key = \"KEY_B\"\nsae_id = \"B\"\nqkd = \
             \"{policy}\"\nallowed_ips = [\"10.20.0.0/16\"]\n"
        )
    };
    for policy in ["required", "preferred"] {
        refused(
            path,
            &kme(policy, "¦\"https://10.20.0.5:8443\""),
            &["KME \"k\" at 10.20.0.5 lies in 10.20.0.0/16, so it would be reached through the tunnel \
                 to peer \"b\", which needs its keys; write the KME's address outside the tunnel, or \
                 remove it from that peer's `allowed_ips`"],
        );
    }
    let taken = |text: &str| {
        let text = text.replace("KEY_B", KEY_B).replace("FILES", FILES);
        Config::parse(Path::new(path), &text).unwrap_or_else(|e| panic!("{e}"));
    };
    taken(&kme("off", "\"https://10.20.0.5:8443\""));
    taken(&kme("required", "\"https://10.21.0.5:8443\""));
    taken(
        &kme("required", "\"https://10.20.0.5:8443\"").replace("[interface]", "[interface]\ntable = \"off\""),
    );
}

#[test]
fn what_is_not_toml() {
    file_rows(&[
        (
            "[interface]\nlanes = ¦\n",
            &["this is not TOML: there is no value; write one after the equals sign, or remove the line"],
        ),
        (
            "[interface¦\nlanes = 1\n",
            &["this is not TOML: unclosed table, expected `]`; write the missing `]`"],
        ),
        (
            "[interface]\nname = \"qvpn0¦\nlanes = 1\n",
            &["this is not TOML: invalid basic string, expected `\"`; write the missing `\"`"],
        ),
    ]);
}

#[test]
fn all_errors_at_once_in_their_order_beside_errors_of_syntax() {
    file_rows(&[(
        "[interface]\nlisten_port = ¦0\nname = \"x¦\nlanes = ¦99\n[[peer]]\nOFF\n¦rol = \"auto\"\n",
        &[
            "`listen_port` must be from 1 to 65535, but this is 0; write for example `listen_port = 51820`",
            "this is not TOML: invalid basic string, expected `\"`; write the missing `\"`",
            "`lanes` must be from 1 to 16, but this is 99; write for example `lanes = 1`",
            "[[peer]] has no key `rol`; did you mean `role`?",
        ],
    )]);
}

#[test]
fn next_hops_name_one_peer_each() {
    let peers = |interface: &str, b: &str, c: &str| {
        format!(
            "[interface]\naddress = [\"10.77.0.1/24\"]\n{interface}\n[[peer]]\nname = \"b\"\npublic_key = \
             \"KEY_B\"\nOFF\nallowed_ips = [\"10.0.0.0/8\"]\n{b}\n¦[[peer]]\nname = \"c\"\npublic_key = \
             \"KEY_C\"\nOFF\nallowed_ips = [\"10.0.0.0/8\"]\n{c}\n"
        )
    };
    let (kernel, b) = ("routes = \"kernel\"", "tunnel_address = [\"10.77.0.2\"]");
    file_rows(&[
        (
            &peers(kernel, b, ""),
            &["peer \"c\" has no `tunnel_address`, so no route could lead to it; write its address in \
              the tunnel: `tunnel_address = [\"10.77.0.2\"]`"],
        ),
        (
            &peers(kernel, b, "tunnel_address = [¦\"10.77.0.2\"]").replace("¦[[", "[["),
            &["10.77.0.2 belongs to peer \"b\" already (line 9); a next hop leads to one peer: write \
              this peer's own address"],
        ),
        (
            &peers(kernel, b, "tunnel_address = [\"10.77.0.3\", ¦\"10.77.0.3\"]").replace("¦[[", "[["),
            &["10.77.0.3 is here twice; remove one of them"],
        ),
        (
            &peers(kernel, b, "tunnel_address = [¦\"10.77.0.1\"]").replace("¦[[", "[["),
            &["10.77.0.1 is our own, by `address`; write the peer's address in the tunnel"],
        ),
        (
            &peers(kernel, b, "tunnel_address = [¦\"10.77.0.3/24\"]").replace("¦[[", "[["),
            &["\"10.77.0.3/24\" is a prefix, and this is the address of one host; write \"10.77.0.3\""],
        ),
        (
            &peers(kernel, b, "tunnel_address = [¦\"ff02::5\"]").replace("¦[[", "[["),
            &["ff02::5 is not the address of one host in the tunnel; write for example \"10.77.0.2\" or \
              \"fe80::2\""],
        ),
    ]);
    interface_rows(&[
        (
            "routes_table = ¦100",
            "`routes_table` counts under `routes = \"kernel\"` only; write `routes = \"kernel\"` too, or \
             remove `routes_table`",
        ),
        (
            "routes = \"kernel\"\nroutes_table = ¦29046",
            "routing table 29046 belongs to qvpn, for the block; write the table that your routing daemon \
             fills, or \"main\"",
        ),
        (
            "routes = \"kernel\"\nroutes_table = ¦\"local\"",
            "`routes_table` can't be \"local\"; write \"main\" or \"a number without quotes\"",
        ),
        ("routes = ¦\"bgp\"", "`routes` can't be \"bgp\"; write \"config\" or \"kernel\""),
    ]);
}

#[test]
fn columns_count_characters_and_messages_stay_on_their_line() {
    file_rows(&[(
        "[interface]\n\"ä\" = 1¦\n".replace('¦', "").replace("\"ä\"", "¦\"ä\\n\"").as_str(),
        &["[interface] has no key `ä\\n`; its keys are `name`, `private_key_file`, `lanes`, \
             `listen_port`, `address`, `mtu`, `suite`, `rekey_interval`, `min_rekey_interval`, `liveness`, \
             `table`, `fwmark`, `dscp`, `on_stop`, `protect`, `local`, `routes`, `routes_table`, \
             `metrics_listen`, `log_level`, `include`"],
    )]);
    refused(
        "x.toml",
        "interface = { name = \"äöü\", lanes = ¦0 }\n",
        &["`lanes` must be from 1 to 16, but this is 0; write for example `lanes = 1`"],
    );
}

#[test]
fn a_file_of_rubbish_gives_a_bounded_list() {
    let errors = Config::parse(Path::new("x.toml"), &"x = = 1\n".repeat(50_000)).unwrap_err();
    assert_eq!(errors.list().len(), 100);
    assert!(errors.left_out() > 1000);
    assert!(errors.to_string().ends_with(" more"));
    let huge = Config::parse(Path::new("x.toml"), &" ".repeat(16 * 1024 * 1024 + 1)).unwrap_err();
    assert_eq!(
        huge.to_string(),
        "x.toml: the file has 16777217 bytes, and a config at most 16777216; check that this is the right \
         file"
    );
    let deep = format!("x = {}", "[".repeat(100_000));
    assert!(Config::parse(Path::new("x.toml"), &deep).is_err());
}
