//! `import`: converts a `wg-quick` file, and names each setting without an equivalent, with its line and what
//! to do instead. Keys are not converted, because a WireGuard key has no ML-KEM half. No secret is printed.

mod name;
mod read;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use self::name::CommentName;
use self::read::{Interface, Note, Peer, WgConfig};
use crate::cli::QkdChoice;
use crate::error::CtlError;
use crate::output;

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 16 * 1024 * 1024;

#[derive(Debug, Default, PartialEq)]
struct Imported {
    /// The text of the qvpn config.
    toml: String,
    /// Remarks, each with the line that it is about.
    notes: Vec<Note>,
}

pub(crate) fn import(file: &Path, qkd: QkdChoice) -> Result<(), CtlError> {
    let failed = |source| CtlError::Import {
        file: file.to_owned(),
        line: None,
        what: format!("{source}; give the path of a wg-quick config, such as /etc/wireguard/wg0.conf"),
    };
    let size = fs::metadata(file).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_SIZE {
        return Err(failed(format!("it has {size} bytes, and a config at most {MAX_SIZE}")));
    }
    let bytes = fs::read(file).map_err(|e| failed(e.to_string()))?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(failed("it is UTF-16 text: save it as UTF-8".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8 text".to_owned()))?;
    let imported = convert(&text, file, qkd).map_err(|(line, what)| CtlError::Import {
        file: file.to_owned(),
        line: Some(line),
        what,
    })?;
    output::print(&imported.toml)?;
    for (line, note) in &imported.notes {
        output::note(&format!("{}:{line}: {note}", file.display()));
    }
    Ok(())
}

fn convert(text: &str, file: &Path, qkd: QkdChoice) -> Result<Imported, Note> {
    let WgConfig { interface, peers, mut notes } = read::read(text)?;
    let names = names(&peers);
    let toml = write(&interface, &peers, &names, qkd);
    notes.push((
        1,
        "keys are not converted, because each needs an ML-KEM half: make ours with `install -m 0640 -g qvpn \
         /dev/null /etc/qvpn/NAME.key && qvpn-ctl genkey > /etc/qvpn/NAME.key`, and write what `qvpn-ctl \
         pubkey` prints at each peer"
            .to_owned(),
    ));
    for (peer, name) in peers.iter().zip(&names) {
        if let Some(line) = peer.psk_line {
            let target = shell_word(&psk_file(name));
            let command = psk_command(line, file);
            notes.push((
                line,
                format!(
                    "put the pre-shared key into the file that the config names: `install -m 0640 -g qvpn \
                     /dev/null {target} && {command} > {target}`"
                ),
            ));
        }
    }
    notes.sort_by_key(|(line, _)| *line);
    Ok(Imported { toml, notes })
}

fn psk_file(name: &str) -> String {
    format!("/etc/qvpn/{name}.psk")
}

/// Returns a command that prints the key in a line of the file, without a comment or spaces around it.
fn psk_command(line: usize, file: &Path) -> String {
    let file = shell_word(&file.display().to_string());
    format!("sed -n '{line}{{s/^[^=]*=[[:space:]]*//;s/[[:space:]]*#.*//;s/[[:space:]]*$//;p;}}' {file}")
}

/// Returns `text` as one word of a shell command.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Returns the peers' names from the comments. A missing or ambiguous one becomes `peer-N`.
fn names(peers: &[Peer]) -> Vec<String> {
    let given: Vec<Option<String>> =
        peers.iter().map(|peer| peer.name.clone().map(CommentName::into_name)).collect();
    let unique = |name: &&String| given.iter().filter(|other| other.as_ref() == Some(*name)).count() == 1;
    (1..)
        .zip(&given)
        .map(|(number, name)| {
            name.as_ref().filter(unique).cloned().unwrap_or_else(|| format!("peer-{number}"))
        })
        .collect()
}

fn write(i: &Interface, peers: &[Peer], names: &[String], qkd: QkdChoice) -> String {
    let mut t = String::from("[interface]\n");
    // Writing into a string can't fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(t, "{text}");
    };
    if let Some(port) = &i.listen_port {
        line(format_args!("listen_port = {port}"));
    }
    line(format_args!("address = [{}]", quoted_list(&i.address)));
    for (key, value) in [("mtu", &i.mtu), ("table", &i.table), ("fwmark", &i.fwmark)] {
        if let Some(value) = value {
            line(format_args!("{key} = {value}"));
        }
    }
    if qkd != QkdChoice::Off && !peers.is_empty() {
        line(format_args!(
            "\n[kms]                          # this site's KME; `qvpn-ctl kms check` tries it\nsae_id = \
             \"SITE-A\"\n[[kms.kme]]\nname = \"kme-a1\"\nurl = \"https://kme-a1.example:8443\"\nca_file = \
             \"/etc/qvpn/kms/ca.pem\"\ncert_file = \"/etc/qvpn/kms/site-a.pem\"\nkey_file = \
             \"/etc/qvpn/kms/site-a.key\""
        ));
    }
    for (number, (peer, name)) in (1..).zip(peers.iter().zip(names)) {
        line(format_args!("\n[[peer]]\nname = {}", quoted(name)));
        line(format_args!("public_key = \"qvpn1-…\"          # what `qvpn-ctl pubkey` prints there"));
        if let Some(endpoint) = &peer.endpoint {
            line(format_args!("endpoint = {}", quoted(endpoint)));
        }
        let own: Vec<String> = peer.allowed_ips.iter().map(|(_, net)| net.to_string()).collect();
        line(format_args!("allowed_ips = [{}]", quoted_list(&own)));
        if qkd == QkdChoice::Off {
            line(format_args!("qkd = \"off\""));
        } else {
            line(format_args!("sae_id = \"SITE-{number}\"             # the other site's SAE ID"));
            line(format_args!("qkd = \"{}\"", qkd.as_str()));
        }
        if peer.psk_line.is_some() {
            line(format_args!("preshared_key_file = {}", quoted(&psk_file(name))));
        }
        if let Some(keepalive) = &peer.keepalive {
            line(format_args!("persistent_keepalive = \"{keepalive}\""));
        }
    }
    t
}

fn quoted_list(items: &[String]) -> String {
    items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ")
}

/// Returns `text` as a TOML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WG: &str = "\
# office
[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = 10.192.122.1/24, fd00::1/64
ListenPort = 51820
DNS = 10.0.0.1, example.com
Table = 1234
FwMark = 0x20
MTU = 1400
SaveConfig = true
PostUp = iptables -A FORWARD -i %i -j ACCEPT

# Site B
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
PresharedKey = FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=
Endpoint = 192.95.5.67:1234
AllowedIPs = 10.192.122.3/32, 10.192.124.1/24
PersistentKeepalive = 25

[Peer]
PublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
allowedips = 10.192.124.0/24, nonsense
Colour = blue
";

    #[test]
    fn a_file_of_wg_quick_becomes_ours_and_says_what_is_lost() {
        let Imported { toml, notes } = convert(WG, Path::new("wg0.conf"), QkdChoice::Off).unwrap();
        assert_eq!(
            toml,
            "[interface]
listen_port = 51820
address = [\"10.192.122.1/24\", \"fd00::1/64\"]
mtu = 1400
table = 1234
fwmark = 0x20

[[peer]]
name = \"site-b\"
public_key = \"qvpn1-…\"          # what `qvpn-ctl pubkey` prints there
endpoint = \"192.95.5.67:1234\"
allowed_ips = [\"10.192.122.3/32\"]
qkd = \"off\"
preshared_key_file = \"/etc/qvpn/site-b.psk\"
persistent_keepalive = \"25s\"

[[peer]]
name = \"peer-2\"
public_key = \"qvpn1-…\"          # what `qvpn-ctl pubkey` prints there
allowed_ips = [\"10.192.124.0/24\"]
qkd = \"off\"
"
        );
        let at = |line: usize| {
            notes.iter().filter(|(n, _)| *n == line).map(|(_, t)| t.as_str()).collect::<Vec<_>>().join("|")
        };
        assert!(at(1).contains("genkey") && at(3).contains("PrivateKey"));
        assert!(at(6).contains("`resolvectl dns NAME 10.0.0.1 example.com`"));
        assert!(at(10).contains("SaveConfig") && at(11).contains("`ExecStart=` of a unit that is `After="));
        assert!(at(16).contains("pre-shared key") && at(18).contains("it is 10.192.124.0/24 here"));
        assert!(at(23).contains("peer number 1 too") && at(23).contains("`nonsense` is not a prefix"));
        assert!(at(24).contains("`colour`"));
        let secrets = ["yAnz5", "FpCyhws9"];
        assert!(secrets.iter().all(|s| !toml.contains(s) && notes.iter().all(|(_, n)| !n.contains(s))));
    }

    #[test]
    fn what_it_writes_is_a_config_once_the_keys_are_in() {
        for qkd in [QkdChoice::Off, QkdChoice::Required, QkdChoice::Preferred] {
            let text = convert(WG, Path::new("wg0.conf"), qkd).unwrap().toml;
            let errors = qvpn_api::Config::parse("/etc/qvpn/qvpn0.toml".as_ref(), &text).unwrap_err();
            assert!(errors.list().iter().all(|e| e.what.contains("key")), "{errors}\n{text}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused_with_its_line() {
        assert_eq!(convert("", Path::new("f"), QkdChoice::Off).unwrap_err().0, 1);
        assert_eq!(convert("[Interface]\nhello\n", Path::new("f"), QkdChoice::Off).unwrap_err().0, 2);
        assert_eq!(convert("\nAddress = 1\n", Path::new("f"), QkdChoice::Off).unwrap_err().0, 2);
        // A key without its equals sign is shown nowhere.
        for line in ["PrivateKey yAnz5TF+lXXJte14tji3zlMNq", "PrivateKey yAnz5TF+lXXJte14tji3zlMNq="] {
            let said = match convert(&format!("[Interface]\n{line}\n"), Path::new("f"), QkdChoice::Off) {
                Ok(imported) => format!("{imported:?}"),
                Err((_, what)) => what,
            };
            assert!(
                said.to_lowercase().contains("privatekey") && !said.to_lowercase().contains("yanz5"),
                "{said}"
            );
        }
    }

    fn imported(text: &str) -> Imported {
        convert(text, Path::new("/etc/wireguard/wg0.conf"), QkdChoice::Off).unwrap()
    }

    fn names_in(text: &str) -> Vec<String> {
        let toml = imported(text).toml;
        let names = toml.lines().filter_map(|line| line.strip_prefix("name = "));
        names.map(|name| name.trim_matches('"').to_owned()).collect()
    }

    #[test]
    fn names_come_from_the_comments_of_common_tools() {
        let text = "\
[Interface]
Address = 10.7.0.1/24
#DNS = 1.1.1.1
[Peer]
PublicKey = a=
AllowedIPs = 10.7.0.2/32

# BEGIN_PEER laptop
[Peer]
PublicKey = b=
# END_PEER laptop
### begin phone ###
[Peer]
PublicKey = c=
### end phone ###
[Peer]
# friendly_name = Site D
PublicKey = d=
[Peer] # site e
PublicKey = e=
[Peer]
PublicKey = f= # site f
# friendly_json = {\"name\": 1}
[Peer]
# the gateway in Bonn
PublicKey = g=

### Client site-h
[Peer]
PublicKey = h=
";
        let names =
            ["peer-1", "laptop", "phone", "site-d", "site-e", "site-f", "the-gateway-in-bonn", "site-h"];
        assert_eq!(names_in(text), names);
    }

    #[test]
    fn the_printed_command_finds_the_pre_shared_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wg 'x'.conf");
        let text = "[Interface]\r\n[Peer]\r\nPublicKey = a=\r\n[Peer]\r\nPublicKey = b=\r\nPresharedKey = \
                    FpC+/w9= # b\r\n";
        fs::write(&file, text).unwrap();
        let notes = convert(text, &file, QkdChoice::Off).unwrap().notes;
        let note = notes.iter().find(|(line, _)| *line == 6).unwrap();
        assert!(note.1.contains("/etc/qvpn/peer-2.psk") && !note.1.contains("FpC"), "{note:?}");
        let command = note.1.split("&& ").nth(1).unwrap().split(" > /etc").next().unwrap();
        let output = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "FpC+/w9=\n", "{command}: {output:?}");
    }

    #[test]
    fn what_qvpn_cannot_use_is_left_out_with_a_reason() {
        let text = "\u{feff}[Interface]
Table = main
MTU = big
Address = 10.7.0.1/24, fe80::1%eth0/64
[Peer]
PublicKey = a=
Endpoint = http://vpn.example:8000:51820
AllowedIPs = 10.8.0.0/24, fe80::2%eth0/128
[Peer]
PublicKey = b=
Endpoint = [fe80::1%eth0]:51820
PersistentKeepalive = 15
[Peer]
PublicKey = a=
AllowedIPs = 10.9.0.0/24
[Peer]
AllowedIPs = 10.10.0.0/24
";
        let Imported { toml, notes } = imported(text);
        assert!(toml.contains("table = 254\n") && toml.contains("address = [\"10.7.0.1/24\"]"), "{toml}");
        assert!(!toml.contains("mtu") && !toml.contains("endpoint") && !toml.contains('%'), "{toml}");
        assert!(!toml.contains("10.8.0.0") && toml.contains("10.9.0.0/24"), "{toml}");
        assert_eq!(names_in(text).len(), 3);
        let at = |line: usize| {
            notes.iter().filter(|(n, _)| *n == line).map(|(_, t)| t.as_str()).collect::<Vec<_>>().join("|")
        };
        for (line, words) in [
            (3, "MTU must be a number"),
            (4, "no scope such as %eth0"),
            (7, "is a URL"),
            (8, "no scope such as %eth0"),
            (11, "no scope such as %eth0"),
            (13, "the PublicKey of the one in line 5"),
            (16, "has no PublicKey"),
        ] {
            assert!(at(line).contains(words), "{line}: {notes:?}");
        }
    }

    #[test]
    fn named_tables_and_bad_endpoints_say_what_to_write() {
        let note = |line: &str| {
            let section = if line.starts_with("Table") { "" } else { "[Peer]\nPublicKey = a=\n" };
            let notes = imported(&format!("[Interface]\n{section}{line}\n")).notes;
            notes
                .into_iter()
                .map(|(_, text)| text)
                .filter(|text| !text.contains("genkey"))
                .collect::<String>()
        };
        assert!(note("Table = blue").contains("rt_tables"));
        assert_eq!(note("Table = off"), "");
        assert_eq!(note("Endpoint = [2001:db8::9]:51820"), "");
        assert_eq!(note("Endpoint = gw.example:51820"), "");
        for bad in ["gw.example", "gw.example:0", "2001:db8::9", "[2001:db8::9]", "a:b:1", "[x]:1", ":51820"]
        {
            assert!(note(&format!("Endpoint = {bad}")).contains("HOST:PORT"), "{bad}");
        }
    }
}
