//! A lab of network namespaces in which the real programs run: two sites, the WAN between them, and two KMEs. A scenario
//! draws on it so that it says what happens and not how to set up a network.
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

// All of it is test code: what goes wrong here is a failure of the test that asked.
#![allow(clippy::unwrap_used)]

mod binaries;
mod capture;
mod clock;
mod double;
mod gateway;
mod kmes;
mod lab;
pub mod loopback;
mod memory;
pub mod misbehaviours;
mod node;
mod pace;
mod process;
mod relay;
pub mod sandbox;
mod stream;
mod wait;

pub use binaries::binary;
pub use capture::{Capture, Packet, Packets};
pub use clock::Clock;
pub use double::{Attempt, Double, Secrets};
pub use gateway::{Gateway, GatewayOptions, INTERFACE, Identity, PORT};
pub use kmes::{KmeOptions, Kmes, test_key};
pub use lab::{Lab, Outer, Site};
pub use memory::{Memory, forms};
pub use node::Node;
pub use pace::Pace;
pub use process::Process;
pub use relay::{Relay, RelayReport, RelayWay, is_data};
pub use stream::{PAYLOAD_TAG, Received, Stream, StreamReport};
pub use wait::wait_until;
