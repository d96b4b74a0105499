//! The controller's own certificate: issued from the authority, in memory, renewed.

use super::authority::{Authority, AuthorityError, Name};
use rcgen::KeyPair;
use service::backoff::Backoff;
use service::grpc::{Facts, Held};
use std::time::{Duration, SystemTime};

/// A certificate that is in force now and is renewed at half of its life, until the process ends.
pub fn hold(authority: Authority, name: Name) -> Result<Held, AuthorityError> {
    let held = Held::default();
    let facts = renew(&authority, &name, &held)?;
    let renewing = held.clone();
    tokio::spawn(async move {
        let mut wait = half_life(&facts);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            tokio::time::sleep(wait).await;
            wait = match renew(&authority, &name, &renewing) {
                Ok(facts) => {
                    backoff.reset();
                    half_life(&facts)
                }
                Err(error) => {
                    tracing::error!(%error, "the controller's own certificate is not renewed");
                    renewing.failed(error.to_string());
                    backoff.next(fastrand::f64())
                }
            };
        }
    });
    Ok(held)
}

fn renew(authority: &Authority, name: &Name, held: &Held) -> Result<Facts, AuthorityError> {
    let failed = |reason: String| AuthorityError::Authority { path: authority.certificate.clone(), reason };
    let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
    let pem = authority.issue(&key, name, SystemTime::now())?;
    held.put(&pem, &key).map_err(failed)
}

fn half_life(facts: &Facts) -> Duration {
    (facts.remaining(SystemTime::now()) / 2).max(Duration::from_secs(1))
}
