//! Notices when somebody else touches our routes and rules. It only says that something may be missing;
//! [`Net::restore`](crate::Net::restore) looks at what is, so a false alarm costs a look and nothing else.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use crate::error::NetError;
use crate::kernel::{self, Found};

/// Something happened to our routes, by somebody else's hand or our own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A route or rule of ours was removed; as `ip route` and `ip rule` would have it.
    Removed(String),
    /// A route took the place of another; it may have been ours.
    Replaced(String),
    /// The tunnel's interface appeared, went, or changed its state, or some interface lost an address; the kernel drops IPv4
    /// routes with either silently.
    Interface,
    /// Notifications were lost: look at everything.
    Missed,
}

/// The notifications about one interface's routes, from [`Net::watch`](crate::Net::watch).
pub struct Watch {
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    connection: JoinHandle<()>,
    interface: String,
}

impl Watch {
    pub(crate) fn open(interface: &str) -> Result<Self, NetError> {
        let (connection, _, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])
        .map_err(NetError::Connect)?;
        Ok(Self {
            messages: messages.map(|(message, _)| message).boxed(),
            connection: tokio::spawn(connection),
            interface: interface.to_owned(),
        })
    }

    /// The next change that may concern us; `None` when the netlink connection has ended. Dropping the future loses
    /// nothing.
    pub async fn changed(&mut self) -> Option<Change> {
        loop {
            let message = self.messages.next().await?;
            if let Some(change) = self.interpret(message) {
                return Some(change);
            }
        }
    }

    fn interpret(&self, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> {
        let inner = match message.payload {
            NetlinkPayload::InnerMessage(inner) => inner,
            NetlinkPayload::Overrun(_) => return Some(Change::Missed),
            _ => return None,
        };
        match inner {
            RouteNetlinkMessage::DelRoute(route) => {
                let found = Found::parse(&route).filter(Found::is_ours)?;
                Some(Change::Removed(found.describe(None)))
            }
            RouteNetlinkMessage::NewRoute(route) if message.header.flags & NLM_F_REPLACE != 0 => {
                let found = Found::parse(&route).filter(|found| !found.is_ours())?;
                Some(Change::Replaced(found.describe(None)))
            }
            RouteNetlinkMessage::DelRule(rule) if kernel::is_our_rule(&rule) => {
                Some(Change::Removed(format!("rule with priority {}", kernel::rule_priority(&rule))))
            }
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                (kernel::link_name(&link) == Some(self.interface.as_str())).then_some(Change::Interface)
            }
            RouteNetlinkMessage::DelAddress(_) => Some(Change::Interface),
            _ => None,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
