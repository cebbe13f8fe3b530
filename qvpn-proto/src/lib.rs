//! Decides everything, touches nothing: the exchange, keys, epochs and timers.
