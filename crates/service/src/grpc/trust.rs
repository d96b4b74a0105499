//! Whom this program trusts: the authority's file, read again when it changes.

use super::certificate::{Facts, certificates};
use super::reload::Reloaded;
use super::{GrpcError, provider};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

#[derive(Debug)]
struct Authority {
    of_servers: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Authority {
    fn parse(contents: &[Vec<u8>]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&contents.concat())? {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(provider().clone()));
        let of_servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        Ok(Self {
            of_servers: of_servers.map_err(|error| error.to_string())?,
            of_clients: of_clients.map_err(|error| error.to_string())?,
        })
    }
}

/// Verifies peers against the authority of a file. Says which certificate expired, and when.
#[derive(Debug)]
pub(super) struct Trust {
    authority: Reloaded<Authority>,
}

impl Trust {
    pub(super) fn file(path: PathBuf) -> Result<Self, GrpcError> {
        Ok(Self { authority: Reloaded::open(vec![path], Authority::parse)? })
    }
}

/// The peer's certificate by name and date, where its validity is what is wrong; else the error itself.
fn explained(peer: &CertificateDer<'_>, now: UnixTime, error: Error) -> Error {
    let facts = Facts::of(peer);
    let reason = facts.and_then(|facts| facts.check(UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs())).err());
    match reason {
        Some(reason) => CertificateError::Other(OtherError(Arc::new(Invalid(reason)))).into(),
        None => error,
    }
}

/// What is wrong with a peer's certificate.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Invalid(String);

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        peer: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = &self.authority.get().of_servers;
        verifier.verify_server_cert(peer, intermediates, name, ocsp, now).map_err(|error| explained(peer, now, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        peer: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(&*self.authority.get().of_servers, message, peer, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        peer: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(&*self.authority.get().of_servers, message, peer, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    /// Clients of ours have one certificate, and show it unasked.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        peer: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.authority.get().of_clients.verify_client_cert(peer, intermediates, now);
        // The alert that the client gets names the kind of error only if the error stays as it is.
        verified.inspect_err(|error| {
            let reason = explained(peer, now, error.clone());
            tracing::warn!(%reason, "the certificate of a caller was refused");
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        peer: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.get().of_clients.verify_tls12_signature(message, peer, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        peer: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.get().of_clients.verify_tls13_signature(message, peer, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
