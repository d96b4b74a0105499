//! What a configuration means, as plain immutable data behind `Arc`s.
//!
//! In: `config` builds it from resources. Out: `matching`, `balance`, `policy` and the shell read it.
//! Names follow Envoy's API; durations are `std::time::Duration`, and an Envoy duration of zero that
//! means "off" is `None` here.

pub mod access_log;
pub mod cluster;
pub mod endpoint;
pub mod http;
pub mod listener;
pub mod matcher;
pub mod probe;
pub mod rbac;
pub mod route;
pub mod scope;
pub mod tls;

pub use access_log::*;
pub use cluster::*;
pub use endpoint::*;
pub use http::*;
pub use listener::*;
pub use matcher::*;
pub use probe::*;
pub use rbac::*;
pub use route::*;
pub use scope::*;
pub use tls::*;
