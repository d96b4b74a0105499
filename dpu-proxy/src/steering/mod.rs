//! Towards the dataplane of this DPU, over a Unix SOCK_SEQPACKET socket.
//!
//! In: the ports and the uplink that the dataplane has, and what other proxies do. Out: listening sockets for it to
//! steer into, which workloads are ready, and whether this proxy has taken over or leaves. `session` decides what is
//! to be said; `socket` says it; `client` connects, again and again, and tells the dataplane everything anew each time.

mod client;
mod session;
mod socket;

pub use client::{Client, Event, start};
pub use session::{Listening, Others, Port, Ports, Readiness, Ready, Registration, Standing};
