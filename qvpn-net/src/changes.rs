//! What a step changed in the kernel, and what failed.

use std::io;

use crate::error::NetError;

/// What was done, for the log and for `routes.restored`; each entry in the format of `ip route` or `ip rule`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Added, since it was missing.
    pub added: Vec<String>,
    /// Replaced another route, which is named.
    pub replaced: Vec<String>,
    /// Removed.
    pub removed: Vec<String>,
    /// What an operator should know although it is not an error.
    pub warnings: Vec<String>,
}

impl Changes {
    /// Whether nothing had to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.replaced.is_empty() && self.removed.is_empty()
    }

    /// Adds the changes of `other`.
    pub fn extend(&mut self, other: Self) {
        self.added.extend(other.added);
        self.replaced.extend(other.replaced);
        self.removed.extend(other.removed);
        self.warnings.extend(other.warnings);
    }
}

/// Collects changes and failures, since half a block is better than none.
#[derive(Default)]
pub(crate) struct Work {
    pub changes: Changes,
    pub errors: Vec<NetError>,
}

impl Work {
    pub fn check<T>(&mut self, what: &str, result: io::Result<T>) -> Option<T> {
        self.note(result.map_err(|error| NetError::refused(what, error)))
    }

    pub fn note<T>(&mut self, result: Result<T, NetError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    pub fn finish(self) -> Result<Changes, NetError> {
        for warning in &self.changes.warnings {
            tracing::warn!("{warning}");
        }
        NetError::from_many(self.errors)?;
        Ok(self.changes)
    }
}
