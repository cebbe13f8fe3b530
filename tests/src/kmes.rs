//! The two KMEs: one `kme-sim` with a QKD link between them, and the lab's certificates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::binaries::binary;
use crate::lab::{Lab, Site};
use crate::process::Process;

/// Options of the KMEs.
#[derive(Debug, Clone)]
pub struct KmeOptions {
    /// Rate of the QKD link, bits a second.
    pub rate_bits_per_s: u64,
    /// Keys of 256 bits in the store at the start.
    pub initial_keys: u64,
    /// Time until a key is at the other KME, such as `500ms`.
    pub relay_delay: Option<String>,
    /// The APIs that both offer, as TOML.
    pub apis: &'static str,
    /// Seed of the keys, in hex, which makes them computable; see [`test_key`].
    pub seed: Option<String>,
    /// Lines for the top of the config, such as `time_scale = 60`.
    pub top: String,
    /// Lines for the link instead of rate and initial keys, such as a preset's.
    pub link: Option<String>,
}

impl Default for KmeOptions {
    /// Enough for any scenario: 1,000 keys at the start, and 100 a second.
    fn default() -> Self {
        Self {
            rate_bits_per_s: 25_600,
            initial_keys: 1000,
            relay_delay: None,
            apis: "[\"etsi014\"]",
            seed: None,
            top: String::new(),
            link: None,
        }
    }
}

/// The running KMEs.
pub struct Kmes {
    /// The `kme-sim`.
    pub process: Process,
    admin: PathBuf,
}

impl Lab {
    /// Returns the directory of the lab's CA and certificates, made at the first call: `ca.pem`, and `.pem`
    /// and `.key` of `kme-a1`, `kme-b1`, `site-a`, `site-b`.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        let dir = Path::new("/run/lab/certs").to_owned();
        if !dir.exists() {
            let mut command = Command::new(binary("kme-sim"));
            command.arg("certs").arg(&dir);
            for site in Site::BOTH {
                let address = site.kme_address().split(':').next().unwrap();
                command.args(["--kme", &format!("{}={address}", site.kme()), "--sae", site.sae()]);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "kme-sim certs: {}", String::from_utf8_lossy(&output.stderr));
        }
        dir
    }

    /// Starts both KMEs and waits until they listen.
    ///
    /// # Panics
    /// If they don't within 10 s.
    #[must_use]
    #[track_caller]
    pub fn start_kmes(&self, options: &KmeOptions) -> Kmes {
        let certificates = self.certificates();
        let admin = self.kme.dir().join("admin.sock");
        let mut config = format!("admin = \"{}\"\n{}\n", admin.display(), options.top);
        for site in Site::BOTH {
            let (kme, sae, address) = (site.kme(), site.sae(), site.kme_address());
            let certs = certificates.display();
            config += &format!(
                "[[kme]]\nname = \"{kme}\"\nlisten = \"{address}\"\ncert_file = \"{certs}/{kme}.pem\"\n\
                 key_file = \"{certs}/{kme}.key\"\nclient_ca_file = \"{certs}/ca.pem\"\napis = {}\n\
                 [[sae]]\nid = \"{sae}\"\nkme = \"{kme}\"\n",
                options.apis,
            );
        }
        config += "[[link]]\nkmes = [\"kme-a1\", \"kme-b1\"]\nkey_size = 256\n";
        if let Some(delay) = &options.relay_delay {
            config += &format!("relay_delay = \"{delay}\"\n");
        }
        if let Some(seed) = &options.seed {
            config += &format!("seed = \"{seed}\"\n");
        }
        // Last, since these lines may begin tables of their own.
        config += &options.link.clone().unwrap_or_else(|| {
            format!(
                "rate_bits_per_s = {}\ninitial_keys = {}\n",
                options.rate_bits_per_s, options.initial_keys
            )
        });
        let file = self.kme.dir().join("kme-sim.toml");
        std::fs::write(&file, config).unwrap();
        let mut process = self.kme.spawn(binary("kme-sim"), &["--config", &file.display().to_string()]);
        // The last of its "listening" lines.
        process.line("listening admin", Duration::from_secs(10));
        Kmes { process, admin }
    }
}

impl Kmes {
    /// Returns the path of the admin socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.admin
    }

    /// Sends a command to the simulator and returns its output. Examples are `["misbehave", "kme-a1",
    /// "enc_keys", "hang"]` and `["pause-link", "kme-a1", "kme-b1"]`.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn admin(&self, words: &[&str]) -> String {
        let output =
            Command::new(binary("kme-sim")).arg("admin").arg(&self.admin).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Returns key `n` of a link with this seed, and its ID. They are computed from kme-sim's documentation of
/// `seed`, so that a test knows which bytes must not be in memory.
#[must_use]
pub fn test_key(seed: &[u8], n: u64) -> ([u8; 32], String) {
    let hash = |label: &str| -> [u8; 32] {
        Sha256::new().chain_update(label).chain_update(seed).chain_update(n.to_be_bytes()).finalize().into()
    };
    let mut id: [u8; 16] = hash("kme-sim test key id")[..16].try_into().unwrap();
    // A UUID of version 8, RFC 9562 section 5.8.
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    (hash("kme-sim test key"), id)
}

#[cfg(test)]
mod tests {
    /// The same vector as in kme-sim, computed with Python's hashlib.
    #[test]
    fn keys_and_ids_are_those_of_the_simulator() {
        let (key, id) = super::test_key(&[1, 2], 7);
        assert_eq!(key[..8], [0xdd, 0xc5, 0x07, 0x37, 0xe7, 0xad, 0x7c, 0xf9]);
        assert_eq!(id, "170a1e9c-9a64-8378-b83c-6ea17d15fc26");
    }
}
