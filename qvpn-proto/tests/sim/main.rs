//! Sites on a virtual clock: any number of [`Peer`](qvpn_proto::Peer)s with the data path's real keys, a network, KMEs and
//! clocks that do what they should not, all from one seed, and a small reference model that looks at each step.
//!
//! A failure prints its seed and what happened last. To run one seed again, with all that happens in it:
//! `QVPN_SIM_SEED=7 cargo test -p qvpn-proto --test sim -- --ignored --nocapture one_seed`
#![allow(clippy::unwrap_used)]

mod clock;
mod exhaustive;
mod key_files;
mod kms;
mod lane;
mod lanes;
mod link;
mod model;
mod network;
mod pair;
mod path;
mod site;
mod steps;
mod storm;
mod storms;
mod world;
