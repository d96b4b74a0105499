//! The shared L4/L7 proxy of a server's pods, on its DPU.
//!
//! Decisions are `dpu-proxy-core`'s; here is what touches sockets, clocks and threads.
//!
//! * `program`: from the command line to running threads. `control`: what changes while they run.
//! * `worker`, `workers`, `shared`: a thread per core, and what the process has once.
//! * `listener`: from a listening socket to a filter chain. `connection`: what is known then.
//! * `authorize`, `http`, `tcp_proxy`, `local`: the data paths. `fairness`: who may. `io`: bytes, plain or in TLS.
//! * `upstream`: hosts and connections to them. `tls`: contexts, secrets, identities.
//! * `ads`, `steering`: towards the control plane and the dataplane. `key_holder`: what the host may have signed.
//! * `telemetry`, `access_log`, `stats`, `stream_info`, `admin`: what is told of it all.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod ads;
pub mod authorize;
pub mod connection;
pub mod control;
pub mod fairness;
pub mod http;
pub mod io;
pub mod key_holder;
pub mod listener;
pub mod local;
pub mod program;
pub mod shared;
pub mod stats;
pub mod steering;
pub mod stream_info;
pub mod tcp_proxy;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod upstream;
pub mod worker;
pub mod workers;
