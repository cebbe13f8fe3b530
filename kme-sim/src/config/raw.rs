//! The fields of the simulator's TOML file and their defaults. The values are checked elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use crate::supply::Optics;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    pub(crate) admin: Option<PathBuf>,
    pub(crate) time_scale: Option<Spanned<f64>>,
    #[serde(default)]
    pub(crate) node: Vec<RawNode>,
    #[serde(default)]
    pub(crate) kme: Vec<RawKme>,
    #[serde(default)]
    pub(crate) sae: Vec<RawSae>,
    #[serde(default)]
    pub(crate) link: Vec<RawLink>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawKme {
    pub(crate) name: Spanned<String>,
    pub(crate) listen: Spanned<String>,
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
    pub(crate) client_ca_file: PathBuf,
    pub(crate) apis: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default = "max_key_per_request")]
    pub(crate) max_key_per_request: Spanned<u32>,
    #[serde(default = "min_key_size")]
    pub(crate) min_key_size: Spanned<u32>,
    #[serde(default = "max_key_size")]
    pub(crate) max_key_size: Spanned<u32>,
    #[serde(default = "max_sae_id_count")]
    pub(crate) max_sae_id_count: u32,
    #[serde(default = "max_waiting_keys")]
    pub(crate) max_waiting_keys: Spanned<u32>,
    #[serde(default)]
    pub(crate) extensions: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub(crate) refuse_optional_extensions: bool,
    #[serde(default)]
    pub(crate) relay: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNode {
    pub(crate) name: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPasses {
    pub(crate) lasts: Spanned<String>,
    pub(crate) every: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawOptics {
    pub(crate) length_km: f64,
    #[serde(default = "loss_db_per_km")]
    pub(crate) loss_db_per_km: f64,
    #[serde(default)]
    pub(crate) extra_loss_db: f64,
    #[serde(default = "detector_efficiency")]
    pub(crate) detector_efficiency: f64,
    #[serde(default = "dark_count")]
    pub(crate) dark_count: f64,
    #[serde(default = "mean_photons")]
    pub(crate) mean_photons: f64,
    #[serde(default = "misalignment")]
    pub(crate) misalignment: f64,
    #[serde(default = "pulses_per_s")]
    pub(crate) pulses_per_s: f64,
    #[serde(default = "useful_share")]
    pub(crate) useful_share: f64,
    #[serde(default = "error_correction")]
    pub(crate) error_correction: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawSae {
    pub(crate) id: Spanned<String>,
    pub(crate) kme: Spanned<String>,
    pub(crate) serial: Option<Spanned<String>>,
    pub(crate) known_by: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLink {
    pub(crate) kmes: Spanned<Vec<Spanned<String>>>,
    #[serde(default = "key_size")]
    pub(crate) key_size: Spanned<u32>,
    pub(crate) rate_bits_per_s: Option<Spanned<u64>>,
    pub(crate) qber: Option<Spanned<f64>>,
    pub(crate) optics: Option<Spanned<RawOptics>>,
    pub(crate) block_bits: Option<Spanned<u64>>,
    pub(crate) passes: Option<RawPasses>,
    #[serde(default)]
    pub(crate) nodes: u16,
    #[serde(default = "max_keys")]
    pub(crate) max_keys: u64,
    pub(crate) initial_keys: Option<Spanned<u64>>,
    pub(crate) relay_delay: Option<Spanned<String>>,
    pub(crate) seed: Option<Spanned<String>>,
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
// The loss of standard fibre at 1550 nm; the other defaults are those of devices on the market.
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
