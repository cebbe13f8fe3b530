//! QKD keys held ahead, so that no epoch waits for a KME. The initiator's stock fetches new keys and offers
//! them. The responder's stock fetches the same keys by their IDs and reports which of them it holds.

mod budget;
mod fault;
mod initiator;
pub mod limits;
mod responder;

pub use budget::{Budget, Verdict};
pub use fault::SupplyFault;
pub use initiator::InitiatorStock;
pub use responder::ResponderStock;

#[cfg(test)]
mod tests;
