//! Addresses, routes, policy tables and the fail-closed block.
