//! Configurations towards upstream.

use super::secrets::{KeyPair, Roots};
use super::verify::UpstreamVerifier;
use super::{TlsError, protocols, suites};
use dpu_proxy_core::model::UpstreamTls;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use std::sync::Arc;

/// An upstream context, ready for handshakes.
#[derive(Debug)]
pub struct ClientTls {
    pub with_sni: Arc<ClientConfig>,
    pub without_sni: Arc<ClientConfig>,
    /// SNI of the context; empty: none is sent.
    pub sni: Arc<str>,
    /// URI SANs of the own certificate.
    pub local_uri_sans: Arc<[String]>,
}

impl ClientTls {
    /// Builds it. `roots` is what the context's `trusted_ca` means; `alpn` takes the place of its list.
    pub fn new(
        context: &UpstreamTls,
        key_pair: Option<&KeyPair>,
        roots: Option<&Roots>,
        alpn: &[String],
    ) -> Result<Self, TlsError> {
        let (provider, versions) = suites::provider(&context.common)?;
        let roots = roots.map(|roots| Arc::clone(&roots.store));
        let verifier = UpstreamVerifier::new(&context.common.validation, roots, context.auto_sni_san_validation);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match key_pair {
            Some(pair) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&pair.certified))))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols(alpn);
        config.resumption = Resumption::disabled();
        let mut without_sni = config.clone();
        without_sni.enable_sni = false;
        Ok(Self {
            with_sni: Arc::new(config),
            without_sni: Arc::new(without_sni),
            sni: context.sni.as_str().into(),
            local_uri_sans: key_pair.map_or_else(|| Arc::from([]), |pair| Arc::clone(&pair.uri_sans)),
        })
    }
}
