//! Gets this program's certificate from the controller, and a new one at half of its life.
//!
//! The key is made here and stays in memory. The token is a file that the kubelet renews, so it is
//! read at each use. Who the program is, the controller finds in the token, not in the request.

use super::certificate::{Facts, Held};
use super::{Endpoint, program_identity};
use crate::backoff::Backoff;
use mesh_api::enroll::EnrollRequest;
use mesh_api::enroll::enrollment_client::EnrollmentClient;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Longest wait for the controller's answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Enroller {
    endpoint: Endpoint,
    token: PathBuf,
    identity: String,
    held: Held,
    backoff: Backoff,
}

impl Enroller {
    pub(super) fn new(endpoint: Endpoint, token: PathBuf, program: &str, node: &str, held: Held) -> Self {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        Self { endpoint, token, identity: program_identity(program, node), held, backoff }
    }

    /// Until the process ends.
    pub(super) async fn run(mut self) {
        loop {
            let wait = match self.enroll().await {
                Ok(facts) => {
                    self.backoff.reset();
                    tracing::info!(identity = self.identity, valid_until_unix_s = facts.not_after, "enrolled");
                    half_life(facts.remaining(SystemTime::now()), fastrand::f64())
                }
                Err(reason) => {
                    tracing::warn!(identity = self.identity, controller = self.endpoint.uri(), reason, "not enrolled");
                    self.held.failed(reason);
                    self.backoff.next(fastrand::f64())
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn enroll(&self) -> Result<Facts, String> {
        let token = self.read_token().await?;
        let key = KeyPair::generate().map_err(|error| format!("no key could be made: {error}"))?;
        let request = EnrollRequest { token, csr_pem: self.signing_request(&key)? };
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.call(request)).await;
        let chain = answer.map_err(|_| format!("{} did not answer in time", self.endpoint.uri()))??;
        self.held.put(&chain, &key).map_err(|error| format!("the controller's certificate is no good: {error}"))
    }

    async fn read_token(&self) -> Result<String, String> {
        let path = self.token.display();
        let token = tokio::fs::read_to_string(&self.token).await;
        let token = token.map_err(|error| format!("cannot read --enroll-token {path}: {error}"))?;
        match token.trim() {
            "" => Err(format!("--enroll-token {path} is empty")),
            token => Ok(token.to_owned()),
        }
    }

    fn signing_request(&self, key: &KeyPair) -> Result<String, String> {
        let wrong = |error: rcgen::Error| format!("{} cannot be asked for: {error}", self.identity);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(self.identity.as_str().try_into().map_err(wrong)?)];
        params.serialize_request(key).and_then(|request| request.pem()).map_err(wrong)
    }

    async fn call(&self, request: EnrollRequest) -> Result<String, String> {
        let channel = self.endpoint.connect().await.map_err(|error| error.to_string())?;
        match EnrollmentClient::new(channel).enroll(request).await {
            Ok(response) => Ok(response.into_inner().chain_pem.concat()),
            Err(status) => Err(format!("the controller refused it ({:?}): {}", status.code(), status.message())),
        }
    }
}

/// About half of what is left, so that programs that started together do not come back together.
fn half_life(remaining: Duration, random: f64) -> Duration {
    remaining.mul_f64(0.45 + 0.1 * random).max(Duration::from_secs(1))
}
