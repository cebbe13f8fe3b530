//! What the programs of `make bench` share: the numbered way from measurements to a table, and batches of datagrams.
//! Nothing here is part of a product, and no test asserts on speed.

pub mod load;
pub mod search;
pub mod stats;
pub mod sys;
