//! The server: `view` holds resources, `core` decides for one stream, `shell` talks.

pub mod core;
mod shell;
mod store;
pub mod view;

pub use shell::{Authorize, Event, Peer, service};
pub use store::{Store, Transaction};
