//! What the audit log's thread and the rest of the daemon share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use qvpn_api::status::AuditStatus;

pub(super) struct Shared {
    status: Mutex<AuditStatus>,
    lost: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        let status = AuditStatus { state: "off".to_owned(), next_line: None, lost: 0, reason: None };
        Self { status: Mutex::new(status), lost: AtomicU64::new(0) }
    }
}

impl Shared {
    pub(super) fn status(&self) -> AuditStatus {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        AuditStatus { lost: self.lost(), ..status }
    }

    pub(super) fn set(&self, state: &str, next_line: Option<u64>, reason: Option<String>) {
        // A whole value is written, so a poisoned lock is still consistent.
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        *status = AuditStatus { state: state.to_owned(), next_line, lost: 0, reason };
    }

    /// Counts a record that is lost.
    pub(super) fn lose_one(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
