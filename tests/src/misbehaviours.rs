//! Every misbehaviour of `kme-sim`, and what `qvpn-ctl kms check` finds of it. The tests of running tunnels start from the
//! same table, so that none is forgotten.

/// What is found where the misbehaviour is set for status, `enc_keys` and `dec_keys`; "" where it can't be set. `fails`
/// means exit code 5, `quirk` 0, and `fine` 0 without a word.
pub type Row = (&'static str, [&'static str; 3]);

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

/// Faults of the whole port.
pub const PORT: &[(&str, &str)] = &[
    ("refuse_tcp", REACH),
    ("stall_tls", TIMEOUT),
    ("no_tls", TLS),
    ("tls12_only", "quirk tls_not_quantum_safe"),
    ("no_mlkem", "quirk tls_not_quantum_safe"),
    ("cert_v1", TLS),
    ("cert_no_san", TLS),
    ("cert_other_name", TLS),
    ("cert_expired", TLS),
    ("cert_not_yet_valid", TLS),
    ("cert_unknown_ca", TLS),
    ("cert_is_ca", TLS),
    ("client_revoked", REFUSED),
    ("client_unknown_ca", REFUSED),
    ("client_expired", REFUSED),
];

/// Faults of operations.
pub const ROWS: &[Row] = &[
    ("none", ["fine", "fine", "fine"]),
    ("hang", [TIMEOUT, LOST, TIMEOUT]),
    ("slow", ["quirk slow", "quirk slow", "quirk slow"]),
    ("close", [REACH, LOST, REACH]),
    ("lose_answer", [REACH, LOST, REACH]),
    ("cut_body", [REACH, LOST, REACH]),
    ("slow_body", [TIMEOUT, LOST, TIMEOUT]),
    ("endless_body", [BROKEN, BROKEN, BROKEN]),
    ("huge_body", [BROKEN, BROKEN, BROKEN]),
    ("html", [BROKEN, BROKEN, BROKEN]),
    ("rubbish_json", [BROKEN, BROKEN, BROKEN]),
    ("empty_body", [BROKEN, BROKEN, BROKEN]),
    ("redirect", [BROKEN, BROKEN, BROKEN]),
    ("wrong_type", ["quirk content_type", "fine", "fine"]),
    ("extra_fields", ["quirk extra_fields", "fine", "fine"]),
    ("no_get", [BAD, "fine", "fine"]),
    ("no_post", ["", "quirk only_get", "quirk only_get"]),
    ("http_400", [BAD, NONE, UNKNOWN]),
    ("http_401", [REFUSED, REFUSED, UNKNOWN]),
    ("http_403", [REFUSED, REFUSED, REFUSED]),
    ("http_404", [BAD, NONE, UNKNOWN]),
    ("http_409", [BAD, NONE, UNKNOWN]),
    ("http_412", [BAD, NONE, UNKNOWN]),
    ("http_422", [BAD, NONE, UNKNOWN]),
    ("http_429", [FAULT, NONE, FAULT]),
    ("http_500", [FAULT, FAULT, FAULT]),
    ("http_502", [FAULT, FAULT, FAULT]),
    ("http_503", [FAULT, NONE, UNKNOWN]),
    ("http_504", [FAULT, FAULT, FAULT]),
    ("error_html", [FAULT, NONE, FAULT]),
    ("error_empty", [FAULT, NONE, FAULT]),
    ("error_detail", [BAD, NONE, UNKNOWN]),
    ("error_huge", [FAULT, FAULT, FAULT]),
    ("wrong_size", ["", BROKEN, BROKEN]),
    ("empty_list", ["", NONE, UNKNOWN]),
    ("fewer_keys", ["", "quirk number_ignored", "quirk keys_missing"]),
    ("too_many_keys", ["", BROKEN, BROKEN]),
    ("duplicate", ["", BROKEN, BROKEN]),
    ("same_key", ["", BROKEN, BROKEN]),
    ("same_id", ["", BROKEN, BROKEN]),
    ("swap_keys", ["", "fails bytes_differ", "fails bytes_differ"]),
    ("unknown_id", ["", UNKNOWN, BROKEN]),
    ("wrong_bytes", ["", "fails bytes_differ", "fails bytes_differ"]),
    ("zero_keys", ["", BROKEN, BROKEN]),
    ("bad_base64", ["", BROKEN, BROKEN]),
    ("url_base64", ["", BROKEN, BROKEN]),
    ("numeric_ids", ["", BROKEN, BROKEN]),
    ("one_key_per_request", ["quirk one_key_per_request", BAD, "fine"]),
    ("ignore_number", ["", "quirk number_ignored", ""]),
    // A GET is only asked of a KME that has no POST.
    ("ignore_number_get", ["", "fine", ""]),
    ("ignore_size", ["", BROKEN, ""]),
    ("size_in_bytes", ["quirk max_key_size", BROKEN, ""]),
    ("default_32_bits", ["quirk key_size_default", "fine", ""]),
    ("odd_ids", ["", "quirk id_no_uuid", ""]),
    ("lose_first", ["", "quirk keys_missing", ""]),
    ("forget_previous", ["", "quirk keys_missing", ""]),
    ("repeat_keys", ["", BROKEN, ""]),
    ("repeat_id", ["", BROKEN, ""]),
    ("late_sync", ["", "", "quirk lag"]),
    ("forget_keys", ["", "", UNKNOWN]),
    ("deliver_twice", ["", "", "quirk delivers_twice"]),
    ("count_waiting", ["quirk stored_key_count_wrong|no_stored_keys", "", ""]),
    ("count_zero", ["quirk no_stored_keys", "", ""]),
    ("count_max", ["quirk stored_key_count_wrong", "", ""]),
    ("count_random", ["quirk stored_key_count_wrong", "", ""]),
    ("missing_fields", ["quirk status_fields_missing", "", ""]),
    ("numbers_as_text", ["quirk numbers_as_text", "", ""]),
];
