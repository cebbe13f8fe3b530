//! Reports of links and KMEs for the admin socket.

use serde::Serialize;

/// A KME's counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Keys that master SAEs took.
    pub keys_taken: u64,
    /// Keys that slave SAEs fetched.
    pub keys_fetched: u64,
    /// Requests for which a link held too few bits.
    pub exhausted: u64,
    /// Requests for an unknown ID.
    pub not_found: u64,
}

/// A link's supply.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkStats {
    /// The KMEs or nodes that it joins.
    pub kmes: [String; 2],
    /// Secret bits a second, at the moment.
    pub bits_per_s: f64,
    /// Share of sifted bits that differ, at the moment.
    pub qber: f64,
    /// Whether it yields bits at the moment: it isn't paused, and a pass is in progress.
    pub active: bool,
    /// Pulses that an eavesdropper measures, percent.
    pub intercepted_percent: u8,
    /// Bits in the store.
    pub stored_bits: u64,
    /// The capacity of the store, bits.
    pub max_bits: u64,
    /// Bits yielded since the start.
    pub produced_bits: u64,
    /// Bits lost because the store was full.
    pub lost_bits: u64,
    /// Bits taken for keys or for relaying keys.
    pub spent_bits: u64,
}

/// A link's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkReport {
    /// The KMEs that it joins.
    pub kmes: [String; 2],
    /// Whole keys of the link's `key_size` that can be taken now.
    pub stored_key_count: u64,
    /// The capacity of the store, keys.
    pub max_key_count: u64,
    /// Whether its supply is paused.
    pub paused: bool,
}
