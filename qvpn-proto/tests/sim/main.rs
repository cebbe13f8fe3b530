//! Simulates sites on a virtual clock: any number of [`Peer`](qvpn_proto::Peer)s with the data path's real
//! keys, and a network, KMEs and clocks with faults. All faults follow from one seed, and a small reference
//! model checks each step.
//!
//! A failure prints its seed and the last steps. To run one seed again and print every step: `QVPN_SIM_SEED=7
//! cargo test -p qvpn-proto --test sim -- --ignored --nocapture one_seed`
#![allow(clippy::unwrap_used)]

mod clock;
mod exhaustive;
mod key_files;
mod kms;
mod lane;
mod lanes;
mod link;
mod liveness;
mod model;
mod network;
mod pair;
mod path;
mod site;
mod steps;
mod storm;
mod storms;
mod world;
