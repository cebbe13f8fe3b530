//! KMEs on loopback, for tests of keys that need no networks behind the gateways.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::binaries::binary;
use crate::gateway::{ctl_pipe, write_secret};
use crate::kmes::test_key;
use crate::process::Process;

/// What one `kme-sim` on loopback runs.
#[derive(Debug, Clone, Copy)]
pub struct Vendor<'a> {
    /// Each KME's name, and the SAE that it serves.
    pub kmes: &'a [(&'a str, &'a str)],
    /// The pairs that have a link.
    pub links: &'a [[&'a str; 2]],
    /// The interfaces, as TOML.
    pub apis: &'a str,
    /// The seed of a link's keys is this text and the link's number; see [`test_key`].
    pub seed: [u8; 4],
}

impl Vendor<'_> {
    /// Returns one pair, `kme-a1` and `kme-b1`, for SITE-A and SITE-B.
    #[must_use]
    pub fn pair(seed: [u8; 4]) -> Self {
        Vendor {
            kmes: &[("kme-a1", "SITE-A"), ("kme-b1", "SITE-B")],
            links: &[["kme-a1", "kme-b1"]],
            apis: "[\"etsi014\"]",
            seed,
        }
    }
}

/// A running `kme-sim`. Each link has [`KEYS`] keys and generates no more.
pub struct Loopback {
    /// Its directory, with the certificates: `ca.pem`, and `.pem` and `.key` of each KME and of each SAE in
    /// lower case.
    pub dir: PathBuf,
    /// The process.
    pub sim: Process,
    addresses: BTreeMap<String, String>,
    seeds: Vec<Vec<u8>>,
}

/// Keys of a link at the start.
pub const KEYS: u64 = 1000;
const LIMIT: Duration = Duration::from_secs(20);

/// Returns the standard output of a program that must succeed.
///
/// # Panics
/// With the program's output, if it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Brings the loopback interface up; in a new network namespace it is down.
///
/// # Panics
/// If that isn't allowed.
#[track_caller]
pub fn loopback_up() {
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
}

impl Loopback {
    /// Starts the KMEs and waits until they listen. `name` is the name of their directory.
    ///
    /// # Panics
    /// If they don't.
    #[must_use]
    #[track_caller]
    pub fn start(name: &str, vendor: &Vendor<'_>) -> Self {
        let dir = PathBuf::from("/run/lab").join(name);
        let mut certs = Command::new(binary("kme-sim"));
        certs.arg("certs").arg(&dir);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut config = "admin = \"admin.sock\"\n".to_owned();
        for (kme, sae) in vendor.kmes {
            certs.args(["--kme", &format!("{kme}=127.0.0.1"), "--sae", sae]);
            config += &format!(
                "[[kme]]\nname = \"{kme}\"\nlisten = \"127.0.0.1:0\"\ncert_file = \"{kme}.pem\"\nkey_file \
                 = \"{kme}.key\"\n\
                 client_ca_file = \"ca.pem\"\napis = {}\n[[sae]]\nid = \"{sae}\"\nkme = \"{kme}\"\n",
                vendor.apis
            );
        }
        let mut seeds = Vec::new();
        for (n, kmes) in vendor.links.iter().enumerate() {
            let seed = [&vendor.seed[..], &[u8::try_from(n).unwrap()]].concat();
            config += &format!(
                "[[link]]\nkmes = {kmes:?}\nrate_bits_per_s = 0\ninitial_keys = {KEYS}\nseed = \"{}\"\n",
                hex(&seed)
            );
            seeds.push(seed);
        }
        run(&mut certs);
        fs::write(dir.join("kmes.toml"), config).unwrap();
        let mut command = Command::new(binary("kme-sim"));
        command.arg("--config").arg(dir.join("kmes.toml"));
        let mut sim = Process::spawn(format!("kme-sim {name}"), &mut command);
        let mut url = |kme: &str| {
            let line = sim.line(&format!("listening {kme} "), LIMIT);
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let addresses = vendor.kmes.iter().map(|(kme, _)| ((*kme).to_owned(), url(kme))).collect();
        sim.line("listening admin", LIMIT);
        Self { dir, sim, addresses, seeds }
    }

    /// Kills the simulator and starts it again at the same addresses. It has forgotten all keys, and makes
    /// others.
    ///
    /// # Panics
    /// If it doesn't listen again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.sim.signal(Signal::SIGKILL);
        let _ = self.sim.wait(LIMIT);
        let file = self.dir.join("kmes.toml");
        let mut config = fs::read_to_string(&file).unwrap();
        for address in self.addresses.values() {
            config = config.replacen("127.0.0.1:0", address, 1);
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for seed in self.seeds.clone() {
            let other: Vec<u8> = seed.iter().map(|byte| !byte).collect();
            config = config.replace(&hex(&seed), &hex(&other));
            self.seeds.push(other);
        }
        fs::write(&file, config).unwrap();
        let mut command = Command::new(binary("kme-sim"));
        self.sim = Process::spawn("kme-sim again", command.arg("--config").arg(file));
        self.sim.line("listening admin", LIMIT);
    }

    /// Sends a command to the simulator; returns its output.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn admin(&self, words: &[&str]) -> String {
        let socket = self.dir.join("admin.sock");
        run(Command::new(binary("kme-sim")).arg("admin").arg(socket).args(words))
    }

    /// Makes a KME misbehave.
    #[track_caller]
    pub fn misbehave(&self, kme: &str, op: &str, how: &str) {
        self.admin(&["misbehave", kme, op, how]);
    }

    /// Returns the `[[kms.kme]]` section with which `sae` reaches `kme`; `api` as in the config.
    #[must_use]
    pub fn source(&self, kme: &str, api: &str, sae: &str) -> String {
        let (dir, stem) = (self.dir.display(), sae.to_lowercase());
        let scheme = if api == "etsi004" { "tls" } else { "https" };
        let url = format!("{scheme}://{}", self.addresses[kme]);
        format!(
            "[[kms.kme]]\nname = \"{kme}\"\napi = \"{api}\"\nurl = \"{url}\"\nca_file = \"{dir}/ca.pem\"\n\
             cert_file = \"{dir}/{stem}.pem\"\nkey_file = \"{dir}/{stem}.key\"\n"
        )
    }

    /// Checks that neither a delivered key nor its first half is in `text` or in the simulator's log. More
    /// than `least` key IDs, which are public, must be there, as a sign that keys were delivered.
    ///
    /// # Panics
    /// If one is.
    #[track_caller]
    pub fn assert_no_keys(&self, text: &str, least: usize) {
        let text = text.to_owned() + &self.sim.log();
        let lower = text.to_lowercase();
        let mut seen = 0;
        for (seed, n) in self.seeds.iter().flat_map(|seed| (0..KEYS).map(move |n| (seed, n))) {
            let (key, id) = test_key(seed, n);
            seen += usize::from(text.contains(&id) || text.contains(&id.replace('-', "")));
            let base64 = data_encoding::BASE64.encode(&key[..15]);
            let hex = data_encoding::HEXLOWER.encode(&key[..15]);
            assert!(!text.contains(&base64) && !lower.contains(&hex), "key {n} leaks");
        }
        assert!(seen > least, "only {seen} key IDs are named");
    }
}

/// Generates a site's static key in `file`; returns the public key.
#[track_caller]
pub fn new_identity(file: &Path) -> String {
    let secret = ctl_pipe(&["genkey"], "");
    write_secret(file, &secret);
    ctl_pipe(&["pubkey"], &secret).trim().to_owned()
}
