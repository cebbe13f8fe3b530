//! Ready-made configs, each modelled on a published network. Each file names the source of its numbers.

/// A config with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// The name in `kme-sim preset show NAME`.
    pub name: &'static str,
    /// The config, for certificates that `kme-sim certs` makes in the same directory.
    pub toml: &'static str,
}

/// All presets.
pub const PRESETS: &[Preset] = &[
    Preset { name: "defence-50km", toml: include_str!("../presets/defence-50km.toml") },
    Preset { name: "metro-ring", toml: include_str!("../presets/metro-ring.toml") },
    Preset { name: "backbone-2000km", toml: include_str!("../presets/backbone-2000km.toml") },
    Preset { name: "satellite", toml: include_str!("../presets/satellite.toml") },
    Preset { name: "bank-25km", toml: include_str!("../presets/bank-25km.toml") },
    Preset { name: "three-countries", toml: include_str!("../presets/three-countries.toml") },
];

impl Preset {
    /// Returns the preset of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        PRESETS.iter().copied().find(|preset| preset.name == name)
    }

    /// Returns a description: the first line of its file.
    #[must_use]
    pub fn about(self) -> &'static str {
        self.toml.lines().next().unwrap_or_default().trim_start_matches("# ")
    }
}
