//! Decides everything, touches nothing: the control messages, the epoch exchange, the keys and their lives.
//!
//! A [`Peer`] is one end's state towards one site. It has no clock, socket or randomness of its own: each call brings
//! the time and a random source, and what is to be done is polled from it.

pub mod config;
pub mod control_link;
pub mod epoch;
pub mod event;
pub mod exchange;
pub mod gate;
pub mod key_schedule;
pub mod messenger;
pub mod path_mtu;
pub mod peer;
pub mod stock;
pub mod time;
mod timers;
pub mod wire;

pub use config::{PeerConfig, QkdPolicy, Role, Suite};
pub use event::{
    Event, Fetch, FetchedKey, KeyKind, KeyName, KmsReport, LaneOrder, LaneReport, Notice, PeerView, State,
    Transmit,
};
pub use peer::Peer;
pub use time::Time;
