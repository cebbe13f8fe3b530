//! The way of packets that a lane can't send itself, since its path is silent or the other end hasn't that lane: they go to
//! the sending thread of another lane, whole as the TUN gave them, by a bounded queue. Where there is no detour this costs one
//! look at an empty queue for each batch.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::sys;

/// What waits at most; each is up to 64 KiB of one flow.
const WAITING: usize = 128;

/// How long a lane waits until what it handed over has been sent, in steps of [`STEP`].
const STEPS: u32 = 100;
const STEP: Duration = Duration::from_micros(200);

/// What one read of a TUN queue gave.
pub(super) struct Handed {
    pub(super) bytes: Vec<u8>,
    /// How many of the lane that gave it are on their way.
    under_way: Arc<AtomicUsize>,
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where a lane takes packets of other lanes.
#[derive(Clone)]
pub(super) struct Door {
    queue: SyncSender<Handed>,
    wake: Arc<OwnedFd>,
}

/// The door of a lane whose sending thread is woken by `wake`, and where it finds what came.
pub(super) fn door(wake: Arc<OwnedFd>) -> (Door, Receiver<Handed>) {
    let (queue, handed) = sync_channel(WAITING);
    (Door { queue, wake }, handed)
}

/// Both directions, as a sending thread has them.
pub(super) struct Detours {
    doors: Arc<[Door]>,
    handed: Receiver<Handed>,
    under_way: Arc<AtomicUsize>,
}

impl Detours {
    pub(super) fn new(doors: Arc<[Door]>, handed: Receiver<Handed>) -> Self {
        Self { doors, handed, under_way: Arc::default() }
    }

    /// Hands over what was read to lane `via`; whether there was room.
    pub(super) fn hand_over(&self, via: u8, read: &[u8]) -> bool {
        let Some(door) = self.doors.get(usize::from(via)) else { return false };
        self.under_way.fetch_add(1, Ordering::AcqRel);
        let handed = Handed { bytes: read.to_vec(), under_way: self.under_way.clone() };
        match door.queue.try_send(handed) {
            Ok(()) => {
                sys::signal(door.wake.as_fd());
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// What another lane handed over. It counts as sent when it is dropped.
    pub(super) fn take(&self) -> Option<Handed> {
        self.handed.try_recv().ok()
    }

    /// Waits a little until all that this lane handed over has been sent, so that what it sends itself from now on comes
    /// after it.
    pub(super) fn wait(&self) {
        for _ in 0..STEPS {
            if self.under_way.load(Ordering::Acquire) == 0 {
                return;
            }
            std::thread::sleep(STEP);
        }
    }
}
