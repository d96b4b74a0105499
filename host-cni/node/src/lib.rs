//! The node daemon: gives pods their VFs and keeps the dataplane as it should be.
//!
//! In: calls of the CNI plugin on a Unix socket, and the node's view from the controller. Out: VFs
//! in pods, ports, routes and services in the dataplane, and the attachments as xDS resources for
//! the adapter. `record` says what was done; `attach` does it; `detach` undoes it from the record,
//! now, later, or after a crash. `install` makes the runtime call us.

#![forbid(unsafe_code)]

pub mod attach;
pub mod call;
pub mod check;
pub mod controller;
pub mod daemon;
pub mod desired;
pub mod detach;
pub mod failure;
pub mod forwarding;
pub mod install;
pub mod intent;
pub mod ipam;
pub mod locks;
pub mod mesh;
pub mod metrics;
pub mod plumbing;
pub mod pod_routes;
pub mod publish;
pub mod record;
pub mod recovery;
pub mod report;
pub mod server;
pub mod status;
pub mod sys;
pub mod vf;
