//! The one discovery-protocol engine: incremental and state of the world, client and server.
//!
//! `client::core` and `server::core` decide: messages and time are pushed in, messages are pulled
//! out; no socket, no clock, no task. `client::shell` and `server::shell` are the thin tonic
//! programs around them. A resource is a name, a version and an `Any`; what is in it is the
//! caller's affair. A NACK names the one resource that is bad; the rest of the update stays in force.

pub mod client;
mod resource;
pub mod server;

pub use resource::{Rejected, Resource};
pub use service::backoff::Backoff;

/// Largest gRPC message that is sent or taken, in bytes.
pub const MESSAGE_LIMIT_BYTES: usize = 64 * 1024 * 1024;
