//! Sends the runs of a batch, and goes on after what the system refused.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use qvpn_types::{PeerNumber, Time};

use super::{NO_GSO_DURATION, SOCKET_WRITABLE_TIMEOUT, Sender};
use crate::lane::send_batch::Run;
use crate::lane::send_peer::count_sent;
use crate::udp::batch::{Outgoing, send_batch};
use crate::wake::poll_writable;

impl Sender {
    /// Sends the batch.
    pub(super) fn flush(&mut self, now: Time) {
        self.send_runs(self.batch.runs().len(), now);
        self.batch.clear();
    }

    /// Sends the first `count` runs.
    pub(super) fn send_runs(&mut self, count: usize, now: Time) {
        let (mut first, mut count) = (0, count);
        while first < count {
            let run = self.batch.runs()[first];
            let datagrams = self.batch.runs()[first..count].iter().map_while(|run| {
                let to = self.peers.get(run.peer)?.endpoint.as_ref()?;
                let segment = u16::try_from(run.size).ok().filter(|_| run.count > 1);
                let (bytes, source) = (self.batch.datagrams(run), to.source(now));
                Some(Outgoing { bytes, segment, tos: run.tos, to, source })
            });
            match send_batch(self.socket.as_fd(), datagrams, count - first) {
                Ok(sent @ 1..) => {
                    for run in &self.batch.runs()[first..first + sent] {
                        if let Some(p) = self.peers.get(run.peer) {
                            count_sent(&p.stats, run.count, run.bytes(), now);
                        }
                    }
                    first += sent;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // While this thread waits, the TUN's own queue slows senders down, which loses less than a
                // drop here.
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && poll_writable(self.socket.as_fd(), SOCKET_WRITABLE_TIMEOUT) => {}
                // Some devices and paths refuse joined datagrams: the device has no checksum offload (EIO),
                // or the size exceeds the path's MTU (EINVAL). The kernel fragments such a datagram if it is
                // sent alone.
                Err(error)
                    if run.count > 1
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
                        ) =>
                {
                    if let Some(p) = self.peers.get_mut(run.peer) {
                        p.no_gso_until = now + NO_GSO_DURATION;
                        p.stats.tx.refused.add(u64::try_from(run.count).unwrap_or(0));
                    }
                    count += run.count - 1;
                    self.batch.split_run(first);
                }
                Err(error) if self.source_refused(run.peer, &error, now) => {}
                Ok(0) | Err(_) => {
                    self.count_refused(&run);
                    first += 1;
                }
            }
        }
    }

    /// Returns whether to send again from another address.
    fn source_refused(&mut self, peer: PeerNumber, error: &io::Error, now: Time) -> bool {
        let endpoint = self.peers.get_mut(peer).and_then(|p| p.endpoint.as_mut());
        endpoint.is_some_and(|endpoint| endpoint.on_error(error, now))
    }

    fn count_refused(&self, run: &Run) {
        if let Some(p) = self.peers.get(run.peer) {
            p.stats.tx.queue_full.add(u64::try_from(run.count).unwrap_or(0));
        }
    }
}
