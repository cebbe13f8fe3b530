//! Checks a key request against a KME's limits and extensions.

use serde_json::{Value, json};

use crate::api::KeyRequest;
use crate::config::KmeConfig;
use crate::faults::request::Limits;
use crate::refusal::{
    MANDATORY_UNMET, MANDATORY_UNSUPPORTED, OPTIONAL_UNHANDLED, Refusal, SIZE_MULTIPLE_OF_8,
};

/// Returns the number of keys and their size in bits.
pub(crate) fn checked_amount(limits: &Limits, request: &KeyRequest) -> Result<(u64, u64), Refusal> {
    let number = request.number.unwrap_or(1);
    let most = limits.max_keys;
    if number == 0 || number > u64::from(most) {
        return Err(Refusal::bad(format!("number must be from 1 to {most}")));
    }
    let size = request.size.unwrap_or_else(|| u64::from(limits.default_size));
    if !size.is_multiple_of(8) {
        return Err(Refusal::bad(SIZE_MULTIPLE_OF_8));
    }
    let (min, max) = (limits.min_size, limits.max_size);
    if size < u64::from(min) || size > u64::from(max) {
        return Err(Refusal::bad(format!("size must be from {min} to {max} bits")));
    }
    let most = limits.max_sae_ids;
    if request.additional_slave_sae_ids.len() > usize::try_from(most).unwrap_or(usize::MAX) {
        return Err(Refusal::bad(format!("additional_slave_SAE_IDs must have at most {most} entries")));
    }
    Ok((number, size))
}

/// Checks that the KME supports each extension and its value.
pub(crate) fn check_extensions(config: &KmeConfig, request: &KeyRequest) -> Result<(), Refusal> {
    let of = |extensions: &[serde_json::Map<String, Value>], wanted: Support| -> Vec<Value> {
        let pairs = extensions.iter().flatten();
        pairs.filter(|(n, v)| support(config, n, v) == wanted).map(|(n, _)| json!({ "name": n })).collect()
    };
    let refuse = |message: &str, details| Err(Refusal::BadRequest { message: message.to_owned(), details });
    let unknown = of(&request.extension_mandatory, Support::Unknown);
    if !unknown.is_empty() {
        return refuse(MANDATORY_UNSUPPORTED, unknown);
    }
    let unmet = of(&request.extension_mandatory, Support::Unmet);
    if !unmet.is_empty() {
        return refuse(MANDATORY_UNMET, unmet);
    }
    let mut ignored = of(&request.extension_optional, Support::Unknown);
    ignored.extend(of(&request.extension_optional, Support::Unmet));
    if config.refuse_optional_extensions && !ignored.is_empty() {
        return refuse(OPTIONAL_UNHANDLED, ignored);
    }
    Ok(())
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Support {
    Met,
    Unmet,
    Unknown,
}

fn support(config: &KmeConfig, name: &str, value: &Value) -> Support {
    match config.extensions.get(name) {
        None => Support::Unknown,
        Some(values) if values.iter().any(|v| value.as_str() == Some(v)) => Support::Met,
        Some(_) => Support::Unmet,
    }
}
