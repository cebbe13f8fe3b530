//! Chooses the QKD key that the initiator names in its next attempt.

use qvpn_types::{KeyId, QkdPolicy, Time};

use super::context::Context;
use crate::epochs::Epochs;
use crate::kms::KeyKind;
use crate::stock::InitiatorStock;

/// The choice for the next attempt.
pub enum KeyChoice {
    /// Use the key with this ID.
    Named(KeyId),
    Without,
    Wait {
        until: Option<Time>,
        reason: String,
    },
}

/// Chooses by the agreed policy and by the keys that both sites hold.
pub fn choose_key(stock: &InitiatorStock, ctx: &Context<'_>, epochs: &Epochs) -> KeyChoice {
    let Some(agreement) = ctx.agreement() else {
        return KeyChoice::Wait { until: None, reason: String::new() };
    };
    if agreement.policy == QkdPolicy::Off {
        return KeyChoice::Without;
    }
    let (qkd, file) = (stock.usable(KeyKind::Qkd), stock.usable(KeyKind::File));
    if let Some((id, _)) = qkd.or(file.filter(|_| !ctx.qkd_only())) {
        return KeyChoice::Named(id.clone());
    }
    let fault = stock.fault().map_or("waiting for the first keys of the KMEs", |f| f.text.as_str());
    if agreement.policy == QkdPolicy::Required {
        let reason = format!("no QKD key that both sites hold, and qkd = \"required\": {fault}");
        return KeyChoice::Wait { until: None, reason };
    }
    let until = epochs.last_qkd.unwrap_or(epochs.started) + agreement.interval * 2;
    if ctx.now >= until {
        return KeyChoice::Without;
    }
    KeyChoice::Wait { until: Some(until), reason: format!("no QKD key that both sites hold: {fault}") }
}
