//! Signing requests from the DPU, passed on to the mesh's certificate service.
//!
//! The key is made on the DPU; the host sees the request and the certificate only. A request is
//! passed on only for an identity that a pod attached to this host has, and only if the request
//! itself asks for that identity. Requests and chains are never logged.

use super::authority::{self, CertificateAuthority};
use super::metrics::Metrics;
use super::server::Guard;
use super::troubles::{Step, Troubles};
use mesh_api::ca::certificate_relay_server::CertificateRelay;
use mesh_api::ca::{SignRequest, SignResponse};
use mesh_model::Identity;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509CertificationRequest};

/// What is asked for when the request says nothing: a day.
const DEFAULT_VALIDITY_S: u64 = 24 * 3600;

/// The service that dpu-proxy calls.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    identities: Arc<RwLock<BTreeSet<Identity>>>,
    authority: CertificateAuthority,
    metrics: Metrics,
    troubles: Troubles,
    guard: Guard,
}

impl Relay {
    /// Signs for these identities, which change as pods come and go.
    pub(super) fn new(
        identities: Arc<RwLock<BTreeSet<Identity>>>,
        authority: CertificateAuthority,
        metrics: Metrics,
        troubles: Troubles,
        guard: Guard,
    ) -> Self {
        Self { identities, authority, metrics, troubles, guard }
    }

    async fn answer(&self, request: Request<SignRequest>) -> Result<Vec<String>, Status> {
        self.guard.check(&request)?;
        let SignRequest { identity, csr_pem, validity_seconds } = request.into_inner();
        let identity: Identity = identity.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        self.check_attached(&identity)?;
        let key = check_request(&csr_pem, &identity)?;
        let validity_s = if validity_seconds == 0 { DEFAULT_VALIDITY_S } else { validity_seconds };
        let chain = self.signed(&identity, &csr_pem, validity_s, &key).await;
        let outcome = chain.as_ref().map(drop);
        let outcome = outcome.map_err(|status| (status.message().to_owned(), authority::is_denial(status.code())));
        self.troubles.note(&identity, Step::Certificate, outcome);
        chain
    }

    async fn signed(&self, identity: &Identity, csr: &str, validity_s: u64, key: &[u8]) -> Result<Vec<String>, Status> {
        let chain = self.authority.sign(identity, csr, validity_s).await?;
        check_chain(&chain, identity, key)?;
        Ok(chain)
    }

    // The error is tonic's own and as large as it is.
    #[allow(clippy::result_large_err)]
    fn check_attached(&self, identity: &Identity) -> Result<(), Status> {
        match self.identities.read().unwrap_or_else(PoisonError::into_inner).contains(identity) {
            true => Ok(()),
            false => {
                Err(Status::permission_denied(format!("no pod attached to this host has the identity {identity}")))
            }
        }
    }
}

#[tonic::async_trait]
impl CertificateRelay for Relay {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let identity = request.get_ref().identity.clone();
        let result = self.answer(request).await;
        self.metrics.signed(result.as_ref().map(|_| ()).map_err(Status::code));
        if let Err(status) = &result {
            // What the certificate service says is logged when it changes; the caller asks again and again.
            tracing::debug!(identity, code = ?status.code(), reason = status.message(), "a certificate was not signed");
        }
        result.map(|chain_pem| Response::new(SignResponse { chain_pem }))
    }
}

/// Checks that the request parses and asks for that identity; returns the public key that is in it.
#[allow(clippy::result_large_err)]
fn check_request(pem: &str, identity: &Identity) -> Result<Vec<u8>, Status> {
    let invalid = |reason: String| Status::invalid_argument(format!("the signing request {reason}"));
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| invalid("is not PEM".to_owned()))?;
    let parsed = X509CertificationRequest::from_der(&pem.contents);
    let (_, request) = parsed.map_err(|error| invalid(format!("does not parse: {error}")))?;
    let names: Vec<String> = request.requested_extensions().into_iter().flatten().flat_map(uris).collect();
    match names == [identity.to_string()] {
        true => Ok(request.certification_request_info.subject_pki.raw.to_vec()),
        false => Err(invalid(format!("asks for {names:?}, not for {identity} alone"))),
    }
}

fn uris(extension: &ParsedExtension<'_>) -> Vec<String> {
    let ParsedExtension::SubjectAlternativeName(names) = extension else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => format!("{other:?}"),
    };
    names.general_names.iter().map(text).collect()
}

/// Checks that the answer is a certificate of that identity and key.
#[allow(clippy::result_large_err)]
fn check_chain(chain: &[String], identity: &Identity, key: &[u8]) -> Result<(), Status> {
    let wrong = |reason: &str| Status::internal(format!("the certificate service answered for {identity} {reason}"));
    let leaf = chain.first().ok_or_else(|| wrong("with no certificate"))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(leaf.as_bytes()).map_err(|_| wrong("with what is not PEM"))?;
    let parsed = X509Certificate::from_der(&pem.contents);
    let (_, certificate) = parsed.map_err(|_| wrong("with what is no certificate"))?;
    if certificate.public_key().raw != key {
        return Err(wrong("with a certificate of another key"));
    }
    let names: Vec<String> = certificate.extensions().iter().flat_map(|one| uris(one.parsed_extension())).collect();
    match names.contains(&identity.to_string()) {
        true => Ok(()),
        false => Err(wrong(&format!("with a certificate of {names:?}"))),
    }
}
