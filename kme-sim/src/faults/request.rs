//! Faults in the processing of a request: limits, sizes and IDs that differ from the standard. The functions
//! are pure.

use std::time::Duration;

use crate::api::{KeyRequest, Status};
use crate::config::KmeConfig;
use crate::faults::catalog::Misbehaviour;
use crate::link::{NoRandomness, random_bytes};

/// The delay of a key at the slave's KME under [`Misbehaviour::LateSync`].
pub(crate) const LATE_SYNC_DELAY: Duration = Duration::from_secs(3);
/// The default size under [`Misbehaviour::Default32Bits`], bits.
const SMALL_DEFAULT_BITS: u32 = 32;
/// The size of every key under [`Misbehaviour::IgnoreSize`], bits.
const FIXED_SIZE_BITS: u64 = 128;

/// What a KME allows in one request; sizes in bits.
pub(crate) struct Limits {
    pub(crate) max_keys: u32,
    pub(crate) min_size: u32,
    pub(crate) max_size: u32,
    pub(crate) default_size: u32,
    pub(crate) max_sae_ids: u32,
}

impl Limits {
    /// Returns the limits of `config`, changed by `fault`. `key_size` is the link's.
    pub(crate) fn new(config: &KmeConfig, key_size: u32, fault: Misbehaviour) -> Self {
        let mut limits = Self {
            max_keys: config.max_key_per_request,
            min_size: config.min_key_size,
            max_size: config.max_key_size,
            default_size: key_size,
            max_sae_ids: config.max_sae_id_count,
        };
        match fault {
            Misbehaviour::OneKeyPerRequest => limits.max_keys = 1,
            Misbehaviour::Default32Bits => {
                limits.default_size = SMALL_DEFAULT_BITS;
                limits.min_size = limits.min_size.min(SMALL_DEFAULT_BITS);
            }
            _ => {}
        }
        limits
    }
}

/// Applies `fault` to `number` and `size` (bits) of a valid request.
pub(crate) fn amount(fault: Misbehaviour, request: &KeyRequest, number: u64, size: u64) -> (u64, u64) {
    match fault {
        Misbehaviour::IgnoreNumber => (1, size),
        Misbehaviour::IgnoreNumberGet if request.by_get => (1, size),
        Misbehaviour::IgnoreSize => (number, FIXED_SIZE_BITS),
        Misbehaviour::SizeInBytes if request.size.is_some() => (number, size.saturating_mul(8)),
        // At the master, the other keys are not taken.
        Misbehaviour::FewerKeys => ((number / 2).max(1), size),
        _ => (number, size),
    }
}

/// Applies `fault` to the values of a status.
pub(crate) fn status(fault: Misbehaviour, status: &mut Status) -> Result<(), NoRandomness> {
    match fault {
        Misbehaviour::CountZero => status.stored_key_count = 0,
        Misbehaviour::CountMax => status.stored_key_count = status.max_key_count,
        Misbehaviour::CountRandom => {
            let mut random = [0; 8];
            random_bytes(&mut random)?;
            status.stored_key_count = u64::from_be_bytes(random) >> 40;
        }
        Misbehaviour::SizeInBytes => {
            for size in [&mut status.key_size, &mut status.min_key_size, &mut status.max_key_size] {
                *size /= 8;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Returns an ID with characters that URLs and JSON escape.
pub(crate) fn odd_id(id: &str) -> String {
    format!("Key/{}+\"{}\" =?&%41é#{}", id.to_uppercase(), "x".repeat(60), id)
}
