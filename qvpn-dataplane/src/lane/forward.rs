//! Rerouting. A lane whose path is silent, or that the peer does not have, forwards what it reads to the
//! sending thread of another lane through a bounded queue. Without a reroute this costs one check of an
//! empty queue for each batch.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use qvpn_types::PeerNumber;

use crate::wake::Waker;

/// The largest number of reads that wait in a lane's queue; each is up to 64 KiB of one flow.
const MAX_WAITING: usize = 128;

/// How long a lane waits for the acknowledgement of forwarded reads.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_millis(20);

/// The number of forwarded reads of one lane that are not sent yet.
#[derive(Default)]
struct InFlight {
    count: Mutex<usize>,
    none_left: Condvar,
}

/// One read of a TUN queue. Dropping it acknowledges it to the lane that forwarded it.
pub(super) struct ForwardedRead {
    /// The peer that the forwarding lane chose.
    pub(super) peer: PeerNumber,
    pub(super) bytes: Vec<u8>,
    in_flight: Arc<InFlight>,
}

impl Drop for ForwardedRead {
    fn drop(&mut self) {
        let mut count = self.in_flight.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.in_flight.none_left.notify_all();
        }
    }
}

/// The side of a lane's queue to which other lanes forward reads.
#[derive(Clone)]
pub(super) struct ForwardSender {
    queue: SyncSender<ForwardedRead>,
    waker: Waker,
}

/// The side of a lane's queue from which it takes reads of other lanes.
pub(super) struct ForwardQueue(Receiver<ForwardedRead>);

/// Makes the queue of a lane. `waker` wakes its sending thread.
pub(super) fn forward_queue(waker: Waker) -> (ForwardSender, ForwardQueue) {
    let (queue, forwarded) = sync_channel(MAX_WAITING);
    (ForwardSender { queue, waker }, ForwardQueue(forwarded))
}

impl ForwardQueue {
    pub(super) fn with_senders(self, senders: Arc<[ForwardSender]>) -> Forwarder {
        Forwarder { senders, queue: self, in_flight: Arc::default() }
    }
}

/// Both directions of forwarding for a sending thread: to other lanes and from them.
pub(super) struct Forwarder {
    senders: Arc<[ForwardSender]>,
    queue: ForwardQueue,
    in_flight: Arc<InFlight>,
}

impl Forwarder {
    /// Forwards a read for `peer` to lane `via`. Returns whether there was room.
    pub(super) fn forward(&self, via: u8, peer: PeerNumber, read: &[u8]) -> bool {
        let Some(sender) = self.senders.get(usize::from(via)) else { return false };
        *self.in_flight.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let read = ForwardedRead { peer, bytes: read.to_vec(), in_flight: self.in_flight.clone() };
        let forwarded = sender.queue.try_send(read).is_ok();
        if forwarded {
            sender.waker.wake();
        }
        forwarded
    }

    /// Takes a read that another lane forwarded. Drop it once it is sent.
    pub(super) fn take(&self) -> Option<ForwardedRead> {
        self.queue.0.try_recv().ok()
    }

    /// Waits until the other lanes have acknowledged all reads that this lane forwarded, so that the packets
    /// that it sends itself from now on come after them. The wait ends after [`ACKNOWLEDGE_TIMEOUT`].
    pub(super) fn wait_for_acknowledgements(&self) {
        let count = self.in_flight.count.lock().unwrap_or_else(PoisonError::into_inner);
        // After a timeout a few packets may be reordered, which is better than a stalled lane.
        let _ = self.in_flight.none_left.wait_timeout_while(count, ACKNOWLEDGE_TIMEOUT, |count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn pair() -> (Forwarder, Forwarder) {
        let (mut senders, mut queues) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (sender, queue) = forward_queue(Waker::new().unwrap());
            senders.push(sender);
            queues.push(queue);
        }
        let senders: Arc<[ForwardSender]> = senders.into();
        let mut forwarders = queues.into_iter().map(|queue| queue.with_senders(senders.clone()));
        (forwarders.next().unwrap(), forwarders.next().unwrap())
    }

    #[test]
    fn a_lane_waits_only_for_forwarded_packets() {
        let (a, b) = pair();
        a.wait_for_acknowledgements();
        assert!(a.forward(1, PeerNumber(3), b"read"));
        assert!(!a.forward(2, PeerNumber(3), b"no such lane"));
        let read = b.take().unwrap();
        assert_eq!((read.peer, read.bytes.as_slice()), (PeerNumber(3), &b"read"[..]));
        // Not acknowledged: the wait ends by its timeout.
        let start = Instant::now();
        a.wait_for_acknowledgements();
        assert!(start.elapsed() >= ACKNOWLEDGE_TIMEOUT);
        assert_eq!(*a.in_flight.count.lock().unwrap(), 1);
        drop(read);
        a.wait_for_acknowledgements();
        assert_eq!(*a.in_flight.count.lock().unwrap(), 0);
    }

    #[test]
    fn a_full_queue_refuses_and_what_it_refused_is_not_waited_for() {
        let (a, b) = pair();
        assert!((0..MAX_WAITING).all(|_| a.forward(1, PeerNumber(3), b"read")));
        assert!(!a.forward(1, PeerNumber(3), b"too many"));
        while b.take().is_some() {}
        assert_eq!(*a.in_flight.count.lock().unwrap(), 0);
    }
}
