//! The firewall mark of the lanes' sockets.

use std::io;
use std::net::UdpSocket;

use nix::sys::socket::{setsockopt, sockopt};

/// Further handles of the lanes' sockets, to change their mark while the lanes run.
pub(crate) struct LaneSocketMarks {
    sockets: Vec<UdpSocket>,
    mark: u32,
}

impl LaneSocketMarks {
    /// `mark` is the current mark of all `sockets`.
    pub(crate) fn new(sockets: Vec<UdpSocket>, mark: u32) -> Self {
        Self { sockets, mark }
    }

    /// Returns the mark; 0 means no mark.
    pub(crate) fn mark(&self) -> u32 {
        self.mark
    }

    /// Sets the mark of all sockets; after an error all have the former one.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub(crate) fn set(&mut self, mark: u32) -> io::Result<()> {
        for socket in &self.sockets {
            if let Err(error) = setsockopt(socket, sockopt::Mark, &mark) {
                // Setting the mark that a socket already has changes nothing.
                let _ =
                    self.sockets.iter().try_for_each(|socket| setsockopt(socket, sockopt::Mark, &self.mark));
                return Err(error.into());
            }
        }
        self.mark = mark;
        Ok(())
    }
}
