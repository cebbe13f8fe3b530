//! Errors of applying a plan to the kernel. Each names the route or address, what was tried, and what to do.

use std::io;

/// Why the kernel and the plan disagree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The netlink socket can't be opened.
    #[error(
        "no netlink socket ({0}): the kernel, a container or a sandbox forbids AF_NETLINK, or the kernel is \
         older than 5.0"
    )]
    Connect(#[source] io::Error),
    /// EPERM or EACCES.
    #[error(
        "{what}: not permitted; this needs CAP_NET_ADMIN (run as root, or under the unit that grants it)"
    )]
    Denied {
        /// What was tried.
        what: String,
    },
    /// The interface does not exist, or has disappeared.
    #[error("{what}: there is no interface `{name}`; is the tunnel running?")]
    NoInterface {
        /// Its name.
        name: String,
        /// What was tried.
        what: String,
    },
    /// Another program's route is where ours must be, or beats it.
    #[error(
        "`{ours}` can't work because of the route `{foreign}`: remove that route, or take the prefix out of \
         allowed_ips, or write `table = \"auto\"`"
    )]
    Conflict {
        /// Our route.
        ours: String,
        /// The route in the way, in the format of `ip route`.
        foreign: String,
    },
    /// The kernel refused for another reason.
    #[error("{what}: the kernel refused ({source}){hint}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Its reason.
        source: io::Error,
        /// What to do; may be empty.
        hint: &'static str,
    },
    /// The kernel has no nf_tables.
    #[error(
        "there is no filter ({0}): this kernel, container or sandbox has no nf_tables; only the routes of \
         the block are in force"
    )]
    NoFilter(#[source] io::Error),
    /// The resident guard's answer.
    #[error("the guard refused: {0}")]
    Guard(String),
    /// EPERM on an nftables table.
    #[error(
        "{what}: not permitted; another qvpn process owns this table, or CAP_NET_ADMIN is missing (run as \
         root, or under the unit that grants it)"
    )]
    FilterOwned {
        /// What was tried.
        what: String,
    },
    /// The netlink connection's task ended, as when the runtime shuts down.
    #[error("{what}: the netlink connection has ended")]
    Closed {
        /// What was tried.
        what: String,
    },
    /// Several of the above; everything that could be done was done.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<NetError>),
}

impl NetError {
    /// Describes a refusal by the kernel; `what` was tried.
    pub(crate) fn refused(what: impl Into<String>, error: io::Error) -> Self {
        // EPERM is a missing permission; EACCES comes from a device on which IPv6 is disabled.
        const EACCES: i32 = 13;
        let what = what.into();
        match error.kind() {
            io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(EACCES) => {
                let hint = "; IPv6 is disabled here: `sysctl -w net.ipv6.conf.all.disable_ipv6=0 \
                            net.ipv6.conf.default.disable_ipv6=0`, or take the IPv6 prefixes out of the \
                            config";
                return Self::Kernel { what, source: error, hint };
            }
            io::ErrorKind::PermissionDenied => return Self::Denied { what },
            io::ErrorKind::BrokenPipe => return Self::Closed { what },
            _ => {}
        }
        let hint = match error.kind() {
            io::ErrorKind::NetworkDown => "; the interface is down: `ip link set up` first",
            io::ErrorKind::NetworkUnreachable => "; the interface is down or has no address of that family",
            io::ErrorKind::Unsupported => "; the kernel lacks that address family or policy routing",
            io::ErrorKind::InvalidInput => {
                "; if this is IPv6, it may be disabled here, or the MTU is below 1280"
            }
            _ => "",
        };
        Self::Kernel { what, source: error, hint }
    }

    /// Combines errors into one; `None` if there are none.
    pub(crate) fn from_many(mut errors: Vec<Self>) -> Result<(), Self> {
        // If the permission for one step is missing, it is missing for the others too.
        if errors.iter().all(|error| matches!(error, Self::Denied { .. })) {
            errors.truncate(1);
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}
