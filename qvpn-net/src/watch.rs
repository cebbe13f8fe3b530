//! Notices what other programs do to routes, rules and devices. A [`Change`] only says that something may
//! be missing; [`Net::restore`](crate::Net::restore) compares, so a false alarm costs a comparison and
//! nothing else.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;

use crate::error::NetError;
use crate::kernel::{self, KernelRoute};
use crate::plan::{GUARD_TABLE, MAIN_TABLE, RULE_PRIORITY};

const DEVICE_GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
const ROUTE_GROUPS: [MulticastGroup; 4] = [
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// A change to routes, rules or devices, by another program or by us.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// One of our routes or rules was removed; in the format of `ip route` and `ip rule`.
    Removed(String),
    /// A route replaced another one, which may have been ours.
    Replaced(String),
    /// Another program added a route in the main table or in ours.
    Route {
        /// Destination.
        prefix: IpNet,
        /// Index of its device; `None` for several next hops.
        device: Option<u32>,
        /// In the format of `ip route`.
        text: String,
    },
    /// Another program added a rule that the kernel evaluates before ours.
    Rule(String),
    /// The tunnel's interface appeared, disappeared or changed its state, or some interface lost an address;
    /// in both cases the kernel removes IPv4 routes without a notification.
    Interface,
    /// A device appeared, disappeared or changed its name.
    Device {
        /// Its index.
        index: u32,
        /// Its current name; `None` if it is gone.
        name: Option<String>,
    },
    /// Notifications were lost, so everything must be compared.
    Missed,
}

/// The notifications about routes, from [`Net::watch`](crate::Net::watch).
pub struct Watch {
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    connection: JoinHandle<()>,
    /// The interface that [`Change::Interface`] is about; with `None` each device causes a
    /// [`Change::Device`].
    interface: Option<String>,
}

impl Watch {
    pub(crate) fn open(interface: &str) -> Result<Self, NetError> {
        Self::with(Some(interface.to_owned()))
    }

    /// Watches all devices.
    pub(crate) fn open_all() -> Result<Self, NetError> {
        Self::with(None)
    }

    /// Watches devices and their addresses alone.
    pub(crate) fn open_devices() -> Result<Self, NetError> {
        Self::subscribe(None, &DEVICE_GROUPS)
    }

    fn with(interface: Option<String>) -> Result<Self, NetError> {
        Self::subscribe(interface, &[&DEVICE_GROUPS[..], &ROUTE_GROUPS[..]].concat())
    }

    fn subscribe(interface: Option<String>, groups: &[MulticastGroup]) -> Result<Self, NetError> {
        let (connection, _, messages) = new_multicast_connection(groups).map_err(NetError::Connect)?;
        Ok(Self {
            messages: messages.map(|(message, _)| message).boxed(),
            connection: tokio::spawn(connection),
            interface,
        })
    }

    /// Waits for the next change that may concern us; `None` if the netlink connection has ended. Cancel
    /// safe.
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
                let found = KernelRoute::parse(&route)?;
                match found.is_ours() {
                    true => Some(Change::Removed(found.describe(None))),
                    // A route of this site's own, of which there is a copy, may have gone.
                    false => (found.table == MAIN_TABLE).then_some(Change::Interface),
                }
            }
            RouteNetlinkMessage::NewRoute(route) => {
                let found = KernelRoute::parse(&route)?;
                if found.is_ours() {
                    // Another tunnel may now carry a prefix.
                    let carries = found.table == GUARD_TABLE && found.kind == RouteType::Unicast;
                    return carries.then_some(Change::Interface);
                }
                let text = found.describe(None);
                if message.header.flags & NLM_F_REPLACE != 0 && found.table != MAIN_TABLE {
                    return Some(Change::Replaced(text));
                }
                let counts =
                    found.kind == RouteType::Unicast && matches!(found.table, MAIN_TABLE | GUARD_TABLE);
                counts.then_some(Change::Route { prefix: found.prefix, device: found.oif, text })
            }
            RouteNetlinkMessage::DelRule(rule) if kernel::is_our_rule(&rule) => {
                Some(Change::Removed(format!("rule with priority {}", kernel::rule_priority(&rule))))
            }
            RouteNetlinkMessage::NewRule(rule) if !kernel::is_our_rule(&rule) => {
                let priority = kernel::rule_priority(&rule);
                (1..RULE_PRIORITY)
                    .contains(&priority)
                    .then(|| Change::Rule(format!("rule with priority {priority}")))
            }
            RouteNetlinkMessage::NewLink(link) => self.link(&link, true),
            RouteNetlinkMessage::DelLink(link) => self.link(&link, false),
            RouteNetlinkMessage::DelAddress(_) => Some(Change::Interface),
            _ => None,
        }
    }

    fn link(&self, link: &LinkMessage, there: bool) -> Option<Change> {
        let name = kernel::link_name(link);
        match &self.interface {
            Some(interface) => (name == Some(interface)).then_some(Change::Interface),
            None => Some(Change::Device {
                index: link.header.index,
                name: name.filter(|_| there).map(str::to_owned),
            }),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
