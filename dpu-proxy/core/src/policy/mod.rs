//! What is done to requests and responses: authorization, faults, cross-origin rules, header edits,
//! retries, timeouts, rewrites, and the answers that the proxy gives itself.
//!
//! In: model, heads and facts. Out: decisions, and edited heads. Random numbers are arguments.

pub mod cors;
pub mod fault;
pub mod grpc;
pub mod headers;
pub mod local_reply;
pub mod overrides;
pub mod rbac;
pub mod redirect;
pub mod retry;
pub mod rewrite;
pub mod sanitize;
pub mod timeout;
pub mod xfcc;
