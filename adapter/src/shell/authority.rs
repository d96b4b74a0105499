//! The mesh's certificate service, asked in the name of a workload.
//!
//! istiod lets a trusted node account (`CA_TRUSTED_NODE_ACCOUNTS`) ask for certificates of pods on its
//! own node: the caller shows a token that is bound to its pod, and no client certificate. Requests,
//! chains and the token are never logged.

use mesh_api::istio_ca::IstioCertificateRequest;
use mesh_api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_model::Identity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use std::path::PathBuf;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// One attempt may take this long.
const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 3;

/// What istiod asks of who has certificates made for others; it tells the caller no more than that he may not.
const TRUST: &str = "CA_TRUSTED_NODE_ACCOUNTS of istiod must list the adapter's service account, and a pod with that identity must run on the adapter's node";

/// Where to ask, and as whom.
#[derive(Clone, Debug)]
pub struct CertificateAuthority {
    client: IstioCertificateServiceClient<Channel>,
    cluster_id: String,
    /// Read at every use: it is renewed. `None`: no token is shown (a test's authority).
    token: Option<PathBuf>,
}

impl CertificateAuthority {
    /// Over a channel that connects when it is used.
    pub fn new(channel: Channel, cluster_id: &str, token: Option<PathBuf>) -> Self {
        Self { client: IstioCertificateServiceClient::new(channel), cluster_id: cluster_id.to_owned(), token }
    }

    /// Has a request signed: the chain, leaf first.
    pub(super) async fn sign(&self, identity: &Identity, csr: &str, validity_s: u64) -> Result<Vec<String>, Status> {
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
        if let Some(bearer) = self.bearer()? {
            request.metadata_mut().insert("authorization", bearer);
        }
        let answer = tokio::time::timeout(TIMEOUT, self.client.clone().create_certificate(request)).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("the certificate service did not answer in time"))?;
        answer.map(|answer| answer.into_inner().cert_chain).map_err(|status| self.explain(&status))
    }

    #[allow(clippy::result_large_err)]
    fn bearer(&self) -> Result<Option<MetadataValue<Ascii>>, Status> {
        let Some(path) = &self.token else { return Ok(None) };
        let told = |reason: &str| {
            let text = "cannot use --istio-token";
            Status::failed_precondition(format!("{text} {}: {reason}", path.display()))
        };
        let token = std::fs::read_to_string(path).map_err(|error| told(&error.to_string()))?;
        let mut bearer = MetadataValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| told("it holds no token (a projected service account token with audience istio-ca)"))?;
        bearer.set_sensitive(true);
        Ok(Some(bearer))
    }

    /// The service's words, with the causes of a connection that failed, and what to look at.
    fn explain(&self, status: &Status) -> Status {
        let text = xds::client::describe(status);
        let is_refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
        let advice = match &self.token {
            _ if !is_refused => String::new(),
            Some(path) if !status.message().contains("impersonation") => {
                format!("; --istio-token {} must be this pod's own, with audience istio-ca", path.display())
            }
            _ => format!("; {TRUST}"),
        };
        Status::new(status.code(), format!("the certificate service: {text}{advice}"))
    }
}

fn is_worth_retrying(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted)
}

/// Whether to try again helps only when something has changed.
pub(super) fn is_denial(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition)
}
