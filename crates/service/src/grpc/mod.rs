//! gRPC between programs: mutual TLS that renews without a restart, and who the peer is.
//!
//! A program's certificate carries the URI SAN `spiffe://dpumesh/PROGRAM/NODE`. It comes from files,
//! or from the controller (`enroll`), and is replaced while servers and channels are in use. A
//! server that is given no certificate listens on loopback and Unix sockets only, unless it is told
//! `--insecure`.

mod args;
mod certificate;
mod client;
mod enroll;
mod reload;
mod server;
#[cfg(test)]
mod tests;
mod trust;

pub use args::{CERTIFICATE, TlsArgs};
pub use certificate::{Facts, Held};
pub use client::{ClientTls, Endpoint, channel, endpoint, unix_channel};
pub use server::{Connection, PeerInfo, ServerTls, incoming};

use rustls::crypto::CryptoProvider;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;

/// Trust domain of the programs themselves.
pub const TRUST_DOMAIN: &str = "dpumesh";

/// Why a gRPC server or channel cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error(
        "give all of --tls-certificate, --tls-key and --tls-ca, or all of --enroll, --enroll-token and --tls-ca, or none"
    )]
    Partial,
    #[error("--enroll is given, but this program does not say who it is")]
    NotIdentified,
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", list(paths))]
    Content { paths: Vec<PathBuf>, reason: String },
    #[error("{address} is not loopback and there is no certificate: give --tls-certificate, --tls-key and --tls-ca")]
    Unprotected { address: SocketAddr },
    #[error("{uri:?} is not an address: expected http://HOST:PORT or https://HOST:PORT")]
    Address { uri: String },
    #[error("{name:?} is not a DNS name that a certificate can carry")]
    ServerName { name: String },
    #[error("{uri} needs TLS: give --tls-certificate, --tls-key and --tls-ca")]
    NoCertificate { uri: String },
    #[error("{uri} is plaintext and not loopback: use https://, or --insecure in a test")]
    Plaintext { uri: String },
    #[error("TLS settings were refused: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot connect to {uri}: {reason}")]
    Connect { uri: String, reason: String },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The one implementation of cryptography.
fn provider() -> &'static CryptoProvider {
    static PROVIDER: LazyLock<CryptoProvider> = LazyLock::new(rustls::crypto::aws_lc_rs::default_provider);
    &PROVIDER
}

/// URI SANs, then DNS SANs, of the client's certificate; empty without one.
pub fn peer_identities<T>(request: &tonic::Request<T>) -> Vec<String> {
    peer_identities_of(request.extensions())
}

/// The same, from the extensions of a request.
pub fn peer_identities_of(extensions: &tonic::Extensions) -> Vec<String> {
    extensions.get::<PeerInfo>().map(|peer| peer.identities.to_vec()).unwrap_or_default()
}

/// The name that a program of this node must show, e.g. `spiffe://dpumesh/dpu-proxy/host1`.
pub fn program_identity(program: &str, node: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{program}/{node}")
}

/// The DNS SAN that a program's certificate carries beside its URI SAN, e.g. `adapter.host1.dpumesh`:
/// what a client passes as `server_name`.
pub fn server_name(program: &str, node: &str) -> String {
    format!("{program}.{node}.{TRUST_DOMAIN}")
}

/// Refuses a caller that is not `program` of `node`.
// The error is tonic's own and as large as it is.
#[allow(clippy::result_large_err)]
pub fn require_program<T>(request: &tonic::Request<T>, program: &str, node: &str) -> Result<(), tonic::Status> {
    let expected = program_identity(program, node);
    let shown = peer_identities(request);
    match shown.contains(&expected) {
        true => Ok(()),
        false => Err(tonic::Status::permission_denied(format!("caller must be {expected}; it showed {shown:?}"))),
    }
}
