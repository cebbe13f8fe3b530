//! Checks the values of the simulator's TOML file and collects all errors.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use crate::config::model::{Apis, Config, KmeConfig, KnownBy, LinkConfig, SaeConfig};
use crate::config::problem::Problem;
use crate::config::raw::{Raw, RawKme, RawLink, RawOptics, RawSae};
use crate::supply::{Optics, Passes, Source, Supply};

/// The error rate of a link with a constant rate.
const DEFAULT_QBER: f64 = 0.02;
const MAX_TIME_SCALE: f64 = 1e6;

const MAX_KEY_BITS: u32 = 65_536;
/// RFC 5280's bound on a common name.
const MAX_NAME_CHARS: usize = 64;

/// The smallest and the largest key, bits, of each KME by its name.
type KeySizes = BTreeMap<String, (u32, u32)>;

/// Turns the raw file into a [`Config`] and collects errors.
pub(crate) struct Check<'a> {
    pub(crate) text: &'a str,
    pub(crate) file: &'a str,
    pub(crate) directory: &'a Path,
    pub(crate) problems: Vec<Problem>,
}

impl Check<'_> {
    pub(crate) fn problem(&mut self, at: usize, message: impl Into<String>) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            message: message.into(),
        });
    }

    pub(crate) fn config(&mut self, raw: Raw) -> Config {
        if raw.kme.is_empty() {
            self.problem(0, "there is no [[kme]]; a simulator needs at least one");
        }
        let mut names = BTreeMap::new();
        let kmes = raw.kme.into_iter().map(|k| self.kme(k, &mut names)).collect();
        let mut ids = BTreeSet::new();
        let mut serials = BTreeSet::new();
        let saes = raw.sae.into_iter().map(|s| self.sae(s, &names, &mut ids, &mut serials)).collect();
        let mut nodes = BTreeSet::new();
        for node in raw.node {
            self.name(&node.name, "a node's name");
            let name = node.name.get_ref();
            if names.contains_key(name) || !nodes.insert(name.clone()) {
                self.problem(node.name.span().start, format!("the name {name:?} is taken"));
            }
        }
        let mut pairs = BTreeSet::new();
        let mut seeds = BTreeSet::new();
        let mut links = Vec::new();
        for raw in raw.link {
            let between = raw.nodes;
            let link = self.link(raw, &names, &nodes, &mut pairs, &mut seeds);
            links.extend(hops(link, between));
        }
        // The nodes of chains are added last, so that the file can't name them.
        let ends = links.iter().flat_map(|l| l.kmes.iter()).filter(|n| !names.contains_key(*n));
        nodes.extend(ends.cloned());
        let time_scale = raw.time_scale.map_or(1.0, |scale| {
            if !(scale.get_ref() > &0.0 && scale.get_ref() <= &MAX_TIME_SCALE) {
                let message = format!(
                    "time_scale is above 0 and at most {MAX_TIME_SCALE}; 60 makes a minute of each second"
                );
                self.problem(scale.span().start, message);
            }
            scale.into_inner()
        });
        Config { time_scale, nodes, admin: raw.admin.map(|p| self.directory.join(p)), kmes, saes, links }
    }

    fn kme(&mut self, raw: RawKme, names: &mut KeySizes) -> KmeConfig {
        self.name(&raw.name, "a KME's name");
        let sizes = (*raw.min_key_size.get_ref(), *raw.max_key_size.get_ref());
        if names.insert(raw.name.get_ref().clone(), sizes).is_some() {
            let message = format!("the name {:?} is taken by another [[kme]]", raw.name.get_ref());
            self.problem(raw.name.span().start, message);
        }
        let listen = raw.listen.get_ref().parse().unwrap_or_else(|_| {
            self.problem(
                raw.listen.span().start,
                format!(
                    "{:?} is no address and port; write, e.g., \"127.0.0.1:8443\" or \"[::1]:8443\"",
                    raw.listen.get_ref()
                ),
            );
            SocketAddr::from(([127, 0, 0, 1], 0))
        });
        let (min, max) = sizes;
        self.key_size(&raw.min_key_size, "min_key_size");
        self.key_size(&raw.max_key_size, "max_key_size");
        if min > max {
            let at = raw.min_key_size.span().start.max(raw.max_key_size.span().start);
            self.problem(at, format!("min_key_size {min} is above max_key_size {max}"));
        }
        if *raw.max_key_per_request.get_ref() == 0 {
            self.problem(raw.max_key_per_request.span().start, "max_key_per_request must be at least 1");
        }
        if *raw.max_waiting_keys.get_ref() == 0 {
            self.problem(raw.max_waiting_keys.span().start, "max_waiting_keys must be at least 1");
        }
        KmeConfig {
            name: raw.name.into_inner(),
            listen,
            cert_file: self.directory.join(raw.cert_file),
            key_file: self.directory.join(raw.key_file),
            client_ca_file: self.directory.join(raw.client_ca_file),
            apis: raw
                .apis
                .map_or(Apis { etsi014: true, etsi004: false, skip: false }, |apis| self.apis(apis)),
            max_key_per_request: raw.max_key_per_request.into_inner(),
            min_key_size: min,
            max_key_size: max,
            max_sae_id_count: raw.max_sae_id_count,
            max_waiting_keys: raw.max_waiting_keys.into_inner(),
            extensions: raw.extensions,
            refuse_optional_extensions: raw.refuse_optional_extensions,
            relay: raw.relay,
        }
    }

    fn apis(&mut self, raw: Spanned<Vec<Spanned<String>>>) -> Apis {
        let mut apis = Apis { etsi014: false, etsi004: false, skip: false };
        for name in raw.get_ref() {
            match name.get_ref().as_str() {
                "etsi014" => apis.etsi014 = true,
                "etsi004" => apis.etsi004 = true,
                "skip" => apis.skip = true,
                other => self.problem(
                    name.span().start,
                    format!(
                        "there is no interface {other:?}; write \"etsi014\", \"etsi004\", \"skip\" or \
                         several of them"
                    ),
                ),
            }
        }
        if raw.get_ref().is_empty() {
            self.problem(
                raw.span().start,
                "apis is empty; write \"etsi014\", \"etsi004\", \"skip\" or several",
            );
        }
        apis
    }

    fn sae(
        &mut self,
        raw: RawSae,
        kmes: &KeySizes,
        ids: &mut BTreeSet<String>,
        serials: &mut BTreeSet<Vec<u8>>,
    ) -> SaeConfig {
        self.name(&raw.id, "an SAE ID");
        self.known_kme(&raw.kme, kmes);
        if !ids.insert(raw.id.get_ref().clone()) {
            self.problem(
                raw.id.span().start,
                format!("the ID {:?} is taken by another [[sae]]", raw.id.get_ref()),
            );
        }
        let at = raw.serial.as_ref().map_or(0, |serial| serial.span().start);
        let known_by = self.known_by(raw.serial, raw.known_by);
        if let KnownBy::Serial(serial) | KnownBy::Both(serial) = &known_by
            && !serial.is_empty()
            && !serials.insert(serial.clone())
        {
            self.problem(at, "another [[sae]] has this serial number; each certificate has its own");
        }
        SaeConfig { id: raw.id.into_inner(), kme: raw.kme.into_inner(), known_by }
    }

    /// Without `known_by`, a serial number is sufficient.
    fn known_by(&mut self, serial: Option<Spanned<String>>, known_by: Option<Spanned<String>>) -> KnownBy {
        let at = known_by.as_ref().or(serial.as_ref()).map_or(0, |text| text.span().start);
        let word = known_by.as_ref().map_or("", |word| word.get_ref());
        match (serial.map(|serial| self.serial(&serial)), word) {
            (None, "" | "name") => KnownBy::Name,
            (Some(serial), "" | "serial") => KnownBy::Serial(serial),
            (Some(serial), "both") => KnownBy::Both(serial),
            (None, "serial" | "both") => {
                self.problem(
                    at,
                    format!("known_by = {word:?} needs the certificate's serial number as serial"),
                );
                KnownBy::Name
            }
            (Some(_), "name") => {
                self.problem(at, "with known_by = \"name\" the serial number counts for nothing; remove one");
                KnownBy::Name
            }
            _ => {
                self.problem(at, format!("known_by is \"name\", \"serial\" or \"both\", not {word:?}"));
                KnownBy::Name
            }
        }
    }

    /// A certificate's serial number as `openssl x509 -serial` prints it, with or without colons.
    fn serial(&mut self, text: &Spanned<String>) -> Vec<u8> {
        let mut digits = text.get_ref().replace(':', "");
        if !digits.len().is_multiple_of(2) {
            digits.insert(0, '0');
        }
        match data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()) {
            Ok(bytes) if bytes.iter().any(|byte| *byte != 0) && bytes.len() <= 20 => {
                bytes.into_iter().skip_while(|byte| *byte == 0).collect()
            }
            _ => {
                self.problem(
                    text.span().start,
                    "serial is up to 20 bytes in hex, as openssl x509 -noout -serial -in CERT prints it",
                );
                Vec::new()
            }
        }
    }

    fn link(
        &mut self,
        raw: RawLink,
        kmes: &KeySizes,
        nodes: &BTreeSet<String>,
        pairs: &mut BTreeSet<[String; 2]>,
        seeds: &mut BTreeSet<Vec<u8>>,
    ) -> LinkConfig {
        let at = raw.kmes.span().start;
        for kme in raw.kmes.get_ref().iter().filter(|name| !nodes.contains(name.get_ref())) {
            self.known_kme(kme, kmes);
        }
        let source = self.source(raw.rate_bits_per_s, raw.qber, raw.optics, at);
        let block_bits = raw.block_bits.map_or(1, |bits| {
            if *bits.get_ref() == 0 {
                self.problem(bits.span().start, "block_bits must be at least 1");
            }
            bits.into_inner()
        });
        let passes = raw.passes.map(|passes| {
            let at = passes.lasts.span().start;
            let passes = Passes { lasts: self.duration(&passes.lasts), every: self.duration(&passes.every) };
            if passes.lasts.is_zero() || passes.lasts > passes.every {
                self.problem(at, "a pass lasts longer than nothing, and no longer than from one to the next");
            }
            passes
        });
        let ends: Vec<String> = raw.kmes.into_inner().into_iter().map(Spanned::into_inner).collect();
        let ends = <[String; 2]>::try_from(ends).unwrap_or_else(|ends| {
            self.problem(at, format!("a link joins two KMEs, not {}", ends.len()));
            [String::new(), String::new()]
        });
        if ends[0] == ends[1] && !ends[0].is_empty() {
            self.problem(at, "a link joins two different KMEs");
        }
        let mut pair = ends.clone();
        pair.sort();
        if !pairs.insert(pair) && !ends[0].is_empty() {
            self.problem(at, format!("there is another link between {} and {}", ends[0], ends[1]));
        }

        let size = *raw.key_size.get_ref();
        self.key_size(&raw.key_size, "key_size");
        for end in &ends {
            if let Some((min, max)) = kmes.get(end)
                && min <= max
                && !(*min..=*max).contains(&size)
            {
                let at = if raw.key_size.span().is_empty() { at } else { raw.key_size.span().start };
                self.problem(at, format!("key_size {size} is outside what {end} allows, {min} to {max}"));
            }
        }
        let initial_keys = raw.initial_keys.as_ref().map_or(0, |n| *n.get_ref());
        if let Some(n) = raw.initial_keys.as_ref().filter(|_| initial_keys > raw.max_keys) {
            let message = format!("initial_keys {initial_keys} is above max_keys {}", raw.max_keys);
            self.problem(n.span().start, message);
        }
        LinkConfig {
            kmes: ends,
            key_size: size.max(8),
            supply: Supply { source, block_bits, passes },
            max_keys: raw.max_keys,
            initial_keys,
            relay_delay: raw.relay_delay.map_or(Duration::ZERO, |d| self.duration(&d)),
            seed: raw.seed.and_then(|s| self.seed(&s, seeds)),
        }
    }

    /// Reads either a constant rate or the optics.
    fn source(
        &mut self,
        rate: Option<Spanned<u64>>,
        qber: Option<Spanned<f64>>,
        optics: Option<Spanned<RawOptics>>,
        at: usize,
    ) -> Source {
        if let (Some(qber), Some(_)) = (&qber, &optics) {
            self.problem(qber.span().start, "qber is of a constant rate; the optics have their own");
        }
        match (rate, optics) {
            (Some(rate), None) => {
                let share = qber.map_or(DEFAULT_QBER, |qber| {
                    if !(0.0..=0.5).contains(qber.get_ref()) {
                        self.problem(qber.span().start, "qber is a share: from 0 to 0.5");
                    }
                    qber.into_inner()
                });
                Source::Constant { bits_per_s: rate.into_inner(), qber: share }
            }
            (None, Some(optics)) => Source::Optics(self.optics(optics)),
            (Some(rate), Some(_)) => {
                self.problem(rate.span().start, "a link has rate_bits_per_s or optics, not both");
                Source::Constant { bits_per_s: 0, qber: 0.0 }
            }
            (None, None) => {
                self.problem(at, "a link needs rate_bits_per_s, or optics = { length_km = … }");
                Source::Constant { bits_per_s: 0, qber: 0.0 }
            }
        }
    }

    fn optics(&mut self, raw: Spanned<RawOptics>) -> Optics {
        let at = raw.span().start;
        let raw = raw.into_inner();
        for (name, value, most) in [
            ("length_km", raw.length_km, 1e5),
            ("loss_db_per_km", raw.loss_db_per_km, 1e3),
            ("extra_loss_db", raw.extra_loss_db, 1e3),
            ("detector_efficiency", raw.detector_efficiency, 1.0),
            ("dark_count", raw.dark_count, 1.0),
            ("mean_photons", raw.mean_photons, 10.0),
            ("misalignment", raw.misalignment, 0.5),
            ("pulses_per_s", raw.pulses_per_s, 1e12),
            ("useful_share", raw.useful_share, 1.0),
            ("error_correction", raw.error_correction, 10.0),
        ] {
            if !(0.0..=most).contains(&value) {
                self.problem(at, format!("{name} of the optics is from 0 to {most}, not {value}"));
            }
        }
        Optics {
            length_km: raw.length_km,
            loss_db_per_km: raw.loss_db_per_km,
            extra_loss_db: raw.extra_loss_db,
            detector_efficiency: raw.detector_efficiency,
            dark_count: raw.dark_count,
            mean_photons: raw.mean_photons,
            misalignment: raw.misalignment,
            pulses_per_s: raw.pulses_per_s,
            useful_share: raw.useful_share,
            error_correction: raw.error_correction,
        }
    }

    /// Checks a name or SAE ID: it must fit a certificate's common name and be visible in a log line.
    fn name(&mut self, name: &Spanned<String>, what: &str) {
        let value = name.get_ref();
        if value.is_empty() || value.chars().count() > MAX_NAME_CHARS || value.chars().any(char::is_control) {
            self.problem(
                name.span().start,
                format!("{what} has 1 to {MAX_NAME_CHARS} characters and no control characters"),
            );
        }
    }

    fn known_kme(&mut self, name: &Spanned<String>, kmes: &KeySizes) {
        if !kmes.contains_key(name.get_ref()) {
            let known = kmes.keys().cloned().collect::<Vec<_>>().join(", ");
            self.problem(
                name.span().start,
                format!("there is no [[kme]] named {:?}; there are: {known}", name.get_ref()),
            );
        }
    }

    fn key_size(&mut self, size: &Spanned<u32>, what: &str) {
        let bits = *size.get_ref();
        if bits == 0 || !bits.is_multiple_of(8) || bits > MAX_KEY_BITS {
            self.problem(
                size.span().start,
                format!("{what} is in bits: a multiple of 8 from 8 to {MAX_KEY_BITS}, not {bits}"),
            );
        }
    }

    fn duration(&mut self, text: &Spanned<String>) -> Duration {
        parse_duration(text.get_ref()).unwrap_or_else(|| {
            self.problem(
                text.span().start,
                format!("{:?} is no duration; write, e.g., \"250ms\", \"2s\" or \"1m\"", text.get_ref()),
            );
            Duration::ZERO
        })
    }

    fn seed(&mut self, text: &Spanned<String>, seeds: &mut BTreeSet<Vec<u8>>) -> Option<Vec<u8>> {
        let at = text.span().start;
        let seed = match data_encoding::HEXLOWER_PERMISSIVE.decode(text.get_ref().as_bytes()) {
            Ok(seed) if (1..=64).contains(&seed.len()) => seed,
            _ => {
                self.problem(at, "seed is 1 to 64 bytes in hex, e.g. \"00112233\"");
                return None;
            }
        };
        if !seeds.insert(seed.clone()) {
            self.problem(at, "another link has this seed, so both would give out the same keys; change one");
        }
        Some(seed)
    }
}

/// Returns the hops of a link over `nodes` trusted nodes, each like `link`. Only the first has its seed,
/// since keys are made there and relayed by the rest.
fn hops(link: LinkConfig, nodes: u16) -> Vec<LinkConfig> {
    let [a, b] = link.kmes.clone();
    let name = |n: u16| match n {
        0 => a.clone(),
        n if n == nodes.saturating_add(1) => b.clone(),
        n => format!("{a}/{b}/{n}"),
    };
    (0..=nodes)
        .map(|n| {
            let seed = link.seed.clone().filter(|_| n == 0);
            LinkConfig { kmes: [name(n), name(n.saturating_add(1))], seed, ..link.clone() }
        })
        .collect()
}

/// Parses `250ms`, `2s`, `1m` or `1h`: a whole number and a unit.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}
