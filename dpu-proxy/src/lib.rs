//! The shared L4/L7 proxy of a server's pods, on its DPU.
//!
//! Decisions are `dpu-proxy-core`'s; here is what touches sockets, clocks and threads.
//!
//! * `worker`, `shared`: a thread per core, and what the process has once.
//! * `listener`: from a listening socket to a filter chain. `connection`: what is known then.
//! * `http`: the HTTP data path. `io`: bytes, plain or in TLS.
//! * `upstream`: hosts and connections to them. `tls`: contexts and secrets.
//! * `telemetry`, `access_log`, `stats`, `stream_info`: what is told of it all.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod connection;
pub mod http;
pub mod io;
pub mod listener;
pub mod shared;
pub mod stats;
pub mod stream_info;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod worker;
