//! What a user of the control socket may do.

use std::fmt;

/// Permissions in ascending order; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Read status, events and metrics.
    Observe,
    /// Also rekey, reload and confirm.
    Operate,
    /// Also change peers.
    Admin,
}

/// Writes the key of `[access]`.
impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Operate => "operate",
            Self::Admin => "admin",
        })
    }
}
