//! From Envoy's configuration to `model`, pure: files are read only through the closure that is passed in.
//!
//! * `bootstrap`: an Envoy bootstrap file, YAML or JSON (`json`), with its static resources.
//! * `assemble`: accepted resources, by type and name → `model::Snapshot`.
//! * One module per kind of resource or part: `listener`, `filter_chain`, `http`, `http_filter`, `route`,
//!   `route_action`, `retry`, `header_edit`, `cluster`, `load_balancing`, `endpoint`, `tls`, `secret`, `rbac`,
//!   `matcher`, `access_log`, `format`.
//!
//! A bad resource is refused alone (`ConfigError`: resource, field, reason with what to do). What is asked for and not
//! done is never dropped silently: it is refused when leaving it out would change who may do what or where traffic
//! goes, else it is reported (`Unsupported`). `census` reports every field that is set and that no module here reads.

// Envoy still accepts the fields that its API marks as deprecated, and control planes send them.
#![allow(deprecated)]

pub mod access_log;
pub mod any;
pub mod assemble;
pub mod bootstrap;
pub mod census;
pub mod cluster;
pub mod convert;
pub mod descriptors;
pub mod endpoint;
pub mod filter_chain;
pub mod format;
pub mod header_edit;
pub mod http;
pub mod http_filter;
pub mod json;
pub mod listener;
pub mod load_balancing;
pub mod matcher;
pub mod rbac;
pub mod report;
pub mod resource;
pub mod retry;
pub mod route;
pub mod route_action;
pub mod secret;
pub mod tls;

#[cfg(test)]
mod tests;

pub use report::{ConfigError, ReadFile, Unsupported};
