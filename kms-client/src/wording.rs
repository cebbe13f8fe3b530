//! What the words of an error message mean. KMEs word the same thing in many ways, so each function looks for
//! several forms. All expect a message in lower case.

/// Whether the message says that there is no key at the moment.
pub(crate) fn no_key_now(message: &str) -> bool {
    const WORDS: &[&str] = &[
        "exhaust",
        "insufficient",
        "not enough",
        "too few",
        "no key",
        "no more key",
        "no available",
        "not available",
        "unavailable",
        "empty",
        "deplet",
        "out of keys",
        "generated key count",
        "maximum key count",
        "try again later",
    ];
    if too_many_requested(message) {
        return false;
    }
    any(message, WORDS)
        || more_keys_than_stored(message)
        || numbers(message).any(|(number, rest)| {
            matches!(number, "0" | "zero") && keys_are(rest, &["remain", "left", "available", "stored"])
        })
}

/// "More keys are requested than available", "exceeds the available keys".
fn more_keys_than_stored(message: &str) -> bool {
    let more = any(message, &["more key", "exceed", "larger than", "greater than"]);
    more && any(message, &["available", "remaining", "stored", "in store", "left"])
}

/// Whether the message says that the request is for more keys than any request may ask for.
pub(crate) fn too_many_requested(message: &str) -> bool {
    any(message, &["than allowed", "per request", "per_request", "at most", "limit of"])
        && message.contains("key")
}

/// Whether the message says that a key ID is unknown.
pub(crate) fn no_such_key(message: &str) -> bool {
    message.contains("key")
        && any(message, &["not found", "unknown", "no such", "does not exist", "doesn't exist", "not exist"])
}

/// Whether the message says that an SAE is unknown.
pub(crate) fn no_such_sae(message: &str) -> bool {
    message.contains("sae")
        && any(message, &["unknown", "not found", "not registered", "does not exist", "invalid"])
}

/// Whether the message says that the named master SAE is not the key's.
pub(crate) fn other_sae(message: &str) -> bool {
    message.contains("sae")
        && !message.contains("certificate")
        && any(message, &["not match", "n't match", "doesnt match", "mismatch", "should be called by"])
}

/// Whether the message says that our certificate is refused.
pub(crate) fn certificate_refused(message: &str) -> bool {
    const REASONS: &[&str] = &[
        "not match",
        "n't match",
        "mismatch",
        "required",
        "no required",
        "invalid",
        "unknown",
        "not found",
        "error",
        "expired",
        "revoked",
        "not sent",
        "missing",
        "untrusted",
        "refused",
        "rejected",
    ];
    message.contains("certificate") && any(message, REASONS)
}

/// Whether the message says that the caller isn't authenticated.
pub(crate) fn not_authenticated(message: &str) -> bool {
    any(message, &["authentication", "not authenticated", "credential"]) || certificate_refused(message)
}

/// Whether the message says that the two KMEs no longer have the same keys.
pub(crate) fn out_of_sync(message: &str) -> bool {
    any(message, &["not sync", "n't sync", "out of sync", "unsync", "desync", "out of step", "not in sync"])
}

/// Whether the message says that the other site's KME is down.
pub(crate) fn peer_kme_down(message: &str) -> bool {
    const WHICH: &[&str] =
        &["remote", "peer", "other", "target", "destination", "slave", "partner", "opposite"];
    const WHAT: &[&str] = &["kme", "kms", "system", "node", "site", "key manag", "key provider", "server"];
    const FAILS: &[&str] = &[
        "down",
        "unreachable",
        "timeout",
        "time-out",
        "timed out",
        "fail",
        "cannot",
        "can't",
        "could not",
        "couldn't",
        "unable",
        "respond",
        "unavailable",
        "refused",
        "offline",
        "disconnect",
        "communication",
        "not reach",
    ];
    let named = WHICH.iter().any(|which| {
        message.match_indices(which).any(|(at, _)| {
            let rest: String = message[at + which.len()..].chars().take(12).collect();
            WHAT.iter().any(|what| rest.contains(what))
        })
    });
    named && any(message, FAILS) && !out_of_sync(message) && !message.contains("config")
}

/// Whether the message itself is only a guess.
pub(crate) fn supposes(message: &str) -> bool {
    any(message, &["maybe", "perhaps", "probably", "possibly"])
}

fn any(message: &str, words: &[&str]) -> bool {
    words.iter().any(|word| message.contains(word))
}

/// Returns each number, in digits or in words, and the text after it.
fn numbers(message: &str) -> impl Iterator<Item = (&str, &str)> {
    let word = |c: char| c.is_alphanumeric();
    message.match_indices(word).filter_map(move |(at, _)| {
        if message[..at].chars().next_back().is_some_and(word) {
            return None;
        }
        let end = message[at..].find(|c: char| !word(c)).map_or(message.len(), |length| at + length);
        Some((&message[at..end], &message[end..]))
    })
}

/// Whether `rest` continues with keys, after at most one other word, and one of `states`: " activated keys
/// remaining".
fn keys_are(rest: &str, states: &[&str]) -> bool {
    let mut words = rest.split_whitespace();
    let found = words.by_ref().take(2).any(|word| word.starts_with("key"));
    found && words.take(3).any(|word| states.iter().any(|state| word.starts_with(state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_meaning_is_found_in_several_forms() {
        for message in [
            "unable, because there are 0 keys remaining",
            "unable, because there are 0 activated keys remaining",
            "unable, because more keys are requested than available",
            "requesting for more keys than there are available",
            "the requested key amount exceeds the generated key count. try again later.",
            "not enough keys",
            "insufficient key material",
            "zero keys left",
            "the number of keys exceeds what is in store",
            "key pool depleted",
        ] {
            assert!(no_key_now(message), "{message}");
        }
        for message in [
            "unable, more keys requested than allowed",
            "number is larger than max_key_per_request",
            "10 keys remaining",
            "size shall be a multiple of 8",
            "number must be from 1 to 128",
        ] {
            assert!(!no_key_now(message), "{message}");
        }
    }

    #[test]
    fn a_failure_of_the_other_sites_kme_is_told_apart_from_one_of_ours() {
        for message in [
            "gateway timeout (maybe a remote kme is down)",
            "failed to send key to remote system.",
            "peer kme unreachable",
            "could not contact the target kme",
            "connection to the other site's kme timed out",
        ] {
            assert!(peer_kme_down(message), "{message}");
        }
        for message in [
            "the kme is down",
            "maybe resource on a remote kme are not synced",
            "the remote kme isn't configured, so this failed",
            "internal server error",
            "other",
            "upstream error",
        ] {
            assert!(!peer_kme_down(message), "{message}");
        }
    }
}
