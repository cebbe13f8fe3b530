//! Sealed datagrams that wait for one send. They are adjacent in one buffer, so that datagrams to one peer
//! and of one size go to the kernel as one run, which the kernel segments again (UDP GSO).

use qvpn_types::PeerNumber;

use crate::session::{HEADER, TAG};

/// A batch of this size is full: it is sent even if there is more to read.
const FULL_BYTES: usize = 64 * 1024;

/// The size of the buffer. A batch that is not full still has room for one datagram of any size, or for all
/// datagrams of one super-packet.
const CAPACITY: usize = 2 * FULL_BYTES + HEADER + 65_575 + 16 + TAG;

/// The largest number of datagrams in one run (`UDP_MAX_SEGMENTS` of Linux before 6.9).
const MAX_RUN_COUNT: usize = 64;

/// The largest number of bytes in one run: the payload of an IPv4 UDP packet.
const MAX_RUN_BYTES: usize = 65_507;

/// Datagrams to one peer, all of one size; the last one may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) peer: PeerNumber,
    /// The traffic class of the outer header.
    pub(super) tos: u8,
    start: usize,
    end: usize,
    /// Bytes of each datagram.
    pub(super) size: usize,
    /// The number of datagrams.
    pub(super) count: usize,
    /// Nothing can be added, because the last datagram is shorter or the run must stay single.
    closed: bool,
}

impl Run {
    pub(super) fn bytes(&self) -> usize {
        self.end - self.start
    }

    /// Splits the run into one run for each datagram.
    fn split(self) -> impl Iterator<Item = Self> {
        (self.start..self.end).step_by(self.size).map(move |start| {
            let end = self.end.min(start + self.size);
            Self { start, end, size: end - start, count: 1, closed: true, ..self }
        })
    }
}

pub(super) struct SendBatch {
    buffer: Vec<u8>,
    end: usize,
    runs: Vec<Run>,
}

impl SendBatch {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; CAPACITY], end: 0, runs: Vec::with_capacity(MAX_RUN_COUNT) }
    }

    pub(super) fn is_full(&self) -> bool {
        self.end >= FULL_BYTES
    }

    /// Returns room for the next datagram, of at most `len` bytes, or `None` if the batch must be sent
    /// first.
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.buffer.get_mut(self.end..self.end + len)
    }

    /// Adds the datagram of `len` bytes that was written into [`room`](Self::room). If `alone`, it gets a
    /// run of its own.
    pub(super) fn add(&mut self, peer: PeerNumber, tos: u8, len: usize, alone: bool) {
        let start = self.end;
        self.end += len;
        if let Some(run) = self.runs.last_mut().filter(|run| {
            !run.closed
                && !alone
                && (run.peer, run.tos) == (peer, tos)
                && len <= run.size
                && run.count < MAX_RUN_COUNT
                && run.bytes() + len <= MAX_RUN_BYTES
        }) {
            run.end = self.end;
            run.count += 1;
            run.closed = len < run.size;
            return;
        }
        self.runs.push(Run { peer, tos, start, end: self.end, size: len, count: 1, closed: alone });
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn datagrams(&self, run: &Run) -> &[u8] {
        &self.buffer[run.start..run.end]
    }

    /// Splits a run that the kernel refused into single datagrams.
    pub(super) fn split_run(&mut self, at: usize) {
        if let Some(run) = self.runs.get(at).copied() {
            self.runs.splice(at..=at, run.split());
        }
    }

    pub(super) fn clear(&mut self) {
        self.end = 0;
        self.runs.clear();
    }

    /// Returns the number of complete runs: all, or all but the last one if more may join it.
    pub(super) fn complete(&self) -> usize {
        let open = self.runs.last().is_some_and(|run| {
            !run.closed && run.count < MAX_RUN_COUNT && run.bytes() + run.size <= MAX_RUN_BYTES
        });
        self.runs.len() - usize::from(open)
    }

    /// Removes all runs but the last one, which moves to the front.
    pub(super) fn keep_last(&mut self) {
        let Some(last) = self.runs.pop() else { return };
        self.buffer.copy_within(last.start..last.end, 0);
        self.runs.clear();
        self.end = last.bytes();
        self.runs.push(Run { start: 0, end: self.end, ..last });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerNumber = PeerNumber(1);
    const B: PeerNumber = PeerNumber(2);

    fn batch(datagrams: &[(PeerNumber, u8, usize, bool)]) -> SendBatch {
        let mut batch = SendBatch::new();
        for (n, (peer, tos, len, alone)) in (0u8..).zip(datagrams) {
            batch.room(*len).unwrap().fill(n);
            batch.add(*peer, *tos, *len, *alone);
        }
        batch
    }

    fn counts(batch: &SendBatch) -> Vec<usize> {
        batch.runs().iter().map(|r| r.count).collect()
    }

    #[test]
    fn equal_sizes_join_and_a_shorter_one_ends_the_run() {
        let joined = batch(&[(A, 0, 100, false), (A, 0, 100, false), (A, 0, 60, false), (A, 0, 60, false)]);
        assert_eq!(counts(&joined), [3, 1]);
        assert_eq!(joined.runs()[0].bytes(), 260);
        assert_eq!(joined.datagrams(&joined.runs()[1]), [3; 60]);
        let larger = batch(&[(A, 0, 60, false), (A, 0, 100, false)]);
        assert_eq!(counts(&larger), [1, 1]);
    }

    #[test]
    fn peers_traffic_classes_and_those_that_go_alone_stay_apart() {
        let apart = batch(&[
            (A, 0, 50, false),
            (B, 0, 50, false),
            (B, 1, 50, false),
            (B, 1, 50, true),
            (B, 1, 50, false),
        ]);
        assert_eq!(counts(&apart), [1; 5]);
    }

    #[test]
    fn a_run_is_no_longer_than_the_kernel_takes() {
        let many = batch(&vec![(A, 0, 100, false); 130]);
        assert_eq!(counts(&many), [64, 64, 2]);
        let large = batch(&vec![(A, 0, 1452, false); 50]);
        assert_eq!(counts(&large), [45, 5]);
        assert!(large.is_full());
        assert_eq!(large.runs()[0].bytes(), 65_340);
    }

    #[test]
    fn a_run_that_more_may_join_stays_and_goes_on_at_the_front() {
        let mut many = batch(&[(A, 0, 1452, false); 47]);
        assert_eq!((counts(&many), many.complete()), (vec![45, 2], 1));
        many.keep_last();
        assert_eq!((counts(&many), many.complete()), (vec![2], 0));
        let kept = [[45; 1452], [46; 1452]].concat();
        assert_eq!(many.datagrams(&many.runs()[0]), kept);
        many.room(60).unwrap().fill(9);
        many.add(A, 0, 60, false);
        assert_eq!((counts(&many), many.complete()), (vec![3], 1));
        assert_eq!(many.datagrams(&many.runs()[0]), [kept, vec![9; 60]].concat());
        assert_eq!(batch(&[(A, 0, 1452, false); 45]).complete(), 1);
        assert_eq!(batch(&[(A, 0, 1452, true)]).complete(), 1);
        assert_eq!(batch(&[]).complete(), 0);
    }

    #[test]
    fn a_run_falls_apart_into_the_same_datagrams() {
        let mut refused =
            batch(&[(A, 0, 90, false), (A, 3, 100, false), (A, 3, 100, false), (A, 3, 10, false)]);
        refused.split_run(1);
        let sizes: Vec<_> = refused.runs().iter().map(|r| (r.count, r.bytes(), r.tos)).collect();
        assert_eq!(sizes, [(1, 90, 0), (1, 100, 3), (1, 100, 3), (1, 10, 3)]);
        assert_eq!(refused.datagrams(&refused.runs()[3]), [3; 10]);
        refused.add(A, 3, 10, false);
        assert_eq!(counts(&refused), [1; 5]);
    }

    #[test]
    fn there_is_room_for_any_datagram_until_a_batch_is_full_and_never_more() {
        let mut batch = SendBatch::new();
        while !batch.is_full() {
            let len = HEADER + 65_535 + TAG;
            assert!(batch.room(len).is_some());
            batch.add(A, 0, 1000, false);
        }
        assert!(batch.room(CAPACITY).is_none());
    }
}
