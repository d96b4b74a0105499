//! Downstream connections, from the listening socket to the filter chain's terminal filter.
//!
//! * `socket`: listening sockets. `manager`: which of them are open.
//! * `accept`: the one accept loop, and a connection's way from there.
//! * `probe`: the kubelet's probes, which pass from the host to the pod.
//! * `inspect`, `client_hello`, `http_hello`: what its first bytes tell.
//! * `resolve`: listener and filter chain by the facts of a connection.

pub mod accept;
pub mod client_hello;
pub mod http_hello;
pub mod inspect;
pub mod manager;
pub(crate) mod probe;
pub mod resolve;
pub mod socket;
