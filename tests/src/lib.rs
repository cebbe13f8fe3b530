//! A lab of network namespaces in which the real programs run: two sites, the WAN between them, and two KMEs.
//! A scenario describes what happens, not how to set up a network.
//!
//! ```no_run
//! # use tests::{sandbox, Lab};
//! fn lan_hosts_reach_their_gateways() {
//!     sandbox::run("lan_hosts_reach_their_gateways", || {
//!         let lab = Lab::new();
//!         lab.lan_a.run("ping -c 1 -W 2 10.10.0.1");
//!     });
//! }
//! ```

// This crate is only test code: an error here is a failure of the calling test.
#![allow(clippy::unwrap_used)]

mod binaries;
mod capture;
mod clock;
mod frr;
mod gateway;
mod hub;
mod kmes;
mod lab;
pub mod loopback;
mod memory;
pub mod misbehaviours;
mod node;
mod pace;
mod packets;
mod pair;
mod process;
mod relay;
pub mod sandbox;
mod stream;
mod swarm;
mod test_site;
mod wait;

pub use binaries::binary;
pub use capture::{Capture, Packet, Packets};
pub use clock::Clock;
pub use frr::Frr;
pub use gateway::{Gateway, GatewayOptions, INTERFACE, Identity, PORT};
pub use hub::{HubLab, HubOptions, HubSite};
pub use kmes::{KmeOptions, Kmes, test_key};
pub use lab::{Lab, Outer, Site};
pub use memory::{Memory, forms};
pub use node::Node;
pub use pace::Pace;
pub use packets::{PAYLOAD_TAG, is_data};
pub use pair::{PairGateway, PairLab};
pub use process::Process;
pub use relay::{Relay, RelayDirection, RelayReport};
pub use stream::{Received, Stream, StreamReport};
pub use swarm::{Swarm, SwarmOptions, SwarmReport, swarm_network};
pub use test_site::{Attempt, Secrets, TestSite};
pub use wait::wait_until;
