//! What a user of the control socket may do.

use std::fmt;

/// What a user may do, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Look.
    Observe,
    /// Also rekey, reload and confirm.
    Operate,
    /// Also change peers.
    Admin,
}

/// The key of `[access]`.
impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Operate => "operate",
            Self::Admin => "admin",
        })
    }
}
