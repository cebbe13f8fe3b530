//! Checks a KME without taking a key: the connection, the certificates, and the status of a link.

use qvpn_types::SaeId;
use tokio::time::Instant;

use crate::clock::unix_seconds;
use crate::error::{KmsError, KmsErrorKind};
use crate::etsi004::client::StreamReport;
use crate::etsi014::wire::Status;
use crate::key::KEY_BITS;
use crate::probe::finding::{Finding, Probed, Step, failed, ok, quirk, slow};
use crate::skip::wire::Capabilities;
use crate::source::{Certificates, Connection, KeySource, Link};

/// A certificate that expires sooner is reported.
const CERTIFICATE_WARNING_DAYS: i64 = 30;
const SECONDS_PER_DAY: i64 = 86_400;

/// The result of a status check.
pub struct StatusReport {
    /// The findings, in the order of the steps.
    pub findings: Vec<Finding>,
    /// The link, if the KME reported it.
    pub link: Option<Link>,
}

/// Connects and asks for the status of the link to `peer_sae`. `own_sae` is our SAE ID at this KME.
pub async fn check_status(probed: Probed<'_>, own_sae: &str, peer_sae: &SaeId) -> StatusReport {
    let source = probed.source();
    let began = Instant::now();
    let answer = match probed {
        Probed::Etsi014(client) => {
            client.status(peer_sae).await.map(|status| (status.link(), KmeDetails::Status(Box::new(status))))
        }
        Probed::Etsi004(client) => match client.link(peer_sae).await {
            Ok(link) => client.try_stream(peer_sae).await.map(|report| (link, KmeDetails::Stream(report))),
            Err(error) => Err(error),
        },
        Probed::Skip(client) => client
            .capabilities(peer_sae)
            .await
            .map(|details| (details.link(peer_sae.as_str()), KmeDetails::Capabilities(details))),
        Probed::Other(source) => source.link(peer_sae).await.map(|link| (link, KmeDetails::Nothing)),
    };
    let mut findings = Vec::new();
    findings.extend(slow(Step::Status, began, source).filter(|_| answer.is_ok()));
    let connection = source.connection();
    if let Some(connection) = &connection {
        connection_findings(connection, &source.certificates(), &mut findings);
    }
    let link = match answer {
        Ok((link, details)) => {
            if !matches!(details, KmeDetails::Stream(_)) {
                findings.push(link_finding(&link));
            }
            match &details {
                KmeDetails::Status(status) => status_findings(status, own_sae, peer_sae, &mut findings),
                KmeDetails::Capabilities(details) => capabilities_findings(details, own_sae, &mut findings),
                KmeDetails::Stream(report) => stream_findings(report, &mut findings),
                KmeDetails::Nothing => {}
            }
            Some(link)
        }
        Err(error) => {
            let on_the_way = connection.is_none_or(|connection| connection.tls.is_none());
            findings.push(failed(step_of(&error, on_the_way), &error));
            None
        }
    };
    findings.sort_by_key(|finding| finding.step);
    StatusReport { findings, link }
}

/// What a KME reports besides the link.
enum KmeDetails {
    Status(Box<Status>),
    Capabilities(Capabilities),
    Stream(StreamReport),
    Nothing,
}

fn step_of(error: &KmsError, on_the_way: bool) -> Step {
    use crate::error::{Phase, TlsFault};
    match error.kind() {
        KmsErrorKind::IdentityRefused => Step::Identity,
        KmsErrorKind::Tls(TlsFault::NothingInCommon | TlsFault::NotTls | TlsFault::Other)
        | KmsErrorKind::Timeout(Phase::Tls) => Step::Tls,
        KmsErrorKind::Tls(_) => Step::Certificate,
        KmsErrorKind::Unreachable | KmsErrorKind::Timeout(_) | KmsErrorKind::Config if on_the_way => {
            Step::Reach
        }
        _ => Step::Status,
    }
}

/// Returns the findings about the connection and the certificates.
fn connection_findings(connection: &Connection, certificates: &Certificates, findings: &mut Vec<Finding>) {
    if let (Some(address), Some(took)) = (connection.address, connection.connected_in) {
        findings.push(ok(Step::Reach, "tcp", format!("{address} answers in {} ms", took.as_millis())));
    }
    if let Some(tls) = &connection.tls {
        let text = format!("{}, {}, {}", tls.version, tls.group, tls.suite);
        findings.push(match tls.quantum_safe {
            true => ok(Step::Tls, "tls", text),
            false => quirk(
                Step::Tls,
                "tls_not_quantum_safe",
                format!(
                    "{text}: an attacker who records this connection can read its keys later with a \
                         quantum computer"
                ),
                "ask the KME's vendor for TLS 1.3 with X25519MLKEM768, and keep the way to the KME inside \
                 the site",
            ),
        });
    }
    // A refused certificate is reported with its error.
    if let (Some(certificate), Some(_)) = (&connection.certificate, &connection.tls) {
        let text = format!(
            "the KME's, {} for {}, issued by {}, {}",
            certificate.subject,
            if certificate.names.is_empty() { "no name".to_owned() } else { certificate.names.join(", ") },
            certificate.issuer,
            expiry(certificate.not_after)
        );
        findings.push(expiry_finding(
            certificate.not_after,
            "kme_certificate",
            text,
            "renew the KME's certificate",
        ));
    }
    if let Some(end) = certificates.own_not_after {
        let who = certificates.own.as_ref();
        let who = who
            .map_or_else(String::new, |(name, serial)| format!(", {name} with the serial number {serial},"));
        let text = format!("ours{who} {}", expiry(end));
        findings.push(expiry_finding(
            end,
            "own_certificate",
            text,
            "have our certificate renewed and put it into cert_file",
        ));
    }
    if let Some(end) = certificates.ca_not_after.filter(|end| days_left(*end) < CERTIFICATE_WARNING_DAYS) {
        let text = format!("the CA's in ca_file {}", expiry(end));
        findings.push(expiry_finding(
            end,
            "ca_certificate",
            text,
            "put the CA's new certificate into ca_file",
        ));
    }
}

/// Formats an expiry: "ends in 30 days", "expired 2 days ago".
fn expiry(end: i64) -> String {
    let plural = |days: i64| if days == 1 { "day" } else { "days" };
    match days_left(end) {
        days if days < 0 => {
            let ago = unix_seconds().saturating_sub(end).div_euclid(SECONDS_PER_DAY);
            format!("expired {ago} {} ago", plural(ago))
        }
        days => format!("ends in {days} {}", plural(days)),
    }
}

fn days_left(end: i64) -> i64 {
    end.saturating_sub(unix_seconds()).div_euclid(SECONDS_PER_DAY)
}

fn expiry_finding(end: i64, code: &'static str, text: String, advice: &str) -> Finding {
    match days_left(end) < CERTIFICATE_WARNING_DAYS {
        true => quirk(Step::Certificate, "certificate_ends_soon", text, advice),
        false => ok(Step::Certificate, code, text),
    }
}

fn link_finding(link: &Link) -> Finding {
    let name = |name: &str| if name.is_empty() { "?".to_owned() } else { name.to_owned() };
    let stored = link.stored_key_count.map_or(String::new(), |n| format!(", {n} keys"));
    let text = format!("{} linked with {}{stored}", name(&link.source_kme), name(&link.target_kme));
    ok(Step::Status, "status", text)
}

/// Findings about a stream that was opened and closed (ETSI GS QKD 004 clause 6).
fn stream_findings(report: &StreamReport, findings: &mut Vec<Finding>) {
    let StreamReport { dialect, counter_proposal, peer_missing, close_status } = report;
    let text = format!("a key stream was opened and closed, in the dialect \"{dialect}\"");
    findings.push(ok(Step::Status, "stream", text));
    if let Some(proposal) = counter_proposal {
        let text = format!("the KME made a counter-proposal, which qvpn takes: {proposal}");
        findings.push(quirk(Step::Status, "counter_proposal", text, "nothing to do: keys have 256 bits"));
    }
    if *peer_missing {
        let text = "the KME says that the other site's application isn't connected";
        let advice = "nothing to do if a key can be taken; a KME that gives keys only to two connected \
                      applications can't be used by qvpn over this interface";
        findings.push(quirk(Step::Status, "peer_not_connected", text, advice));
    }
    if *close_status != 0 {
        let text = format!("CLOSE gives status {close_status} for the stream that was just opened");
        let advice = "ask the vendor: streams may stay open until their TTL";
        findings.push(quirk(Step::Status, "close_refused", text, advice));
    }
}

/// Returns the findings about capabilities (draft-cisco-skip-02 section 4.1).
fn capabilities_findings(details: &Capabilities, own_sae: &str, findings: &mut Vec<Finding>) {
    let Capabilities { algorithm, local_system_id, missing, .. } = details;
    if !algorithm.is_empty() {
        let text = format!("it makes keys by \"{algorithm}\", by its own words");
        findings.push(ok(Step::Status, "algorithm", text));
    }
    if !missing.is_empty() {
        let text = format!("the capabilities lack {}", missing.join(", "));
        findings.push(quirk(
            Step::Status,
            "status_fields_missing",
            text,
            "nothing to do: qvpn continues without them",
        ));
    }
    findings.push(if local_system_id == own_sae {
        ok(Step::Identity, "identity", format!("the key provider calls itself {own_sae}"))
    } else if local_system_id.is_empty() {
        quirk(
            Step::Identity,
            "identity_untold",
            "the key provider doesn't say what it is called",
            "ask its operator; the other site needs the name as its peer's sae_id",
        )
    } else {
        let text = format!("the key provider calls itself {local_system_id}, our config says {own_sae}");
        let advice =
            "if it is right, write its name as sae_id into [kms], and at the other site as its peer's \
             sae_id";
        quirk(Step::Identity, "identity_other", text, advice)
    });
}

/// Checks whether the KME knows us by our SAE ID.
fn identity_finding(status: &Status, own_sae: &str) -> Finding {
    if status.master_sae_id == own_sae {
        ok(Step::Identity, "identity", format!("the KME knows us as SAE {own_sae}"))
    } else if status.master_sae_id.is_empty() {
        quirk(
            Step::Identity,
            "identity_untold",
            "the status doesn't say as whom the KME knows us",
            "compare the SAE ID with the KME's operator; a key that can't be fetched at the other site is \
             the sign of a wrong one",
        )
    } else {
        let text = format!("the KME knows us as SAE {}, our config says {own_sae}", status.master_sae_id);
        let advice = "if the KME is right, write its name for us as sae_id into this [[kms.kme]]; otherwise \
                      use the certificate that was issued for our SAE ID";
        quirk(Step::Identity, "identity_other", text, advice)
    }
}

/// Adds the findings about a status (ETSI GS QKD 014 clause 6.1).
fn status_findings(status: &Status, own_sae: &str, peer_sae: &SaeId, findings: &mut Vec<Finding>) {
    findings.push(identity_finding(status, own_sae));
    let mut odd = |code, text: String, advice: &str| findings.push(quirk(Step::Status, code, text, advice));
    if !status.missing.is_empty() {
        let fields = status.missing.join(", ");
        odd(
            "status_fields_missing",
            format!("the status lacks {fields}"),
            "nothing to do: qvpn continues without them",
        );
    }
    if status.numbers_as_text {
        let text = "numbers of the status come as text".to_owned();
        odd("numbers_as_text", text, "nothing to do: qvpn reads them");
    }
    if !status.unknown.is_empty() {
        let text =
            format!("the status has fields that the document doesn't know: {}", status.unknown.join(", "));
        odd("extra_fields", text, "nothing to do: qvpn ignores them");
    }
    if let Some(kind) = &status.content_type {
        let text = format!("answers are called {kind} instead of application/json");
        odd("content_type", text, "nothing to do: qvpn looks at the content");
    }
    if !status.slave_sae_id.is_empty() && status.slave_sae_id != peer_sae.as_str() {
        let text = format!("the status is about SAE {}, and {peer_sae} was asked for", status.slave_sae_id);
        odd("status_other_sae", text, "compare the peer's sae_id with the KME's operator");
    }
    if !status.source_kme_id.is_empty() && status.source_kme_id == status.target_kme_id {
        let text = format!("both KMEs of the link are called {}", status.source_kme_id);
        odd(
            "status_same_kme",
            text,
            "with one KME for a peer it does no harm; with several, ask the vendor for distinct KME IDs",
        );
    }
    let bits = u64::from(KEY_BITS);
    if let Some(size) = status.key_size.filter(|size| *size != bits) {
        let text = format!("keys have {size} bits where nothing is asked for");
        odd("key_size_default", text, "nothing to do: qvpn always asks for 256");
    }
    if let Some(most) = status.max_key_per_request.filter(|most| *most < 2) {
        let text = format!("max_key_per_request is {most}: each key needs a request of its own");
        odd(
            "one_key_per_request",
            text,
            "nothing to do; at short rekey intervals the KME gets many requests",
        );
    }
    if status.stored_key_count == Some(0) {
        odd(
            "no_stored_keys",
            "the KME says that it holds no key; some always say so".to_owned(),
            "if no key can be taken either, ask the KME's operator about the link",
        );
    }
    if let (Some(stored), Some(max)) = (status.stored_key_count, status.max_key_count)
        && stored > max
    {
        let text = format!("the KME says that it holds {stored} keys, and at most {max}");
        odd("stored_more_than_max", text, "nothing to do: qvpn decides nothing on these numbers");
    }
    if let Some(serde_json::Value::Object(fields)) = &status.extension {
        let names: Vec<String> = fields.keys().take(8).map(|name| crate::excerpt::one_line(name)).collect();
        findings.push(ok(Step::Status, "status_extension", format!("it also tells {}", names.join(", "))));
    }
    for (size, too, code) in [
        (status.max_key_size.filter(|max| *max < bits), "at most", "max_key_size"),
        (status.min_key_size.filter(|min| *min > bits), "at least", "min_key_size"),
    ] {
        let Some(size) = size else { continue };
        let in_bytes = if size.saturating_mul(8) >= bits && code == "max_key_size" {
            "; perhaps it counts in bytes, where the document says bits"
        } else {
            ""
        };
        let text =
            format!("{code} is {size}: keys have {too} {size} bits, and qvpn asks for {bits}{in_bytes}");
        let advice = "have the KME's operator allow keys of 256 bits; whether they come, taking one shows";
        findings.push(quirk(Step::Status, code, text, advice));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_has_the_right_sign() {
        let now = unix_seconds();
        for (end, text) in [
            (now + 30 * SECONDS_PER_DAY + 100, "ends in 30 days"),
            (now + SECONDS_PER_DAY + 100, "ends in 1 day"),
            (now + 100, "ends in 0 days"),
            (now - 100, "expired 0 days ago"),
            (now - SECONDS_PER_DAY - 100, "expired 1 day ago"),
            (now - 30 * SECONDS_PER_DAY - 100, "expired 30 days ago"),
        ] {
            assert_eq!(expiry(end), text);
        }
    }
}
