//! Checks whether the host name of an endpoint has an address now. The daemon looks it up repeatedly, so a
//! missing address is not an error, but often a typo.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

/// The time limit of the lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// Returns a warning if the host of `endpoint`, a `host:port` that the daemon accepted, has no address.
pub(crate) fn unresolved(endpoint: &str) -> Option<String> {
    let (host, _) = endpoint.rsplit_once(':')?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    if address.is_ok() {
        return None;
    }
    let (done, found) = mpsc::channel();
    let name = endpoint.to_owned();
    // A lookup can't be interrupted; this thread ends with the program.
    std::thread::spawn(move || done.send(name.to_socket_addrs().map(|mut found| found.next().is_some())));
    let what = match found.recv_timeout(LOOKUP_TIMEOUT) {
        Ok(Ok(true)) => return None,
        Ok(Ok(false)) => "has no address".to_owned(),
        Ok(Err(error)) => format!("can't be resolved ({error})"),
        Err(_) => format!("was not resolved within {} s", LOOKUP_TIMEOUT.as_secs()),
    };
    Some(format!(
        "the endpoint {endpoint} {what}; check the name and the DNS servers: until it resolves, the peer \
         must call"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_an_address_is_a_warning() {
        // RFC 6761: no name under `invalid` exists.
        let warning = unresolved("name.invalid:51820").unwrap();
        assert!(warning.starts_with("the endpoint name.invalid:51820 "), "{warning}");
        for address in ["192.0.2.1:51820", "[2001:db8::1]:51820"] {
            assert_eq!(unresolved(address), None);
        }
    }
}
