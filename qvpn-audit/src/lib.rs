//! The audit log of an interface: a file of JSON lines that can't be changed unnoticed. Each line has the
//! hash of the line before, and a seal: a MAC under a key that is replaced by its hash and erased once the
//! line is on the disk. An attacker who takes over the machine finds the key for the lines to come, and
//! none for those that are there. The first key, which `qvpn-ctl audit setup` prints once, verifies all.
//!
//! The construction is that of the sealed journal of systemd (forward secure sealing) in its simplest form: a
//! chain of keys, as in Bellare and Yee, "Forward integrity for secure audit logs" (1997).

mod error;
mod key_file;
mod line;
mod log;
mod paths;
mod seal;
mod verify;

pub use error::AuditError;
pub use log::{AuditLog, Tail};
pub use paths::{AuditPaths, KEY_DIR, LOG_DIR, key_dir, log_dir};
pub use seal::VerificationKey;
pub use verify::{Fault, Finding, LastLine, Report, VerifyError, verify};
