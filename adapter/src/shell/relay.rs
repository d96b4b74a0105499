//! Signing requests from the DPU, passed on to the mesh's certificate service.
//!
//! The key is made on the DPU; the host sees the request and the certificate only. A request is
//! passed on only for an identity that a pod attached to this host has, and only if the request
//! itself asks for that identity. Requests and chains are never logged.

use super::metrics::Metrics;
use mesh_api::ca::certificate_relay_server::CertificateRelay;
use mesh_api::ca::{SignRequest, SignResponse};
use mesh_api::istio_ca::IstioCertificateRequest;
use mesh_api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_model::Identity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509CertificationRequest};

/// One attempt may take this long.
const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 3;
/// What is asked for when the request says nothing: a day.
const DEFAULT_VALIDITY_S: u64 = 24 * 3600;

/// The mesh's certificate service.
#[derive(Clone, Debug)]
pub struct CertificateAuthority {
    client: IstioCertificateServiceClient<Channel>,
    cluster_id: String,
}

impl CertificateAuthority {
    /// Connects when it is first needed.
    pub fn new(endpoint: service::grpc::Endpoint, cluster_id: &str) -> Self {
        Self { client: IstioCertificateServiceClient::new(endpoint.connect_lazy()), cluster_id: cluster_id.to_owned() }
    }

    async fn sign(&self, identity: &Identity, csr: &str, validity_s: u64) -> Result<Vec<String>, Status> {
        let mut backoff = xds::Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        for _ in 1..ATTEMPTS {
            match self.attempt(identity, csr, validity_s).await {
                Err(status) if is_worth_retrying(&status) => {
                    tracing::debug!(%identity, code = ?status.code(), "the certificate service failed; trying again");
                    tokio::time::sleep(backoff.next(0.5)).await;
                }
                result => return result,
            }
        }
        self.attempt(identity, csr, validity_s).await
    }

    async fn attempt(&self, identity: &Identity, csr: &str, validity_s: u64) -> Result<Vec<String>, Status> {
        let text = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: i64::try_from(validity_s).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), text)].into() }),
        });
        let cluster = MetadataValue::try_from(&self.cluster_id);
        request.metadata_mut().insert("clusterid", cluster.map_err(|_| Status::internal("--cluster-id is not ASCII"))?);
        let answer = tokio::time::timeout(TIMEOUT, self.client.clone().create_certificate(request)).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("the certificate service did not answer in time"))?;
        Ok(answer?.into_inner().cert_chain)
    }
}

fn is_worth_retrying(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted)
}

/// The service that dpu-proxy calls.
#[derive(Clone, Debug)]
pub struct Relay {
    identities: Arc<RwLock<BTreeSet<Identity>>>,
    authority: CertificateAuthority,
    metrics: Metrics,
    /// The certificate name that a caller must show, where there is TLS.
    caller: Option<String>,
}

impl Relay {
    /// Signs for these identities, which change as pods come and go.
    pub fn new(
        identities: Arc<RwLock<BTreeSet<Identity>>>,
        authority: CertificateAuthority,
        metrics: Metrics,
        caller: Option<String>,
    ) -> Self {
        Self { identities, authority, metrics, caller }
    }

    async fn answer(&self, request: Request<SignRequest>) -> Result<Vec<String>, Status> {
        self.check_caller(&request)?;
        let SignRequest { identity, csr_pem, validity_seconds } = request.into_inner();
        let identity: Identity = identity.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        self.check_attached(&identity)?;
        let key = check_request(&csr_pem, &identity)?;
        let validity_s = if validity_seconds == 0 { DEFAULT_VALIDITY_S } else { validity_seconds };
        let chain = self.authority.sign(&identity, &csr_pem, validity_s).await?;
        check_chain(&chain, &identity, &key)?;
        Ok(chain)
    }

    // The error is tonic's own and as large as it is.
    #[allow(clippy::result_large_err)]
    fn check_caller(&self, request: &Request<SignRequest>) -> Result<(), Status> {
        let shown = service::grpc::peer_identities(request);
        match &self.caller {
            Some(expected) if !shown.contains(expected) => {
                Err(Status::permission_denied(format!("caller must be {expected}; it showed {shown:?}")))
            }
            _ => Ok(()),
        }
    }

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
            tracing::warn!(identity, code = ?status.code(), reason = status.message(), "a certificate was not signed");
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
