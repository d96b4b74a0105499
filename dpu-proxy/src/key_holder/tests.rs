//! What the adapter is told of the keys.

use super::*;
use crate::tls::secrets::{IdentitySecret, Roots};
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256};
use std::time::SystemTime;

fn secret() -> IdentitySecret {
    let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let pem = CertificateParams::default().self_signed(&key).expect("certificate").pem();
    let key_pair = KeyPair::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).expect("pair");
    let not_after = SystemTime::now() + Duration::from_secs(60);
    IdentitySecret { key_pair, roots: Roots::from_pem(pem.as_bytes()).expect("roots"), not_after }
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "bookinfo", account).expect("valid")
}

#[test]
fn every_key_is_told_once_and_again_when_it_is_renewed_or_gone() {
    let (mut told, mut secrets) = (Told::default(), Secrets::default());
    secrets.identities.insert(identity("reviews"), secret());
    secrets.identities.insert(identity("ratings"), secret());
    let first = told.update(&secrets);
    assert_eq!((first.changed.len(), first.removed.len()), (2, 0));
    let reviews = first.changed.iter().find(|key| key.identity.ends_with("/reviews")).expect("told");
    assert_eq!(reviews.schemes, [0x0403], "a P-256 key makes one kind of signature");
    assert_eq!(reviews.chain_der.len(), 1);
    assert_eq!(told.update(&secrets), HeldKeys::default());

    secrets.identities.insert(identity("reviews"), secret());
    secrets.identities.remove(&identity("ratings"));
    let second = told.update(&secrets);
    assert_eq!(second.removed, [identity("ratings").to_string()]);
    let [renewed] = second.changed.as_slice() else { panic!("one key is new") };
    assert_ne!(renewed.key_id, reviews.key_id);
}

#[test]
fn a_refused_transcript_is_answered_with_the_reason_and_no_signature() {
    let answer = signature(&Secrets::default(), &Transcript { id: 7, ..Transcript::default() });
    assert_eq!(answer.id, 7);
    assert!(answer.signature.is_empty() && answer.error.contains("not what a TLS 1.3 client signs"), "{answer:?}");
}
