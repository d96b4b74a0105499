//! Towards the dataplane of this DPU, over a Unix SOCK_SEQPACKET socket.
//!
//! In: the ports and the uplink that the dataplane has. Out: listening sockets for it to steer into,
//! and which workloads are ready. `session` decides what is to be said; `socket` says it; `client`
//! connects, again and again, and tells the dataplane everything anew each time.

mod client;
mod session;
mod socket;

pub use client::{Client, Event, start};
pub use session::{Listening, Port, Ports, Readiness, Registration};
