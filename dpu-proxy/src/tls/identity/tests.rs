//! An authority of the test's own signs what the keeper asks for.

use super::*;
use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Authority {
    pem: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

fn authority() -> Authority {
    let key = rcgen::KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("self-signed").pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

impl Authority {
    fn sign(&self, csr_pem: &str, lifetime: Duration) -> Vec<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).expect("a request");
        let now = SystemTime::now();
        request.params.not_before = now.into();
        request.params.not_after = (now + lifetime).into();
        vec![request.signed_by(&self.issuer).expect("signed").pem(), self.pem.clone()]
    }
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "bookinfo", account).expect("valid")
}

#[tokio::test]
async fn an_identity_is_signed_and_renewed_around_half_of_its_life() {
    let authority = Arc::new(authority());
    let sign: Sign = Box::new(move |request| {
        let chain = authority.sign(&request.csr_pem, Duration::from_secs(2));
        Box::pin(async move { Ok(chain) })
    });
    let (identities, mut events) = start(sign);
    identities.want(BTreeSet::from([identity("reviews")]));
    let Some(Event::Signed(of, first)) = events.recv().await else { panic!("signed") };
    assert_eq!(of, identity("reviews"));
    assert_eq!(first.key_pair.uri_sans[..], ["spiffe://cluster.local/ns/bookinfo/sa/reviews".to_owned()]);
    let again = tokio::time::timeout(Duration::from_secs(2), events.recv()).await.expect("before it expires");
    let Some(Event::Signed(_, second)) = again else { panic!("renewed") };
    assert_ne!(first.key_pair.id, second.key_pair.id, "a new key for a new certificate");
}

#[tokio::test]
async fn a_certificate_for_another_identity_is_refused_and_asked_for_again() {
    let authority = Arc::new(authority());
    let count = Arc::new(AtomicUsize::new(0));
    let sign: Sign = Box::new(move |request| {
        let wrong = Request::new(&identity("somebody-else")).expect("request");
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        let csr = if first { wrong.csr_pem } else { request.csr_pem };
        let chain = authority.sign(&csr, Duration::from_secs(600));
        Box::pin(async move { Ok(chain) })
    });
    let (identities, mut events) = start(sign);
    identities.want(BTreeSet::from([identity("reviews")]));
    assert!(matches!(events.recv().await, Some(Event::Failed(..))), "neither the key nor the name fits");
    assert!(matches!(events.recv().await, Some(Event::Signed(..))));
}

#[test]
fn renewal_is_around_half_of_what_is_left() {
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    assert_eq!(renewal(now, now + day, 0.0), day.mul_f64(0.45));
    assert!(renewal(now, now + day, 1.0) <= day.mul_f64(0.56));
    assert_eq!(renewal(now, now - day, 0.5), Duration::ZERO);
}
