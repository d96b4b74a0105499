//! Downstream connections, from the listening socket to the filter chain's terminal filter.
//!
//! * `resolve`: listener and filter chain by the facts of a connection.

pub mod resolve;
