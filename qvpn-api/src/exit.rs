//! The exit codes of the programs. They are part of the interface, so that a script can tell one failure
//! from another.

/// The command succeeded.
pub const DONE: u8 = 0;
/// The command failed; the message says why.
pub const FAILED: u8 = 1;
/// The command line was not understood.
pub const USAGE: u8 = 2;
/// The config file was refused.
pub const CONFIG_REFUSED: u8 = 3;
/// No daemon answers on the control socket.
pub const DAEMON_UNREACHABLE: u8 = 4;
/// A check against a real KME failed.
pub const KME_CHECK_FAILED: u8 = 5;
