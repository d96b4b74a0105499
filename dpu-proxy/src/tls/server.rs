//! Configurations towards downstream.

use super::secrets::{KeyPair, Roots};
use super::verify::DownstreamVerifier;
use super::{TlsError, protocols, suites};
use dpu_proxy_core::model::DownstreamTls;
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use std::sync::Arc;

/// A downstream context, ready for handshakes.
#[derive(Debug)]
pub struct ServerTls {
    with_alpn: Arc<ServerConfig>,
    /// For clients that offer nothing that we know: Envoy goes on without ALPN, rustls would refuse.
    without_alpn: Arc<ServerConfig>,
    /// URI SANs of the own certificate.
    pub local_uri_sans: Arc<[String]>,
}

impl ServerTls {
    /// Builds it. `roots` is what the context's `trusted_ca` means.
    pub fn new(context: &DownstreamTls, key_pair: &KeyPair, roots: Option<&Roots>) -> Result<Self, TlsError> {
        let (provider, versions) = suites::provider(&context.common)?;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions)?;
        let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(&key_pair.certified)));
        let mut config = builder.with_client_cert_verifier(verifier(context, roots)?).with_cert_resolver(resolver);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = protocols(&context.common.alpn);
        Ok(Self { with_alpn: Arc::new(config), without_alpn, local_uri_sans: Arc::clone(&key_pair.uri_sans) })
    }

    /// The configuration for a client that offers these protocols.
    pub fn config<'a>(&self, mut offered: impl Iterator<Item = &'a [u8]>) -> Arc<ServerConfig> {
        let known = &self.with_alpn.alpn_protocols;
        match offered.any(|protocol| known.iter().any(|own| own == protocol)) {
            true => Arc::clone(&self.with_alpn),
            false => Arc::clone(&self.without_alpn),
        }
    }
}

fn verifier(context: &DownstreamTls, roots: Option<&Roots>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(roots) = roots else {
        return match context.require_client_certificate {
            true => Err(TlsError::TrustMissing),
            false => Ok(Arc::new(NoClientAuth)),
        };
    };
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots.store), super::provider());
    let builder = match context.require_client_certificate {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    let chain = builder.build().map_err(|error| TlsError::Unusable(error.to_string()))?;
    Ok(Arc::new(DownstreamVerifier::new(&context.common.validation, chain)))
}
