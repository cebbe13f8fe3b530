//! Shared code of the programs of `make bench`: load, search, statistics, and batches of datagrams. No test
//! asserts on speed.

pub mod load;
pub mod search;
pub mod stats;
pub mod sys;
