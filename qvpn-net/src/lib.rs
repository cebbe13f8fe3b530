//! Addresses, routes and the fail-closed guard of a tunnel. A pure [`RoutePlan`] says what must stand in
//! the kernel; two layers of different kinds enforce it, so that one covers what removes the other:
//!
//! - routes ([`Net`], over rtnetlink): one policy rule before the main table and one table for all tunnels,
//! - a filter ([`Filter`], over nfnetlink): an nftables table for each tunnel that drops what leaves
//!   elsewhere.
//!
//! [`RouteMirror`] follows the routes that others make through a tunnel, for `routes = "kernel"`.
//!
//! [`Guard`] keeps both for any number of tunnels: it restores what other programs remove and reports what
//! they did. The resident guard and a daemon without one use the same code.
//!
//! Routes and rules of ours carry the protocol numbers [`ROUTE_PROTOCOL`] and [`LOCAL_PROTOCOL`], and no
//! others are ever removed, except from [`GUARD_TABLE`]. All of it needs `CAP_NET_ADMIN` in the network
//! namespace.

mod apply;
mod changes;
mod connected;
mod device;
mod error;
mod exempt;
mod filter_plan;
mod guard;
mod kernel;
mod legacy;
mod local_routes;
mod mirror;
mod netlink;
mod next_hops;
mod nft;
mod plan;
mod service;
mod sysctl;
mod tunnel_status;
mod watch;

pub use apply::Net;
pub use changes::Changes;
pub use connected::ConnectedNetwork;
pub use device::DeviceState;
pub use error::NetError;
pub use filter_plan::FilterPlan;
pub use guard::Guard;
pub use ipnet::IpNet;
pub use mirror::{MirrorReport, RouteMirror};
pub use next_hops::{KernelNextHop, NextHopRoute};
pub use nft::Filter;
pub use plan::{
    GUARD_TABLE, LOCAL_PROTOCOL, MAIN_TABLE, OWN_MARK, OWN_MARK_MASK, PlanError, ROUTE_PROTOCOL,
    RULE_PRIORITY, Route, RoutePlan, Rule, RuleKind, Target,
};
pub use qvpn_api::config::{Local, Table};
pub use service::{
    GuardClient, GuardReply, GuardRequest, MAX_LINE_BYTES, PlanText, StatusText, guard_socket,
    network_namespace,
};
pub use sysctl::{ipv6_is_off, strict_reverse_path};
pub use tunnel_status::{Challenge, LayerState, Restored, TunnelStatus};
pub use watch::{Change, Watch};
