//! The static keys of a site and their text forms: an X25519 key and an ML-KEM-1024 key, which together
//! identify a gateway, and the optional pre-shared key of a pair of sites.
//!
//! The primitives are in [`dh`] and [`kem`], over locked memory; the exchange uses the same code for its
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
