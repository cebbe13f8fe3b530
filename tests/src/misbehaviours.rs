//! Every misbehaviour of `kme-sim`, and what `qvpn-ctl kms check` reports about it. The tests of running
//! tunnels use the same table, so that none is left out.

/// The result when the misbehaviour is set for status, `enc_keys` and `dec_keys`; "" where it can't be set.
/// `fails` means exit code 5, `quirk` means 0 with a remark, `fine` means 0 without one. The last field has
/// the possible texts of the report, separated by `|`.
pub type Row = (&'static str, [&'static str; 3], &'static str);

const REACH: &str = "fails unreachable";
const TIMEOUT: &str = "fails timeout";
const LOST: &str = "fails lost_keys";
const BROKEN: &str = "fails protocol_violation";
const REFUSED: &str = "fails identity_refused";
const BAD: &str = "fails bad_request";
const NONE: &str = "fails exhausted";
const UNKNOWN: &str = "fails key_not_found";
const FAULT: &str = "fails server_fault";
const TLS: &str = "fails tls";
const PROXY: &str = "fails proxy";
const PEER: &str = "fails peer_kme_down";

/// Faults of the whole port, their result, and the text of the report.
pub const PORT: &[(&str, &str, &str)] = &[
    ("refuse_tcp", REACH, "refused"),
    ("stall_tls", TIMEOUT, "in the TLS handshake"),
    ("no_tls", TLS, "doesn't speak TLS"),
    ("tls12_only", "quirk tls_not_quantum_safe", "TLSv1_2"),
    ("no_mlkem", "quirk tls_not_quantum_safe", "TLSv1_3, X25519,"),
    ("cert_v1", TLS, "X.509 version 1"),
    ("cert_no_san", TLS, "has no subject alternative name"),
    ("cert_other_name", TLS, "is for kme-of-another-site"),
    ("cert_expired", TLS, "has expired"),
    ("cert_not_yet_valid", TLS, "isn't valid before"),
    ("cert_unknown_ca", TLS, "holds no such CA"),
    ("cert_is_ca", TLS, "uses a CA certificate"),
    ("client_revoked", REFUSED, "CertificateRevoked"),
    ("client_unknown_ca", REFUSED, "UnknownCA"),
    ("client_expired", REFUSED, "CertificateExpired"),
];

/// Faults of operations.
pub const ROWS: &[Row] = &[
    ("none", ["fine", "fine", "fine"], ""),
    ("hang", [TIMEOUT, LOST, TIMEOUT], "while waiting for the answer"),
    ("slow", ["quirk slow", "quirk slow", "quirk slow"], "the answer took 3"),
    ("close", [REACH, LOST, REACH], "closed the connection while waiting for the answer"),
    ("lose_answer", [REACH, LOST, REACH], "closed the connection while waiting for the answer"),
    ("cut_body", [REACH, LOST, REACH], "while reading the answer"),
    ("slow_body", [TIMEOUT, LOST, TIMEOUT], "while reading the answer"),
    ("endless_body", [BROKEN, BROKEN, BROKEN], "larger than 1048576 bytes"),
    ("huge_body", [BROKEN, BROKEN, BROKEN], "larger than 1048576 bytes"),
    ("html", [BROKEN, BROKEN, BROKEN], "the body is a web page"),
    ("rubbish_json", [BROKEN, BROKEN, BROKEN], "the JSON ends too early"),
    ("empty_body", [BROKEN, BROKEN, BROKEN], "the body is empty"),
    ("redirect", [BROKEN, BROKEN, BROKEN], "a redirect to https://kme.invalid/"),
    ("wrong_type", ["quirk content_type", "fine", "fine"], "called text/plain"),
    (
        "extra_fields",
        ["quirk extra_fields", "fine", "fine"],
        "fields that the document doesn't know: status, vendor",
    ),
    ("no_get", [BAD, "fine", "fine"], "HTTP 405"),
    ("no_post", ["", "quirk only_get", "quirk only_get"], "by POST is refused"),
    ("http_400", [BAD, NONE, UNKNOWN], "HTTP 400"),
    ("http_401", [REFUSED, REFUSED, UNKNOWN], "HTTP 401"),
    ("http_403", [REFUSED, REFUSED, REFUSED], "HTTP 403"),
    ("http_404", [BAD, NONE, UNKNOWN], "HTTP 404"),
    ("http_409", [BAD, NONE, UNKNOWN], "HTTP 409"),
    ("http_412", [BAD, NONE, UNKNOWN], "HTTP 412"),
    ("http_422", [BAD, NONE, UNKNOWN], "HTTP 422"),
    ("http_429", [FAULT, NONE, FAULT], "HTTP 429"),
    ("http_500", [FAULT, FAULT, FAULT], "HTTP 500"),
    ("http_502", [FAULT, FAULT, FAULT], "HTTP 502"),
    ("http_503", [FAULT, NONE, UNKNOWN], "HTTP 503"),
    ("http_504", [FAULT, FAULT, FAULT], "HTTP 504"),
    ("error_html", [PROXY, PROXY, PROXY], "a web server answers, not the KME: it says \"Sign in"),
    ("peer_kme_down", [PEER, PEER, PEER], "the other site's KME is down"),
    ("proxy_nginx", [PROXY, PROXY, PROXY], "nginx answers, not the KME"),
    ("proxy_haproxy", [PROXY, PROXY, PROXY], "HAProxy answers, not the KME"),
    ("proxy_envoy", [PROXY, PROXY, PROXY], "Envoy answers, not the KME"),
    ("proxy_certificate", [REFUSED, REFUSED, REFUSED], "nginx answers, not the KME"),
    ("error_empty", [FAULT, NONE, FAULT], "HTTP 503"),
    ("error_detail", [BAD, NONE, UNKNOWN], "HTTP 422: it says"),
    ("error_huge", [FAULT, FAULT, FAULT], "HTTP 500: it says \"error error"),
    ("wrong_size", ["", BROKEN, BROKEN], "has 31 bytes"),
    ("empty_list", ["", NONE, UNKNOWN], "an empty list came"),
    (
        "fewer_keys",
        ["", "quirk number_ignored", "quirk keys_missing"],
        "1 key came where 2 were asked for|doesn't know 2 of 3 keys|doesn't know 1 of 3 keys",
    ),
    ("too_many_keys", ["", BROKEN, BROKEN], "10000 keys came"),
    ("duplicate", ["", BROKEN, BROKEN], "came twice|2 keys came and 1 were asked"),
    ("same_key", ["", BROKEN, BROKEN], "have the same bytes|2 keys came and 1 were asked"),
    ("same_id", ["", BROKEN, BROKEN], "came twice|2 keys came and 1 were asked"),
    ("swap_keys", ["", "fails bytes_differ", "fails bytes_differ"], "has other bytes at"),
    ("unknown_id", ["", UNKNOWN, BROKEN], "doesn't know the key|wasn't asked for"),
    ("wrong_bytes", ["", "fails bytes_differ", "fails bytes_differ"], "has other bytes at"),
    ("zero_keys", ["", BROKEN, BROKEN], "has only zero bytes"),
    ("bad_base64", ["", BROKEN, BROKEN], "isn't base64"),
    ("url_base64", ["", BROKEN, BROKEN], "isn't base64"),
    ("numeric_ids", ["", BROKEN, BROKEN], "another type than the document says"),
    ("one_key_per_request", ["quirk one_key_per_request", BAD, "fine"], "max_key_per_request is 1|HTTP 400"),
    ("ignore_number", ["", "quirk number_ignored", ""], "1 key came where 2 were asked for"),
    // GET is used only with a KME that does not accept POST.
    ("ignore_number_get", ["", "fine", ""], ""),
    ("ignore_size", ["", BROKEN, ""], "has 16 bytes, and 256 bits were asked"),
    (
        "size_in_bytes",
        ["quirk max_key_size", BROKEN, ""],
        "perhaps it counts in bytes|the KME takes sizes for bytes",
    ),
    (
        "default_32_bits",
        ["quirk key_size_default", "fine", ""],
        "keys have 32 bits where nothing is asked for",
    ),
    ("odd_ids", ["", "quirk id_no_uuid", ""], "key IDs are no UUIDs"),
    ("lose_first", ["", "quirk keys_missing", ""], "doesn't know 2 of 3 keys|doesn't know 1 of 3 keys"),
    ("forget_previous", ["", "quirk keys_missing", ""], "doesn't know 2 of 3 keys"),
    ("repeat_keys", ["", BROKEN, ""], "was delivered before"),
    ("repeat_id", ["", BROKEN, ""], "stood over another key before"),
    ("late_sync", ["", "", "quirk lag"], "knew the keys only after"),
    ("forget_keys", ["", "", UNKNOWN], "doesn't know the key"),
    ("deliver_twice", ["", "", "quirk delivers_twice"], "a second time"),
    (
        "count_waiting",
        ["quirk stored_key_count_wrong|no_stored_keys", "", ""],
        "stored_key_count went from|it holds no key",
    ),
    ("count_zero", ["quirk no_stored_keys", "", ""], "it holds no key"),
    ("count_max", ["quirk stored_key_count_wrong", "", ""], "stored_key_count went from"),
    ("count_random", ["quirk stored_key_count_wrong", "", ""], "stored_key_count went from"),
    ("missing_fields", ["quirk status_fields_missing", "", ""], "the status lacks master_SAE_ID"),
    ("numbers_as_text", ["quirk numbers_as_text", "", ""], "come as text"),
];

/// Whether `text` contains one of `words`, which are separated by `|`.
#[must_use]
pub fn says(text: &str, words: &str) -> bool {
    words.split('|').any(|words| text.contains(words))
}
