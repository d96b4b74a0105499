//! Upstream: which endpoint, what it is carrying, and a connection to it.
//!
//! * `cluster`: `ClusterRuntime`, a cluster on one worker: hosts, balancer, limits, statistics.
//! * `host`: an endpoint with its active requests and outlier state.
//! * `target`: where and how to connect: address, source, device, TLS; the key of a pool.
//! * `connect`: opens a target. `inward`: into this proxy's own inbound side.
//! * `dns`: endpoints of STRICT_DNS and LOGICAL_DNS clusters.

pub mod cluster;
pub mod connect;
pub mod dns;
pub mod host;
pub mod inward;
pub mod target;

pub use cluster::{ClusterRuntime, NoEndpoint, PickContext};
pub use connect::{ConnectError, ConnectErrorKind, Connected, connect};
pub use host::{ActiveRequest, Host, Outcome};
pub use target::{Target, TargetOptions, TlsTarget, target};
