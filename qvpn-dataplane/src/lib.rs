//! Moves packets under keys that it is given.
