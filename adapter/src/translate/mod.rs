//! The pure core: sidecar configuration in, shared configuration out. No socket, no clock, no task.
//!
//! `Sidecar` holds what one workload was sent, rewritten for the DPU (`rewrite`) and named by
//! content (`content`), and says when that is complete. An `Assembly` is a complete set: the
//! workload's scope. `Store` keeps each distinct resource once, counted by the scopes that use it.
//! `Aggregate` joins them for all workloads of the node and says what to publish (`Changes`). `origin`
//! finds the Istio objects in it, `status` says how a workload's configuration stands.

pub mod aggregate;
pub mod assembly;
pub mod content;
pub mod origin;
pub mod references;
pub mod rewrite;
pub mod sidecar;
pub mod status;
pub mod store;
pub mod wire;

pub use aggregate::Aggregate;
pub use assembly::Assembly;
pub use content::{Content, Contents, Kind};
pub use sidecar::{Interests, Sidecar};
pub use store::{Changes, Store};
