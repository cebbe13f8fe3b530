//! The filter layer: an nf_tables table for each tunnel, changed over netlink without the program `nft`.
//! Decision record 0022 says why there is an encoder here.

mod expression;
mod message;
mod table;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send,
    setsockopt, socket, sockopt,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::error::NetError;
use crate::filter_plan::FilterPlan;
use message::{Attributes, Kind, Messages, NLM_F_DUMP, Received};
use table::{Ownership, Sets};

pub(crate) use table::table_name;

/// Bytes of a received message.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The socket's buffer: enough for a transaction with 20,000 prefixes, or a burst of notifications.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// The multicast group of changes to nf_tables (`NFNLGRP_NFTABLES`).
const CHANGES_GROUP: u32 = 7;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const EPROTONOSUPPORT: i32 = 93;
const EOPNOTSUPP: i32 = 95;

/// A connection to nf_tables. It owns the tables that it makes, if the kernel supports that, and they stay
/// when the connection ends.
pub struct Filter {
    socket: OwnedFd,
    /// What the kernel supports.
    ownership: Ownership,
    /// Whether this process owns the tables that it makes, if the kernel supports that.
    owning: bool,
}

impl Filter {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// [`NetError::NoFilter`] if this kernel or sandbox has no nf_tables.
    pub fn connect() -> Result<Self, NetError> {
        let socket = open().map_err(NetError::NoFilter)?;
        let filter = Self { socket, ownership: Ownership::Owned, owning: true };
        // The socket also opens if the kernel has other parts of netfilter but no nf_tables.
        match filter.list_tables() {
            Err(error) if is_unsupported(&error) => Err(NetError::NoFilter(error)),
            _ => Ok(filter),
        }
    }

    /// Replaces the rules by those of `plan`; no packet slips through in the meantime. A plan without
    /// prefixes removes the table.
    ///
    /// # Errors
    /// No permission, no nf_tables, or another process owns the table.
    pub fn install(&mut self, plan: &FilterPlan) -> Result<(), NetError> {
        if plan.is_empty() {
            return self.remove(plan.interface()).map(drop);
        }
        let mut result = self.update(plan);
        // Kernels before 6.9 refuse the flags.
        if self.ownership == Ownership::Owned && result.as_ref().is_err_and(refused_flags) {
            self.ownership = Ownership::Plain;
            result = self.update(plan);
        }
        result.map_err(|error| self.refused(plan.interface(), error))
    }

    /// From now on makes tables that every program may remove, for the removal of the package.
    pub fn disown(&mut self) {
        self.owning = false;
    }

    fn update(&self, plan: &FilterPlan) -> io::Result<()> {
        let wanted = if self.owning { self.ownership } else { Ownership::Plain };
        let stale = self.sets(plan.interface())?;
        let sets = Sets::new(&stale);
        let done = self
            .transact(&table::add_sets(plan, sets, wanted))
            .and_then(|()| self.transact(&table::switch(plan, sets, &stale)));
        match done {
            // The existing table has other flags, as when it was given up, or other chains.
            Err(error) if refused_flags(&error) || matches!(error.raw_os_error(), Some(EPERM | EEXIST)) => {
                self.transact(&table::replace(plan, sets, [self.ownership, wanted]))
            }
            done => done,
        }
    }

    /// Returns the names of the sets in the table of `interface`.
    fn sets(&self, interface: &str) -> io::Result<Vec<String>> {
        let name = table_name(interface);
        let mut request = Messages::default();
        request.add(Kind::GetSet, NLM_F_DUMP, |a: &mut Attributes<'_>| a.text(1, &name));
        let mut found = Vec::new();
        let each = |message: &Received<'_>| {
            if message.text(1) == Some(&name) {
                found.extend(message.text(2).map(str::to_owned));
            }
        };
        match self.dump(&request, each) {
            Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(Vec::new()),
            done => done.map(|()| found),
        }
    }

    /// Removes the table of `interface`; `Ok(false)` if there was none.
    ///
    /// # Errors
    /// No permission, or another process owns the table.
    pub fn remove(&mut self, interface: &str) -> Result<bool, NetError> {
        // If the owner of a table has ended, the table must be taken over first. That fails if there is no
        // such table or the kernel does not know the flag.
        let _ = self.transact(&table::adopt(interface));
        match self.transact(&table::remove(interface)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(false),
            Err(error) => Err(self.refused(interface, error)),
        }
    }

    /// Whether the table of `interface` exists.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub fn is_installed(&self, interface: &str) -> Result<bool, NetError> {
        Ok(self.tables()?.contains(&interface.to_owned()))
    }

    /// Returns the interfaces that have a table of ours.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub fn tables(&self) -> Result<Vec<String>, NetError> {
        self.list_tables().map_err(|error| NetError::refused("listing nftables tables", error))
    }

    fn list_tables(&self) -> io::Result<Vec<String>> {
        let mut request = Messages::default();
        request.add(Kind::GetTable, NLM_F_DUMP, |_| {});
        let mut found = Vec::new();
        let each = |message: &Received<'_>| {
            let name = message.text(1).and_then(|name| name.strip_prefix(&table_name("")));
            found.extend(name.map(str::to_owned));
        };
        self.dump(&request, each)?;
        Ok(found)
    }

    /// Returns the number of packets that the table of `interface` has dropped since it was made; `None` if
    /// there is no table.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub fn dropped(&self, interface: &str) -> Result<Option<u64>, NetError> {
        let name = table_name(interface);
        let mut request = Messages::default();
        request.add(Kind::GetRule, NLM_F_DUMP, |a: &mut Attributes<'_>| a.text(1, &name));
        let mut dropped = None;
        let each = |message: &Received<'_>| {
            if message.text(1) == Some(&name) {
                *dropped.get_or_insert(0) += counted(message);
            }
        };
        match self.dump(&request, each) {
            Ok(()) => Ok(dropped),
            Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(None),
            Err(error) => Err(NetError::refused("reading the filter's counters", error)),
        }
    }

    /// Returns the netlink port of this connection, which identifies its own changes.
    ///
    /// # Errors
    /// A refusal by the kernel.
    pub fn port(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.socket.as_raw_fd())?.pid())
    }

    fn refused(&self, interface: &str, error: io::Error) -> NetError {
        let what = format!("nftables table `inet {}`", table_name(interface));
        match error.raw_os_error() {
            // Another process owns the table. Without CAP_NET_ADMIN the kernel returns the same error.
            Some(EPERM) => NetError::FilterOwned { what },
            _ if is_unsupported(&error) => NetError::NoFilter(error),
            _ => NetError::refused(what, error),
        }
    }

    /// Sends a transaction, and returns the kernel's first error.
    fn transact(&self, batch: &Messages) -> io::Result<()> {
        send(self.socket.as_raw_fd(), batch.bytes(), MsgFlags::empty())?;
        // The kernel has handled the transaction when `send` returns, and its answers are already queued.
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut first = Ok(());
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    for message in Received::all(buffer.get(..length).unwrap_or_default()) {
                        if let Some(code) = message.error().filter(|code| *code != 0)
                            && first.is_ok()
                        {
                            first = Err(io::Error::from_raw_os_error(code));
                        }
                    }
                }
                Err(Errno::EAGAIN) => return first,
                // There were more errors than the buffer holds: the transaction has failed.
                Err(error) => return first.and(Err(error.into())),
            }
        }
    }

    fn dump(&self, request: &Messages, mut each: impl FnMut(&Received<'_>)) -> io::Result<()> {
        send(self.socket.as_raw_fd(), request.bytes(), MsgFlags::empty())?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            // The kernel prepares the next part of a dump while this part is received, so `recv` never has to
            // wait.
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for message in Received::all(buffer.get(..length).unwrap_or_default()) {
                if message.sequence != request.sequence() {
                    continue;
                }
                if message.is_done() {
                    return Ok(());
                }
                match message.error() {
                    Some(0) => return Ok(()),
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                    None => each(&message),
                }
            }
        }
    }
}

/// Whether the kernel lacks nf_tables, or a part of it.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EOPNOTSUPP | EINVAL | EPROTONOSUPPORT))
}

/// Returns the packets of all counters in a rule.
fn counted(rule: &Received<'_>) -> u64 {
    let nested = |list: &'_ [(u16, &'_ [u8])], kind: u16| {
        list.iter().find(|(found, _)| *found == kind).map(|(_, value)| value.to_vec())
    };
    let Some(expressions) = nested(&rule.attributes(), 4) else { return 0 };
    let counters = message::attributes(&expressions);
    let counters = counters.into_iter().filter_map(|(_, expression)| {
        let parts = message::attributes(expression);
        let name = nested(&parts, 1)?;
        let data = nested(&parts, 2).filter(|_| name.starts_with(b"counter"))?;
        let packets = nested(&message::attributes(&data), 2)?;
        Some(u64::from_be_bytes(*packets.first_chunk()?))
    });
    counters.sum()
}

fn refused_flags(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EINVAL | EOPNOTSUPP))
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // The host's CAP_NET_ADMIN allows more than the usual limit; elsewhere (in containers) the limit applies.
    if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES);
    }
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES);
    Ok(socket)
}

/// Notifications about changes to our tables by other programs.
pub(crate) struct FilterWatch {
    socket: TokioSocket,
}

/// A change to nf_tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FilterChange {
    /// The table of this interface was changed or removed by the socket with this port.
    Table { interface: String, port: u32, removed: bool },
    /// Notifications were lost.
    Missed,
}

impl FilterWatch {
    /// Opens the notification socket. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NetError::NoFilter`].
    pub fn open() -> Result<Self, NetError> {
        Self::subscribe().map_err(NetError::NoFilter)
    }

    fn subscribe() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().set_rx_buf_sz(BUFFER_BYTES)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 1 << (CHANGES_GROUP - 1)))?;
        Ok(Self { socket })
    }

    /// Waits for the next changes of our tables. Cancel safe.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn changed(&mut self) -> io::Result<Vec<FilterChange>> {
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer).await {
                Ok(()) => {
                    let found = changes(&buffer);
                    if !found.is_empty() {
                        return Ok(found);
                    }
                }
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(vec![FilterChange::Missed]);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn changes(bytes: &[u8]) -> Vec<FilterChange> {
    let change = |message: &Received<'_>| {
        let name = message.is_nf_tables().then(|| message.text(1)).flatten()?;
        let interface = name.strip_prefix(&table_name(""))?.to_owned();
        // A new rule in one of our chains can let packets through, so each change counts.
        let removing = [Kind::DelTable, Kind::DelChain, Kind::DelRule, Kind::DelSet, Kind::DelSetElements];
        let removed = removing.iter().any(|kind| kind.number() == message.kind);
        Some(FilterChange::Table { interface, port: message.port, removed })
    };
    let mut found: Vec<FilterChange> = Received::all(bytes).iter().filter_map(change).collect();
    found.dedup();
    found
}
