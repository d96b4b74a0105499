//! Conformance: the same bootstrap file drives a stock Envoy and `dpu-proxy`, and what each does
//! is compared.
//!
//! In: `cases/*.yaml`, each a bootstrap and exchanges to make through it. Out: for every case what a
//! client saw, what the upstreams were asked, and what the access log says, of both proxies. A
//! difference is a failure, unless the case documents it.

pub mod case;
pub mod certificates;
pub mod client;
pub mod observation;
pub mod program;
pub mod runner;
pub mod upstream;
