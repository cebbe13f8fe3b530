//! `import`: converts a `wg-quick` file, and names each setting without an equivalent, with its line and
//! what to do instead. Keys are not converted, because a WireGuard key has no ML-KEM half. No secret is
//! printed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use qvpn_net::IpNet;

use crate::cli::QkdChoice;
use crate::error::CtlError;
use crate::output;

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 16 * 1024 * 1024;

#[derive(Debug, Default, PartialEq)]
struct Imported {
    /// Our config.
    toml: String,
    /// Lines and remarks.
    notes: Vec<(usize, String)>,
}

#[derive(Default)]
struct Interface {
    address: Vec<String>,
    listen_port: Option<String>,
    fwmark: Option<String>,
    mtu: Option<String>,
    table: Option<String>,
}

#[derive(Default)]
struct Peer {
    name: Option<String>,
    endpoint: Option<String>,
    allowed_ips: Vec<IpNet>,
    keepalive: Option<String>,
    psk: bool,
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
    let text = String::from_utf8(bytes).map_err(|_| failed("it is no text".to_owned()))?;
    let imported = read(&text, qkd).map_err(|(line, what)| CtlError::Import {
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

/// Reads what wg-quick reads: sections, `Key = value` with keys in any case, comments after `#`.
fn read(text: &str, qkd: QkdChoice) -> Result<Imported, (usize, String)> {
    let mut notes = Vec::new();
    let mut interface = None;
    let mut peers: Vec<Peer> = Vec::new();
    let mut in_interface = false;
    let mut comment: Option<String> = None;
    let mut owners: BTreeMap<IpNet, usize> = BTreeMap::new();
    for (number, raw) in (1..).zip(text.lines()) {
        let (line, remark) =
            raw.split_once('#').map_or((raw, None), |(line, remark)| (line, Some(remark.trim())));
        let line = line.trim();
        if line.is_empty() {
            comment = remark.map(str::to_owned);
            continue;
        }
        match line.to_ascii_lowercase().as_str() {
            "[interface]" => {
                in_interface = true;
                interface.get_or_insert_with(Interface::default);
                continue;
            }
            "[peer]" => {
                in_interface = false;
                let name = comment.take().or_else(|| remark.map(str::to_owned)).and_then(|text| name(&text));
                peers.push(Peer { name, ..Peer::default() });
                continue;
            }
            _ => {}
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err((
                number,
                format!(
                    "`{}` is neither a section nor `Key = value`; is this a wg-quick config?",
                    first_word(line)
                ),
            ));
        };
        let (key, value) = (first_word(key.trim()).to_ascii_lowercase(), value.trim());
        let ordinal = peers.len();
        let mut note = |text: String| notes.push((number, text));
        match (in_interface, interface.as_mut(), peers.last_mut()) {
            (true, Some(i), _) => interface_key(i, &key, value, &mut note),
            (false, _, Some(peer)) => peer_key(peer, ordinal, &key, value, &mut owners, &mut note),
            _ => {
                return Err((
                    number,
                    format!("`{key}` stands before any section; is this a wg-quick config?"),
                ));
            }
        }
    }
    let Some(interface) = interface else {
        return Err((1, "there is no section [Interface], so this is no wg-quick config".to_owned()));
    };
    let toml = write(&interface, &peers, &owners, qkd);
    notes.push((1, "keys don't carry over, since each needs an ML-KEM half: make ours with `install -m 0640 -g qvpn /dev/null /etc/qvpn/NAME.key && qvpn-ctl genkey > /etc/qvpn/NAME.key`, and write what `qvpn-ctl pubkey` prints at each peer".to_owned()));
    notes.sort_by_key(|(line, _)| *line);
    Ok(Imported { toml, notes })
}

fn interface_key(i: &mut Interface, key: &str, value: &str, note: &mut impl FnMut(String)) {
    match key {
        "privatekey" => note("PrivateKey is not taken over; see above".to_owned()),
        "address" => i.address.extend(list(value)),
        "listenport" => i.listen_port = Some(value.to_owned()),
        "fwmark" if value == "off" => {}
        "fwmark" => i.fwmark = Some(value.to_owned()),
        "mtu" => i.mtu = Some(value.to_owned()),
        "table" => {
            i.table = Some(if value.parse::<u32>().is_ok() { value.to_owned() } else { quoted(value) })
        }
        "dns" => note(format!(
            "DNS has no equivalent: qvpn sets no resolver. With systemd-resolved: `resolvectl dns NAME {}`",
            list(value).collect::<Vec<_>>().join(" ")
        )),
        "netns" => note(
            "NetNS has no equivalent: `systemctl edit qvpn@NAME` and `NetworkNamespacePath=` put the \
             whole daemon into a namespace"
                .to_owned(),
        ),
        "saveconfig" => note(
            "SaveConfig has no equivalent: nothing writes the config but `qvpn-ctl peer … \
             --save`"
                .to_owned(),
        ),
        "preup" | "postup" | "predown" | "postdown" => {
            let when = match key {
                "preup" => "`ExecStart=` of a unit that is `Before=qvpn@NAME.service`",
                "postup" => "`ExecStart=` of a unit that is `After=qvpn@NAME.service`",
                "predown" => "`ExecStop=` of a unit that is `After=qvpn@NAME.service`",
                _ => "`ExecStop=` of a unit that is `Before=qvpn@NAME.service`",
            };
            note(format!(
                "{key} has no equivalent, since a config runs no commands: write it as {when}, with the \
                 tunnel's name where `%i` was; docs/operating.md, \"Commands at start and stop\", has \
                 such a unit"
            ));
        }
        other => note(format!("[Interface] has no key `{other}` that wg-quick knows; it is left out")),
    }
}

fn peer_key(
    peer: &mut Peer,
    ordinal: usize,
    key: &str,
    value: &str,
    owners: &mut BTreeMap<IpNet, usize>,
    note: &mut impl FnMut(String),
) {
    match key {
        "publickey" => {}
        "presharedkey" => {
            peer.psk = true;
            note(format!(
                "put the pre-shared key into the file that the config names: `install -m 0640 -g qvpn \
                 /dev/null FILE && sed -n 's/^ *PresharedKey *= *//Ip' WG_CONF | sed -n {ordinal}p > \
                 FILE`, if each peer has one"
            ));
        }
        "endpoint" => peer.endpoint = Some(value.to_owned()),
        "allowedips" => {
            for text in list(value) {
                let parsed = text
                    .parse::<IpNet>()
                    .or_else(|_| text.parse().map(|ip: std::net::IpAddr| IpNet::from(ip)));
                let Ok(net) = parsed else {
                    note(format!("`{text}` is no prefix, and is left out"));
                    continue;
                };
                if net.trunc() != net {
                    note(format!(
                        "{net} has bits after its prefix length, which wg ignores; it is {} here",
                        net.trunc()
                    ));
                }
                if let Some(other) = owners.insert(net.trunc(), ordinal).filter(|other| *other != ordinal) {
                    note(format!(
                        "{} stands at peer number {other} too; wg gives it to the last, and so does this",
                        net.trunc()
                    ));
                }
                if !peer.allowed_ips.contains(&net.trunc()) {
                    peer.allowed_ips.push(net.trunc());
                }
            }
        }
        "persistentkeepalive" if matches!(value, "off" | "0") => {}
        "persistentkeepalive" => peer.keepalive = Some(format!("{value}s")),
        other => note(format!("[Peer] has no key `{other}` that wg knows; it is left out")),
    }
}

fn write(i: &Interface, peers: &[Peer], owners: &BTreeMap<IpNet, usize>, qkd: QkdChoice) -> String {
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
    for (number, peer) in (1..).zip(peers) {
        let name = peer
            .name
            .clone()
            .filter(|name| peers.iter().filter(|p| p.name.as_ref() == Some(name)).count() == 1);
        let name = name.unwrap_or_else(|| format!("peer-{number}"));
        line(format_args!(
            "\n[[peer]]\nname = {}\npublic_key = \"qvpn1-…\"          # what `qvpn-ctl pubkey` prints there",
            quoted(&name)
        ));
        if let Some(endpoint) = &peer.endpoint {
            line(format_args!("endpoint = {}", quoted(endpoint)));
        }
        let own: Vec<String> = peer
            .allowed_ips
            .iter()
            .filter(|net| owners.get(net) == Some(&number))
            .map(ToString::to_string)
            .collect();
        line(format_args!("allowed_ips = [{}]", quoted_list(&own)));
        if qkd == QkdChoice::Off {
            line(format_args!("qkd = \"off\""));
        } else {
            line(format_args!("sae_id = \"SITE-{number}\"             # the other site's SAE ID"));
            line(format_args!("qkd = \"{}\"", qkd.as_str()));
        }
        if peer.psk {
            line(format_args!("preshared_key_file = {}", quoted(&format!("/etc/qvpn/{name}.psk"))));
        }
        if let Some(keepalive) = &peer.keepalive {
            line(format_args!("persistent_keepalive = \"{keepalive}\""));
        }
    }
    t
}

/// What may be shown of a line: what follows the first word may be a key, even where the `=` is missing,
/// and the longest word that wg-quick knows has 19 letters.
fn first_word(line: &str) -> &str {
    let ends = |(i, c): &(usize, char)| *i >= 20 || !(c.is_alphanumeric() || "[]-_".contains(*c));
    let end = line.char_indices().find(ends).map_or(line.len(), |(i, _)| i);
    line.get(..end).unwrap_or_default()
}

/// Values between commas.
fn list(value: &str) -> impl Iterator<Item = String> + '_ {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned)
}

fn quoted_list(items: &[String]) -> String {
    items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ")
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A comment's words as a peer's name: `# Site B` is `site-b`.
fn name(comment: &str) -> Option<String> {
    let text = comment.split_once('=').map_or(comment, |(_, value)| value).trim().to_lowercase();
    let name: String = text.split_whitespace().collect::<Vec<_>>().join("-");
    let plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let fits =
        (1..=32).contains(&name.chars().count()) && !name.starts_with('-') && !name.starts_with("qvpn1-");
    (plain && fits).then_some(name)
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
        let Imported { toml, notes } = read(WG, QkdChoice::Off).unwrap();
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
        assert!(at(23).contains("peer number 1 too") && at(23).contains("`nonsense` is no prefix"));
        assert!(at(24).contains("`colour`"));
        let secrets = ["yAnz5", "FpCyhws9"];
        assert!(secrets.iter().all(|s| !toml.contains(s) && notes.iter().all(|(_, n)| !n.contains(s))));
    }

    #[test]
    fn what_it_writes_is_a_config_once_the_keys_are_in() {
        for qkd in [QkdChoice::Off, QkdChoice::Required, QkdChoice::Preferred] {
            let text = read(WG, qkd).unwrap().toml;
            let errors = qvpn_api::Config::parse("/etc/qvpn/qvpn0.toml".as_ref(), &text).unwrap_err();
            assert!(errors.list().iter().all(|e| e.what.contains("key")), "{errors}\n{text}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_refused_with_its_line() {
        assert_eq!(read("", QkdChoice::Off).unwrap_err().0, 1);
        assert_eq!(read("[Interface]\nhello\n", QkdChoice::Off).unwrap_err().0, 2);
        assert_eq!(read("\nAddress = 1\n", QkdChoice::Off).unwrap_err().0, 2);
        // A key that lost its equals sign is shown nowhere.
        for line in ["PrivateKey yAnz5TF+lXXJte14tji3zlMNq", "PrivateKey yAnz5TF+lXXJte14tji3zlMNq="] {
            let said = match read(&format!("[Interface]\n{line}\n"), QkdChoice::Off) {
                Ok(imported) => format!("{imported:?}"),
                Err((_, what)) => what,
            };
            assert!(
                said.to_lowercase().contains("privatekey") && !said.to_lowercase().contains("yanz5"),
                "{said}"
            );
        }
    }
}
