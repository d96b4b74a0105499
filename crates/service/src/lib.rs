//! What every program does the same way: logs, health, metrics, signals and authenticated gRPC.
//!
//! In: command-line arguments (`LogArgs`, `TlsArgs`). Out: an initialised subscriber, an HTTP server
//! with `/healthz`, `/readyz` and `/metrics`, a shutdown token, tonic TLS settings. What a program
//! is ready for, and what it measures, is its own affair.

pub mod backoff;
pub mod grpc;
pub mod health;
pub mod http;
pub mod logging;
pub mod report;
pub mod signal;
