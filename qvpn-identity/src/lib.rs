//! A site's static keys and their text forms: an X25519 key and an ML-KEM-1024 key that together name a gateway, and
//! the pre-shared key that a pair of sites may add.
//!
//! The two primitives stand in [`dh`] and [`kem`], over locked memory, so that the exchange uses the same code for its
//! ephemeral keys.

pub mod dh;
mod error;
pub mod kem;
mod psk;
mod public;
mod secret;
mod text;

pub use error::IdentityError;
pub use psk::Psk;
pub use public::PublicIdentity;
pub use secret::SecretIdentity;
