//! The gRPC service: token and signing request in, certificate out.

use super::authority::{Authority, AuthorityError, Name};
use super::review::{Caller, Review, ReviewError};
use mesh_api::enroll::enrollment_server::{Enrollment, EnrollmentServer};
use mesh_api::enroll::{EnrollRequest, EnrollResponse};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Largest request, in bytes: callers are not known yet.
const REQUEST_LIMIT_BYTES: usize = 64 * 1024;
/// So many tokens are asked for at once.
const REVIEWS: usize = 16;
/// Programs by the service account that they run as.
const PROGRAMS: [(&str, &str); 2] = [("dpumesh-adapter", "adapter"), ("dpumesh-cni-node", "cni-node")];

/// The service, for `tonic::transport::Server::add_service`. Programs run in `namespace`.
pub fn service<R: Review>(authority: Authority, review: R, namespace: &str) -> EnrollmentServer<Enroll<R>> {
    let reviews = Arc::new(Semaphore::new(REVIEWS));
    let service = Enroll { authority, review, namespace: namespace.to_owned(), reviews };
    EnrollmentServer::new(service).max_decoding_message_size(REQUEST_LIMIT_BYTES)
}

/// Gives certificates.
#[allow(missing_debug_implementations)]
pub struct Enroll<R> {
    authority: Authority,
    review: R,
    namespace: String,
    reviews: Arc<Semaphore>,
}

#[tonic::async_trait]
impl<R: Review> Enrollment for Enroll<R> {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let EnrollRequest { token, csr_pem } = request.into_inner();
        let caller = self.caller(&token).await.inspect_err(refused)?;
        let name = self.name(&caller).inspect_err(refused)?;
        let leaf = self.authority.sign(&csr_pem, &name, SystemTime::now()).map_err(status).inspect_err(refused)?;
        tracing::info!(identity = name.identity(), "enrolled");
        Ok(Response::new(EnrollResponse { chain_pem: vec![leaf] }))
    }
}

fn refused(status: &Status) {
    tracing::warn!(code = ?status.code(), reason = status.message(), "enrollment refused");
}

impl<R: Review> Enroll<R> {
    async fn caller(&self, token: &str) -> Result<Caller, Status> {
        if token.is_empty() {
            return Err(Status::unauthenticated("there is no token"));
        }
        let _permit = self.reviews.acquire().await.map_err(|_| Status::unavailable("the controller stops"))?;
        self.review.review(token).await.map_err(|error| match error {
            ReviewError::Unavailable(_) => Status::unavailable(error.to_string()),
            ReviewError::Unknown(_) => Status::unauthenticated(error.to_string()),
            ReviewError::Unsuited(_) => Status::permission_denied(error.to_string()),
        })
    }

    // The error is tonic's own and as large as it is.
    #[allow(clippy::result_large_err)]
    fn name(&self, caller: &Caller) -> Result<Name, Status> {
        let program = PROGRAMS.iter().find(|(account, _)| *account == caller.service_account);
        match program.filter(|_| caller.namespace == self.namespace) {
            Some((_, program)) => Ok(Name { program: (*program).to_owned(), node: caller.node.clone() }),
            None => Err(Status::permission_denied(format!(
                "the token belongs to service account {}/{}, which is no program of {}",
                caller.namespace, caller.service_account, self.namespace
            ))),
        }
    }
}

fn status(error: AuthorityError) -> Status {
    match error {
        AuthorityError::Request(_) => Status::permission_denied(error.to_string()),
        // Which files there are is nobody's business here; the log has it.
        AuthorityError::Read { .. } | AuthorityError::Authority { .. } => {
            tracing::error!(%error, "the authority does not sign");
            Status::unavailable("the controller's authority does not sign; see the controller's log")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::authority::tests::{authority, csr, uri};
    use super::*;
    use rcgen::KeyPair;

    /// Knows tokens `NAMESPACE/ACCOUNT/NODE`.
    struct Fake;

    impl Review for Fake {
        async fn review(&self, token: &str) -> Result<Caller, ReviewError> {
            match token.split('/').collect::<Vec<_>>().as_slice() {
                [namespace, account, node] => Ok(Caller {
                    namespace: (*namespace).to_owned(),
                    service_account: (*account).to_owned(),
                    node: (*node).to_owned(),
                }),
                ["down"] => Err(ReviewError::Unavailable("connection refused".to_owned())),
                _ => Err(ReviewError::Unknown("it is not authenticated".to_owned())),
            }
        }
    }

    async fn enroll(token: &str, identity: &str) -> Result<Vec<String>, Status> {
        let folder = tempfile::tempdir().expect("folder");
        let service = Enroll {
            authority: authority(folder.path(), 2100),
            review: Fake,
            namespace: "dpumesh-system".to_owned(),
            reviews: Arc::new(Semaphore::new(1)),
        };
        let csr_pem = csr(&KeyPair::generate().expect("key"), &[uri(identity)]);
        let answer = service.enroll(Request::new(EnrollRequest { token: token.to_owned(), csr_pem })).await?;
        Ok(answer.into_inner().chain_pem)
    }

    #[tokio::test]
    async fn a_program_gets_the_certificate_of_its_own_account_and_node() {
        for (account, program) in PROGRAMS {
            let token = format!("dpumesh-system/{account}/host1");
            let chain = enroll(&token, &format!("spiffe://dpumesh/{program}/host1")).await.expect("enrolled");
            assert_eq!(chain.len(), 1, "without the root");
        }
    }

    #[tokio::test]
    async fn everybody_else_is_refused_with_the_reason() {
        let own = "spiffe://dpumesh/adapter/host1";
        for (token, identity, code, reason) in [
            ("", own, tonic::Code::Unauthenticated, "no token"),
            ("stranger", own, tonic::Code::Unauthenticated, "does not know the token"),
            ("down", own, tonic::Code::Unavailable, "connection refused"),
            ("default/dpumesh-adapter/host1", own, tonic::Code::PermissionDenied, "no program of dpumesh-system"),
            ("dpumesh-system/default/host1", own, tonic::Code::PermissionDenied, "dpumesh-system/default"),
            ("dpumesh-system/dpumesh-adapter/host2", own, tonic::Code::PermissionDenied, "adapter/host2"),
            ("dpumesh-system/dpumesh-cni-node/host1", own, tonic::Code::PermissionDenied, "cni-node/host1"),
        ] {
            let status = enroll(token, identity).await.expect_err(token);
            assert_eq!(status.code(), code, "{token}: {}", status.message());
            assert!(status.message().contains(reason), "{token}: {}", status.message());
        }
    }
}
