//! TLS with rustls and aws-lc-rs: contexts and secrets in, ready configurations out.
//!
//! * `secrets`: certificates with keys, and trusted roots, by SDS name or by workload identity.
//! * `cache`: configurations by context, secret and ALPN, so that a handshake builds nothing.
//! * `server`, `client`: configurations of both sides. `verify`: whom to trust. `peer`: who came.
//! * `identity`: in mesh mode, keys and signing requests, renewed in time.
//!
//! Sessions are never resumed: a resumed handshake would not look at the client's certificate again.

pub mod cache;
pub mod client;
pub mod identity;
pub mod peer;
pub mod secrets;
pub mod server;
pub mod suites;
pub mod verify;

pub use cache::TlsCache;
pub use client::ClientTls;
pub use server::ServerTls;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use std::sync::{Arc, OnceLock};

/// Why a TLS context cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("secret {name:?} has not arrived: SDS must deliver it, or static_resources.secrets must hold it")]
    SecretMissing { name: String },
    #[error("the certificate of {identity} has not been signed yet")]
    IdentityMissing { identity: String },
    #[error("no certificate: a server needs tls_certificates or tls_certificate_sds_secret_configs")]
    CertificateMissing,
    #[error("client certificates are required but nobody is trusted: give validation_context.trusted_ca")]
    TrustMissing,
    #[error("unusable certificate, key or authority: {0}")]
    Unusable(String),
    #[error("none of the cipher suites {0:?} is supported")]
    CipherSuites(Vec<String>),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Unusable(error.to_string())
    }
}

/// The one provider of this process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

/// Istio's metadata exchange is not spoken, so its protocol is neither offered nor accepted.
pub(crate) const PEER_EXCHANGE: &str = "istio-peer-exchange";

/// ALPN lists as rustls wants them, without what is not spoken.
fn protocols(names: &[String]) -> Vec<Vec<u8>> {
    names.iter().filter(|name| *name != PEER_EXCHANGE).map(|name| name.as_bytes().to_vec()).collect()
}
