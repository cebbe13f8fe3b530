//! The simulator's TOML file as it is written: its fields and their defaults. What the values mean is checked elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use crate::supply::Optics;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) admin: Option<PathBuf>,
    pub(super) time_scale: Option<Spanned<f64>>,
    #[serde(default)]
    pub(super) node: Vec<RawNode>,
    #[serde(default)]
    pub(super) kme: Vec<RawKme>,
    #[serde(default)]
    pub(super) sae: Vec<RawSae>,
    #[serde(default)]
    pub(super) link: Vec<RawLink>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKme {
    pub(super) name: Spanned<String>,
    pub(super) listen: Spanned<String>,
    pub(super) cert_file: PathBuf,
    pub(super) key_file: PathBuf,
    pub(super) client_ca_file: PathBuf,
    pub(super) apis: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default = "max_key_per_request")]
    pub(super) max_key_per_request: Spanned<u32>,
    #[serde(default = "min_key_size")]
    pub(super) min_key_size: Spanned<u32>,
    #[serde(default = "max_key_size")]
    pub(super) max_key_size: Spanned<u32>,
    #[serde(default = "max_sae_id_count")]
    pub(super) max_sae_id_count: u32,
    #[serde(default = "max_waiting_keys")]
    pub(super) max_waiting_keys: Spanned<u32>,
    #[serde(default)]
    pub(super) extensions: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(super) refuse_optional_extensions: bool,
    #[serde(default)]
    pub(super) relay: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNode {
    pub(super) name: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPasses {
    pub(super) lasts: Spanned<String>,
    pub(super) every: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOptics {
    pub(super) length_km: f64,
    #[serde(default = "loss_db_per_km")]
    pub(super) loss_db_per_km: f64,
    #[serde(default)]
    pub(super) extra_loss_db: f64,
    #[serde(default = "detector_efficiency")]
    pub(super) detector_efficiency: f64,
    #[serde(default = "dark_count")]
    pub(super) dark_count: f64,
    #[serde(default = "mean_photons")]
    pub(super) mean_photons: f64,
    #[serde(default = "misalignment")]
    pub(super) misalignment: f64,
    #[serde(default = "pulses_per_s")]
    pub(super) pulses_per_s: f64,
    #[serde(default = "useful_share")]
    pub(super) useful_share: f64,
    #[serde(default = "error_correction")]
    pub(super) error_correction: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSae {
    pub(super) id: Spanned<String>,
    pub(super) kme: Spanned<String>,
    pub(super) serial: Option<Spanned<String>>,
    pub(super) known_by: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLink {
    pub(super) kmes: Spanned<Vec<Spanned<String>>>,
    #[serde(default = "key_size")]
    pub(super) key_size: Spanned<u32>,
    pub(super) rate_bits_per_s: Option<Spanned<u64>>,
    pub(super) qber: Option<Spanned<f64>>,
    pub(super) optics: Option<Spanned<RawOptics>>,
    pub(super) block_bits: Option<Spanned<u64>>,
    pub(super) passes: Option<RawPasses>,
    #[serde(default)]
    pub(super) nodes: u16,
    #[serde(default = "max_keys")]
    pub(super) max_keys: u64,
    pub(super) initial_keys: Option<Spanned<u64>>,
    pub(super) relay_delay: Option<Spanned<String>>,
    pub(super) seed: Option<Spanned<String>>,
}

fn max_key_per_request() -> Spanned<u32> {
    Spanned::new(0..0, 128)
}
fn min_key_size() -> Spanned<u32> {
    Spanned::new(0..0, 64)
}
fn max_key_size() -> Spanned<u32> {
    Spanned::new(0..0, 1024)
}
fn max_sae_id_count() -> u32 {
    4
}
fn max_waiting_keys() -> Spanned<u32> {
    Spanned::new(0..0, 10_000)
}
fn key_size() -> Spanned<u32> {
    Spanned::new(0..0, 256)
}
fn max_keys() -> u64 {
    1000
}
// Standard fibre at 1550 nm, and devices as they can be bought.
fn loss_db_per_km() -> f64 {
    0.2
}
fn detector_efficiency() -> f64 {
    0.2
}
fn dark_count() -> f64 {
    1e-6
}
fn mean_photons() -> f64 {
    0.4
}
fn misalignment() -> f64 {
    0.02
}
fn pulses_per_s() -> f64 {
    1e9
}
fn useful_share() -> f64 {
    0.2
}
fn error_correction() -> f64 {
    Optics::ERROR_CORRECTION
}
