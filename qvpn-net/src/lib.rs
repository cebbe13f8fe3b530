//! Addresses, routes, policy tables and the fail-closed block of a tunnel, over rtnetlink. What there shall be is a pure
//! [`RoutePlan`]; [`Net`] makes the kernel agree with it, idempotently, and never leaves a moment without the block.
//!
//! The order in which a daemon uses it:
//!
//! 1. [`Net::block`] before the TUN device exists (the boot unit has usually done it already),
//! 2. [`Net::set_addresses`], [`Net::set_link_up`] once the device is there,
//! 3. [`Net::add_routes`], and [`Net::watch`] with [`Net::restore`] from then on,
//! 4. [`Net::apply`] on a reload or when a path MTU is found,
//! 5. at a stop nothing (the block stays), or [`Net::remove_routes`] and [`Net::unblock`] for `on_stop = "open"`.
//!
//! Routes and rules of ours carry the protocol number [`ROUTE_PROTOCOL`] and no others are ever removed. Everything needs
//! `CAP_NET_ADMIN` in the network namespace.

mod device;
mod error;
mod kernel;
mod net;
mod plan;
mod sysctl;
mod watch;

pub use error::NetError;
pub use ipnet::IpNet;
pub use net::{Changes, Net};
pub use plan::{
    MAIN_TABLE, PRIORITY_MAIN, PRIORITY_OURS, PlanError, ROUTE_PROTOCOL, Route, RoutePlan, Rule, RuleKind,
    TABLE_BASE, Target,
};
pub use qvpn_api::config::Table;
pub use sysctl::strict_reverse_path;
pub use watch::{Change, Watch};
