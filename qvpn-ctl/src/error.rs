//! Why a command failed: one line with what to do, and the exit code that scripts rely on.

use std::io;
use std::path::PathBuf;

use qvpn_api::config::EditError;
use qvpn_api::control::{CodecError, ErrorReply};
use qvpn_api::lookup::LookupError;
use qvpn_api::{ConfigErrors, exit};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// Standard output is full or closed.
    #[error("can't write the output: {0}")]
    Output(#[source] io::Error),
    #[error("can't read a key from the input: {0}")]
    Input(#[source] io::Error),
    #[error(
        "the input is too long to be a key; pass the key alone, such as `qvpn-ctl pubkey < \
         /etc/qvpn/qvpn0.key`"
    )]
    InputTooLong,
    #[error("{0}")]
    Key(#[from] qvpn_identity::IdentityError),
    #[error("the system provides no randomness ({0}), so no key was generated")]
    Randomness(#[source] getrandom::Error),
    /// Printed unchanged, one error per line.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("a guard runs already: {} answers; see `systemctl status qvpn-guard`", .0.display())]
    GuardRuns(PathBuf),
    #[error("can't use the guard's socket {}: {source}", path.display())]
    GuardSocket { path: PathBuf, source: io::Error },
    #[error("no daemon runs for {interface}: {} is not there; start it with `systemctl start \
     qvpn@{interface}`{}", path.display(), others(running))]
    NotRunning { interface: String, path: PathBuf, running: Vec<String> },
    #[error("no daemon runs: there is no control socket in {}; start one with `systemctl start \
     qvpn@qvpn0`", .0.display())]
    NoneRunning(PathBuf),
    #[error("this host has the interfaces {}; name one of them, for example {}", .0.join(", "), .0[0])]
    WhichInterface(Vec<String>),
    #[error("{0:?} is not the name of an interface, which has 1 to 15 bytes and no slash, such as qvpn0")]
    NotAnInterface(String),
    #[error("the daemon of {interface} is gone, but {} is still there; see `journalctl -u \
     qvpn@{interface}`, then `systemctl restart qvpn@{interface}`", path.display())]
    Gone { interface: String, path: PathBuf },
    #[error("not permitted to use {}; run as root, or let root name you in a section [access] of the config, \
     see qvpn.toml(5)", .0.display())]
    NotPermitted(PathBuf),
    #[error("can't reach the daemon of {interface}: {source}")]
    Unreachable { interface: String, source: io::Error },
    #[error(
        "the daemon of {interface} did not answer within {seconds} seconds; see `journalctl -u \
         qvpn@{interface}`"
    )]
    Silent { interface: String, seconds: u64 },
    #[error(
        "the daemon of {interface} closed the connection without a whole answer; see `journalctl -u \
         qvpn@{interface}`"
    )]
    Cut { interface: String },
    #[error("the program that listens on {} is not a qvpn daemon of this version: {source}", path.display())]
    Foreign { path: PathBuf, source: CodecError },
    #[error("the daemon of {interface} has another version: {source}")]
    Version { interface: String, source: CodecError },
    /// The daemon's own message.
    #[error("{0}")]
    Refused(#[from] ErrorReply),
    /// Some of several daemons failed; the error of each was printed.
    #[error("{0} of the daemons could not be asked")]
    SomeUnreachable(usize),
    #[error("{}: {source}", file.display())]
    NoPeer { file: PathBuf, source: LookupError },
    /// No shown interface has the peer.
    #[error("{0}")]
    NoPeerShown(LookupError),
    #[error(
        "the daemon of {interface} doesn't know this request, so it is older than this qvpn-ctl: \
         `systemctl restart qvpn@{interface}` runs what is installed ({said})"
    )]
    TooOld { interface: String, said: String },
    #[error("{} has no peer that uses a KME, so there is nothing to check", .0.display())]
    NoKme(PathBuf),
    #[error("{} is not the other site's config: {what}", file.display())]
    OtherConfig { file: PathBuf, what: String },
    #[error("no KME of {0} works, and QKD is required; see `qvpn-ctl show {0}`")]
    NoKmeWorks(String),
    #[error("{bad} of {all} checks failed; what to do is above, after each arrow")]
    KmeCheck { bad: usize, all: usize },
    /// Nothing was changed.
    #[error("can't save {}: {source}; nothing was changed, neither there nor in the running \
     config", file.display())]
    Save { file: PathBuf, source: io::Error },
    /// The daemon has already made the change.
    #[error("the change is running, but could not be written to {}: {source}; run the command again, or \
     edit the file", file.display())]
    NotSaved { file: PathBuf, source: io::Error },
    #[error("{}: {source}; nothing was changed", file.display())]
    Edit { file: PathBuf, source: EditError },
    #[error("{}{}: {what}", file.display(), line.map(|n| format!(":{n}")).unwrap_or_default())]
    Import { file: PathBuf, line: Option<usize>, what: String },
    #[error("{bad} of {all} checks failed; the fix of each is after its arrow")]
    Doctor { bad: usize, all: usize },
    #[error("top needs a terminal; in a pipe use `qvpn-ctl show --json`")]
    NoTerminal,
    #[error("{prefix} is in {}: take it out of `allowed_ips` or `protect` first", file.display())]
    StillConfigured { prefix: qvpn_net::IpNet, file: PathBuf },
    #[error("`local` in {} is not \"connected\": write the network and its device into its \
     list", .0.display())]
    LocalIsAList(PathBuf),
    #[error("this host is not connected to {0}; `ip route show proto kernel` lists its networks")]
    NotConnected(qvpn_net::IpNet),
    #[error("can't remember it in {}: {source}", file.display())]
    State { file: PathBuf, source: io::Error },
    #[error("no such prefix is blocked in addition to the configs; these are: {}", list(.0))]
    NothingKept(Vec<qvpn_net::IpNet>),
    #[error(
        "the daemon of {} keeps the block in force: stop it first with `systemctl stop qvpn@IFACE`, or \
         name the \
         prefixes to release", .0.join(", ")
    )]
    DaemonBlocks(Vec<String>),
    #[error("{0}")]
    Net(#[from] qvpn_net::NetError),
    #[error("{}: {source}", file.display())]
    Plan { file: PathBuf, source: qvpn_net::PlanError },
    #[error("{0}")]
    Audit(#[from] qvpn_audit::AuditError),
    #[error("{0}")]
    AuditFile(#[from] qvpn_audit::VerifyError),
    #[error("there is no audit log {}; `qvpn-ctl audit setup` begins one", .0.display())]
    NoAuditLog(PathBuf),
    /// The log was changed.
    #[error("{0}; docs/audit.md says what to do")]
    Audited(qvpn_audit::Finding),
    #[error("can't start: {0}")]
    Runtime(#[source] io::Error),
    #[error("can't use the directory {}: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
}

impl CtlError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Plan { .. } | Self::Import { .. } => exit::CONFIG_REFUSED,
            Self::NotRunning { .. }
            | Self::NoneRunning(_)
            | Self::Gone { .. }
            | Self::NotPermitted(_)
            | Self::Unreachable { .. }
            | Self::Silent { .. }
            | Self::Cut { .. }
            | Self::Foreign { .. }
            | Self::SomeUnreachable(_) => exit::DAEMON_UNREACHABLE,
            Self::Refused(reply) => reply.exit_code(),
            Self::KmeCheck { .. } | Self::NoKmeWorks(_) => exit::KME_CHECK_FAILED,
            Self::WhichInterface(_) | Self::NotAnInterface(_) => exit::USAGE,
            Self::Output(_)
            | Self::Input(_)
            | Self::InputTooLong
            | Self::Key(_)
            | Self::Randomness(_)
            | Self::Version { .. }
            | Self::NoPeer { .. }
            | Self::NoPeerShown(_)
            | Self::TooOld { .. }
            | Self::NoTerminal
            | Self::Save { .. }
            | Self::NotSaved { .. }
            | Self::Edit { .. }
            | Self::Doctor { .. }
            | Self::NoKme(_)
            | Self::OtherConfig { .. }
            | Self::GuardRuns(_)
            | Self::GuardSocket { .. }
            | Self::LocalIsAList(_)
            | Self::NotConnected(_)
            | Self::State { .. }
            | Self::StillConfigured { .. }
            | Self::NothingKept(_)
            | Self::DaemonBlocks(_)
            | Self::Net(_)
            | Self::Audit(_)
            | Self::AuditFile(_)
            | Self::NoAuditLog(_)
            | Self::Audited(_)
            | Self::Runtime(_)
            | Self::Directory { .. } => exit::FAILED,
        }
    }

    /// Returns the lines after the message.
    pub(crate) fn details(&self) -> &[String] {
        match self {
            Self::Refused(reply) => &reply.details,
            _ => &[],
        }
    }
}

fn list(prefixes: &[qvpn_net::IpNet]) -> String {
    match prefixes {
        [] => "none".to_owned(),
        _ => prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn others(running: &[String]) -> String {
    match running {
        [] => String::new(),
        names => format!(" (running: {})", names.join(", ")),
    }
}
