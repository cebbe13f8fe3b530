//! Values that are more than a word or a number: durations, prefixes, endpoints, URLs, names. Each parser
//! says what is wrong and what to write; the caller adds the position.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::{Host, Url};

use super::fault::{Fault, fault, shown};
use super::model::Endpoint;
use qvpn_types::{SaeId, SaeIdError};

/// Parses a whole number and a unit: `100ms`, `60s`, `2m`.
pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, Fault> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let range = format!("from \"{}\" to \"{}\"", duration_text(min), duration_text(max));
    let scale = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "" if !number.is_empty() => {
            return fault(
                format!("the duration \"{}\" has no unit", shown(text)),
                format!("write \"{number}s\" for seconds"),
            );
        }
        _ => {
            return fault(
                format!("\"{}\" is not a duration", shown(text)),
                format!("write a whole number and ms, s or m, {range}"),
            );
        }
    };
    let ms = number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    match ms.map(Duration::from_millis) {
        Some(duration) if (min..=max).contains(&duration) => Ok(duration),
        _ => fault(format!("\"{}\" is out of range", shown(text)), format!("write a duration {range}")),
    }
}

/// Formats a duration as in the config.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms % 1000 {
        0 => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

/// Parses an address with a prefix length; without one it is a single host, as with `wg`. Host bits are kept.
pub(super) fn address(text: &str) -> Result<IpNet, Fault> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    if let Ok(net) = net {
        return Ok(net);
    }
    let what = format!("\"{}\" is not an address with a prefix length", shown(text));
    match text.split_once('/') {
        Some((ip, _)) if ip.parse::<IpAddr>().is_ok() => {
            let most = if ip.contains(':') { 128 } else { 32 };
            fault(
                what,
                format!(
                    "write a prefix length from 0 to {most} after the slash: \"{ip}/{most}\" is one host"
                ),
            )
        }
        _ => fault(what, "write for example \"10.20.0.0/16\" or \"fd20::/64\""),
    }
}

/// Parses a network: an address without host bits.
pub(super) fn prefix(text: &str) -> Result<IpNet, Fault> {
    let net = address(text)?;
    if net.trunc() != net {
        return fault(
            format!("\"{}\" has bits set after its prefix length", shown(text)),
            format!(
                "write \"{}\" for the network, or \"{}\" for the one host",
                net.trunc(),
                IpNet::from(net.addr())
            ),
        );
    }
    Ok(net)
}

/// Parses the address of one host.
pub(super) fn host(text: &str) -> Result<IpAddr, Fault> {
    const EXAMPLES: &str = "write for example \"10.77.0.2\" or \"fe80::2\"";
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() => {
            fault(format!("{ip} is not the address of one host in the tunnel"), EXAMPLES)
        }
        Ok(ip) => Ok(ip),
        Err(_) if text.parse::<IpNet>().is_ok() => {
            let (ip, _) = text.split_once('/').unwrap_or((text, ""));
            fault(
                format!("\"{}\" is a prefix, and this is the address of one host", shown(text)),
                format!("write \"{ip}\""),
            )
        }
        Err(_) => fault(format!("\"{}\" is not an address", shown(text)), EXAMPLES),
    }
}

/// Parses `address:port`, `[address]:port` or `host:port`.
pub(super) fn endpoint(text: &str, lanes: u8) -> Result<Endpoint, Fault> {
    const EXAMPLES: &str =
        "write \"203.0.113.9:51820\", \"[2001:db8::9]:51820\" or \"gateway.example:51820\"";
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return fault(
            format!("the endpoint \"{}\" has no port, or its address no brackets", shown(text)),
            format!("write \"[{ip}]:51820\""),
        );
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return fault(format!("the endpoint \"{}\" has no port", shown(text)), EXAMPLES);
    };
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => inner,
        Some(_) => return fault(format!("\"{}\" is not an IPv6 address", shown(host)), EXAMPLES),
        None if host.contains(':') => {
            return fault(format!("the IPv6 address in \"{}\" needs brackets", shown(text)), EXAMPLES);
        }
        None => host,
    };
    let last = 65535 - u32::from(lanes.saturating_sub(1));
    let Some(number) = port.parse::<u16>().ok().filter(|p| *p > 0 && !port.starts_with('+')) else {
        return fault(format!("\"{}\" is not a UDP port", shown(port)), "write a port from 1 to 65535");
    };
    if u32::from(number) > last {
        return fault(
            format!("port {number} leaves no room for {lanes} lanes, which use one port each"),
            format!("write a port of at most {last}"),
        );
    }
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
            fault(format!("{ip} is not the address of one host"), EXAMPLES)
        }
        Ok(_) => Ok(Endpoint { host: host.to_owned(), port: number }),
        Err(_) if is_host_name(host) => Ok(Endpoint { host: host.to_owned(), port: number }),
        Err(_) => fault(format!("\"{}\" is neither an address nor a host name", shown(host)), EXAMPLES),
    }
}

/// Whether `name` is a host name: labels of letters, digits, `-` and `_`, the last not a number (RFC 1123
/// section 2.1), at most 253 characters.
pub(super) fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let last_is_number = name.rsplit('.').next().is_some_and(|l| l.chars().all(|c| c.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_number
}

/// The address of an ETSI GS QKD 004 server: `tls`, a host and optionally a port.
pub(super) fn stream_url(text: &str) -> Result<(String, Option<IpAddr>), Fault> {
    const FIX: &str = "write for example \"tls://kme-a1.site-a.example:25575\"";
    let Some(rest) = text.strip_prefix("tls://") else {
        let what =
            format!("ETSI GS QKD 004 runs over TLS, and \"{}\" doesn't begin with `tls://`", shown(text));
        return fault(what, FIX);
    };
    // The crate reads addresses and ports in https only.
    let url = match Url::parse(&format!("https://{rest}")) {
        Ok(url) => url,
        Err(e) => return fault(format!("\"{}\" is not a URL ({e})", shown(text)), FIX),
    };
    let has_more = url.path() != "/" || url.query().is_some() || url.fragment().is_some();
    if has_more || !url.username().is_empty() || url.password().is_some() {
        return fault("this URL has more than a host and a port", FIX);
    }
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
        Some(Host::Domain(_)) => None,
        None => return fault("this URL has no host", FIX),
    };
    Ok((text.trim_end_matches('/').to_owned(), ip))
}

/// Parses the base URL of a KME: `https`, a host and optionally a path, without a slash at the end.
pub(super) fn kme_url(text: &str) -> Result<(String, Option<IpAddr>), Fault> {
    const FIX: &str = "write for example \"https://kme-a1.site-a.example:8443\"";
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(e) => return fault(format!("\"{}\" is not a URL ({e})", shown(text)), FIX),
    };
    if url.scheme() != "https" {
        let what = format!("a KME is reached over https, and this URL begins with `{}:`", url.scheme());
        let fix = match text.strip_prefix("http://") {
            Some(rest) => format!("write \"https://{}\"", shown(rest)),
            None => FIX.to_owned(),
        };
        return fault(what, fix);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fault(
            "this URL has a user name or password",
            "leave it out: a KME identifies us by our certificate",
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return fault(
            "this URL has a query or a fragment",
            "write only scheme, host, port and, if needed, a path",
        );
    }
    let path = url.path().trim_end_matches('/');
    if path.ends_with("/api/v1/keys") {
        let whole = url.as_str().trim_end_matches('/');
        let base = whole.strip_suffix("/api/v1/keys").unwrap_or(whole);
        return fault(
            "this URL names the path of the keys",
            format!("write the part before it: \"{}\"", shown(base)),
        );
    }
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
        Some(Host::Domain(_)) => None,
        None => return fault("this URL has no host", FIX),
    };
    Ok((url.as_str().trim_end_matches('/').to_owned(), ip))
}

/// Parses the name of a peer or a KME. It is typed and used as a label, so it has no spaces, and it can't
/// look like a key.
pub(super) fn name(text: &str, kind: &str) -> Result<String, Fault> {
    let fix = format!("write a short name such as \"{kind}\"");
    if text.is_empty() || text.chars().count() > 64 {
        return fault("a name has 1 to 64 characters", fix);
    }
    if text.starts_with("qvpn1-") {
        return fault("a name that begins with `qvpn1-` looks like a key", fix);
    }
    if let Some(c) = text.chars().find(|c| !is_plain(*c) || matches!(c, '"' | '\\' | ',' | '/')) {
        return fault(format!("a name can't hold {c:?}"), fix);
    }
    if text.starts_with('-') {
        return fault("a name that begins with `-` looks like an option", fix);
    }
    Ok(text.to_owned())
}

/// Whether `c` is neither a space nor a control or formatting character: `escape_debug` escapes what is not
/// printable.
fn is_plain(c: char) -> bool {
    !c.is_whitespace() && (matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1)
}

/// Parses an SAE ID: opaque and never normalised, but it must fit in a `Hello` and in a log line.
pub(super) fn sae_id(text: &str) -> Result<SaeId, Fault> {
    SaeId::new(text).or_else(|error| {
        let fix = match error {
            SaeIdError::Length => "write the ID that the KME knows, as in the certificate",
            SaeIdError::Control(_) => "write the ID that the KME knows",
        };
        fault(error.to_string(), fix)
    })
}

/// Parses a name that Linux accepts for a network device (`dev_valid_name`) and that is a single file name.
pub(super) fn interface_name(text: &str) -> Result<String, Fault> {
    const FIX: &str = "write for example \"qvpn0\"";
    if text.is_empty() || text.len() > 15 {
        let what = format!(
            "\"{}\" has {} bytes, and the name of a network device has 1 to 15",
            shown(text),
            text.len()
        );
        return fault(what, FIX);
    }
    if text == "." || text == ".." || text.starts_with('-') {
        return fault(format!("\"{text}\" can't be the name of a network device"), FIX);
    }
    if let Some(c) = text.chars().find(|c| !is_plain(*c) || matches!(c, '/' | ':' | '%' | '"' | '\\')) {
        return fault(format!("the name of a network device can't hold {c:?}"), FIX);
    }
    Ok(text.to_owned())
}

/// How `include` must end.
const PATTERN_END: &str = "/*.toml";

/// The directory of the included files, if `pattern` is well formed.
pub(super) fn include_dir(config: &Path, pattern: &str) -> Option<PathBuf> {
    let dir = pattern.strip_suffix(PATTERN_END).filter(|dir| !dir.is_empty() && !dir.contains('*'))?;
    Some(config.parent().unwrap_or(Path::new("")).join(dir))
}
