//! Istio's certificate service as istiod offers it to a trusted node account: signs for the impersonated identity.

use super::caller;
use crate::programs::Authority;
use mesh_api::istio_ca::istio_certificate_service_server::IstioCertificateService;
use mesh_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The mesh's authority.
#[derive(Clone)]
pub struct Certificates {
    pub authority: Arc<Authority>,
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let identity = impersonated(request.get_ref())
            .ok_or_else(|| Status::invalid_argument("metadata.ImpersonatedIdentity is missing"))?;
        caller::check_impersonation(&request, &identity)?;
        let request = request.into_inner();
        let chain = self
            .authority
            .sign(&request.csr, &identity)
            .map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        tracing::info!(identity, "signed");
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain }))
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<String> {
    let value = request.metadata.as_ref()?.fields.get("ImpersonatedIdentity")?;
    match value.kind.as_ref()? {
        Kind::StringValue(text) if text.starts_with("spiffe://cluster.local/ns/") => Some(text.clone()),
        _ => None,
    }
}
