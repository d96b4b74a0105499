//! The forwarding engine of a DPU: eBPF programs, their loader, and the API that fills their tables.
//!
//! In: `Apply` of the node daemon, listening sockets of the proxy, packets. Out: packets, port states,
//! counters. Decisions about packets are in `bpf/`; `state` is pure; `sys` is the one door to the kernel.

#![deny(unsafe_code)]

pub mod api;
pub mod drop_reason;
pub mod engine;
pub mod kernel;
pub mod metrics;
pub mod program;
pub mod state;
pub mod steering;
#[allow(unsafe_code)]
pub mod sys;
pub mod underlay;

pub use drop_reason::DropReason;
