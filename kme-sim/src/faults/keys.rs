//! Faults in the keys of an answer: which keys and IDs it has, and how they are encoded.

use crate::api::{DeliveredKey, KeyStyle, Op};
use crate::faults::catalog::Misbehaviour;
use crate::link::{NoRandomness, random_id, random_key};

/// Applies a fault to the keys of an answer.
pub(crate) fn corrupt(how: Misbehaviour, op: Op, keys: &mut Vec<DeliveredKey>) -> Result<(), NoRandomness> {
    match how {
        Misbehaviour::WrongSize => {
            for key in keys {
                key.key.truncate(key.key.len().saturating_sub(1));
            }
        }
        // At the master, fewer keys were already taken.
        Misbehaviour::FewerKeys if op == Op::DecKeys => keys.truncate((keys.len() / 2).max(1)),
        Misbehaviour::Duplicate => {
            if let Some(first) = keys.first().map(DeliveredKey::duplicate) {
                set_second(keys, first);
            }
        }
        Misbehaviour::SameKey => {
            if let Some(mut same) = keys.first().map(DeliveredKey::duplicate) {
                same.id = match keys.get(1) {
                    Some(second) => second.id.clone(),
                    None => random_id()?,
                };
                set_second(keys, same);
            }
        }
        Misbehaviour::SameId => {
            if let Some(id) = keys.first().map(|k| k.id.clone()) {
                match keys.get_mut(1) {
                    Some(second) => second.id = id,
                    None => {
                        let key = random_key(keys[0].key.len())?;
                        keys.push(DeliveredKey { id, key });
                    }
                }
            }
        }
        Misbehaviour::SwapKeys => {
            if let [first, second, ..] = keys.as_mut_slice() {
                std::mem::swap(&mut first.key, &mut second.key);
            }
        }
        Misbehaviour::UnknownId => {
            for key in keys {
                key.id = random_id()?;
            }
        }
        Misbehaviour::WrongBytes => {
            for key in keys {
                key.key = random_key(key.key.len())?;
            }
        }
        Misbehaviour::ZeroKeys => {
            for key in keys {
                key.key.expose_mut().fill(0);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Returns the encoding of the keys of an answer.
pub(crate) fn style(how: Misbehaviour) -> KeyStyle {
    match how {
        Misbehaviour::BadBase64 => KeyStyle::BadBase64,
        Misbehaviour::UrlBase64 => KeyStyle::UrlBase64,
        Misbehaviour::NumericIds => KeyStyle::NumericIds,
        Misbehaviour::ExtraFields => KeyStyle::ExtraFields,
        _ => KeyStyle::Right,
    }
}

/// Replaces the second key by `key`, or appends it to a single key.
fn set_second(keys: &mut Vec<DeliveredKey>, key: DeliveredKey) {
    match keys.get_mut(1) {
        Some(second) => *second = key,
        None => keys.push(key),
    }
}
