//! What the admin socket tells of links and KMEs.

use serde::Serialize;

/// What a KME did since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Keys that master SAEs took.
    pub keys_taken: u64,
    /// Keys that slave SAEs fetched.
    pub keys_fetched: u64,
    /// Requests for which a link held too few bits.
    pub exhausted: u64,
    /// Requests for an ID that wasn't there.
    pub not_found: u64,
}

/// A link's supply, for the admin socket.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkStats {
    /// The KMEs or nodes that it joins.
    pub kmes: [String; 2],
    /// Secret bits a second, at the moment.
    pub bits_per_s: f64,
    /// Share of sifted bits that differ, at the moment.
    pub qber: f64,
    /// Whether it yields at the moment: no pause, and a pass is on.
    pub active: bool,
    /// Pulses that an eavesdropper measures, percent.
    pub intercepted_percent: u8,
    /// Bits in the store.
    pub stored_bits: u64,
    /// Bits that it holds at most.
    pub max_bits: u64,
    /// Bits yielded since the start.
    pub produced_bits: u64,
    /// Bits lost because the store was full.
    pub lost_bits: u64,
    /// Bits taken for keys or for carrying keys.
    pub spent_bits: u64,
}

/// What a link holds, for the admin socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkReport {
    /// The KMEs that it joins.
    pub kmes: [String; 2],
    /// Whole keys of the link's `key_size` that can be taken now.
    pub stored_key_count: u64,
    /// Keys that it holds at most.
    pub max_key_count: u64,
    /// Whether its supply is stopped.
    pub paused: bool,
}
