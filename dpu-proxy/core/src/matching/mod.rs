//! Which filter chain takes a connection, and which virtual host and route take a request.
//!
//! In: model and facts. Out: borrowed parts of the model. No clock, no lock; random numbers are arguments.

pub mod filter_chain;
pub mod header;
pub mod path;
pub mod query;
pub mod route;
pub mod string;
pub mod virtual_host;
