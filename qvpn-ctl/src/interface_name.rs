//! Names of interfaces on the command line.

/// Accepts an interface name only if it is a single path component, so that it can't point to another
/// directory.
pub(crate) fn interface(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > 15 || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err("the name of an interface has 1 to 15 bytes and no slash, such as qvpn0".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_leads_nowhere_else() {
        for bad in ["", ".", "..", "a/b", "../x", "sixteen-letters-"] {
            assert!(interface(bad).is_err(), "{bad}");
        }
        assert_eq!(interface("qvpn0"), Ok("qvpn0".to_owned()));
    }
}
