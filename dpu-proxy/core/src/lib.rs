//! The proxy's decisions, without a socket, a clock or the environment.
//!
//! * `model`: what a configuration means, as plain data; every worker reads the same `Arc`s.
//! * `config`: Envoy bootstrap and xDS resources → `model`, each refused alone, by name, with its reason.
//! * `matching`: which listener, filter chain and route; pure functions over one snapshot.
//! * `balance`: which endpoint.
//! * `policy`: authorization, faults, retries, header edits.
//! * `probe`: what the kubelet of the host asks, and nothing else.
//! * `http1`: the HTTP/1.1 codec, sans I/O. `head` is the request and response head that all codecs share.

pub mod balance;
pub mod config;
pub mod format;
pub mod head;
pub mod http1;
pub mod matching;
pub mod model;
pub mod policy;
pub mod probe;
