//! Our own `Hello`.

use std::time::Duration;

use sha2::{Digest, Sha384};

use crate::config::PeerConfig;
use crate::key_schedule::psk_check;
use crate::wire::{Hello, MessageId};

/// Our `Hello` in force.
pub struct OwnHello {
    pub bytes: Vec<u8>,
    pub hash: [u8; 48],
    pub message_id: Option<MessageId>,
    pub counter: u64,
}

impl OwnHello {
    pub fn new(config: &PeerConfig, instance: [u8; 16], counter: u64) -> Self {
        let hello = Hello {
            instance,
            counter,
            role: config.role,
            suite: config.suite,
            lanes: config.lanes,
            policy: config.policy,
            interval_ms: millis(config.rekey_interval),
            min_interval_ms: millis(config.min_rekey_interval),
            sae_own: config.sae_local.clone(),
            sae_peer: config.sae_remote.clone(),
            psk_check: config.psk.as_ref().map(|psk| psk_check(psk.secret(), &instance)),
            encapsulation_key: Box::new(*config.local.encapsulation_key()),
        };
        let bytes = hello.to_bytes();
        Self { hash: Sha384::digest(&bytes).into(), bytes, message_id: None, counter }
    }
}

/// Returns an interval as `Hello` carries it.
fn millis(interval: Duration) -> u32 {
    u32::try_from(interval.as_millis()).unwrap_or(120_000).clamp(100, 120_000)
}
