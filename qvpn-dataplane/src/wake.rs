//! Waiting of lane threads: an event counter that other threads signal, and `ppoll` over it and a queue of
//! packets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// The longest sleep while a deadline is set. The system's timer stops while the machine sleeps, but the
/// clock of keys does not: after a resume, a lane checks its keys within this time.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Wakes a thread that polls it. Clones wake the same thread.
#[derive(Clone)]
pub(crate) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)))
    }

    /// Wakes the thread, now or at its next poll.
    pub(crate) fn wake(&self) {
        // It fails only if the counter is at its maximum, and then the thread wakes too.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Clears all wake-ups so far.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors is readable, for `wait` but at most [`MAX_SLEEP`], or without a limit
/// if `wait` is `None`. Returns which ones are readable.
pub(crate) fn poll_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    wait: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polls = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let timeout = wait.map(|wait| timespec(wait.min(MAX_SLEEP)));
    match poll(&mut polls, timeout.as_ref()) {
        Ok(_) => Ok(polls.map(|p| !p.revents().is_empty())),
        Err(Errno::INTR) => Ok([false; N]),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the descriptor is writable, at most for `wait`. Returns whether it is.
pub(crate) fn poll_writable(fd: BorrowedFd<'_>, wait: Duration) -> bool {
    let mut polls = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    matches!(poll(&mut polls, Some(&timespec(wait))), Ok(1..))
}

fn timespec(span: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: span.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn an_event_counter_is_signalled_and_cleared() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.clear();
        // The counter is empty now; this must not block.
        waker.clear();
    }

    #[cfg_attr(miri, ignore = "Miri has no ppoll")]
    #[test]
    fn a_wait_for_a_far_deadline_looks_at_the_clock_in_between() {
        let (done, came_back) = channel();
        std::thread::spawn(move || {
            let quiet = Waker::new().unwrap();
            let ready = poll_readable([quiet.as_fd()], Some(Duration::from_secs(3600))).unwrap();
            done.send(ready).unwrap();
        });
        assert_eq!(came_back.recv_timeout(Duration::from_secs(20)), Ok([false]));
    }
}
