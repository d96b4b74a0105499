//! What one replica must do, and which one that is.
//!
//! `lease` decides (pure), `election` asks the API server, `duties` are done while the lease is held.
//! Everything else the replicas do side by side: each serves every view, and writes what is told to it.

pub mod duties;
pub mod election;
pub mod lease;
