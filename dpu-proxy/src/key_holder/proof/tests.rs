//! What the host may have signed, and everything else that it may not.

use super::*;
use crate::tls::secrets::{IdentitySecret, KeyPair, Roots};
use mesh_api::ca::Transcript;
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256};
use std::time::{Duration, SystemTime};

const REVIEWS: &str = "spiffe://cluster.local/ns/bookinfo/sa/reviews";
const P256: u32 = 0x0403;

struct World {
    secrets: Secrets,
    key_id: u64,
}

fn world() -> World {
    let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let pem = CertificateParams::default().self_signed(&key).expect("certificate").pem();
    let key_pair = KeyPair::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).expect("pair");
    let (key_id, roots) = (key_pair.id, Roots::from_pem(pem.as_bytes()).expect("roots"));
    let secret = IdentitySecret { key_pair, roots, not_after: SystemTime::now() + Duration::from_secs(60) };
    let identities = [(REVIEWS.parse().expect("identity"), secret)].into();
    World { secrets: Secrets { identities, ..Secrets::default() }, key_id }
}

fn proof(context: &[u8], hash: usize) -> Vec<u8> {
    [PADDING.as_slice(), context, &vec![7; hash]].concat()
}

impl World {
    fn transcript(&self, input: Vec<u8>) -> Transcript {
        Transcript { id: 1, identity: REVIEWS.to_owned(), key_id: self.key_id, input, scheme: P256 }
    }

    fn refuses(&self, transcript: &Transcript) -> Refusal {
        sign(&self.secrets, transcript).expect_err("it must not be signed")
    }
}

#[test]
fn a_clients_proof_is_signed_with_the_key_of_its_certificate() {
    let world = world();
    for hash in HASHES {
        let input = proof(CONTEXT, hash);
        let signature = sign(&world.secrets, &world.transcript(input.clone())).expect("signed");
        let identity = REVIEWS.parse().expect("identity");
        let leaf = world.secrets.identities[&identity].key_pair.certified.cert[0].clone();
        assert!(is_signed(&leaf, &input, &signature), "the signature is of that key");
    }
}

fn is_signed(leaf: &[u8], input: &[u8], signature: &[u8]) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(leaf).expect("certificate");
    let point = certificate.public_key().subject_public_key.data.to_vec();
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1, point);
    key.verify(input, signature).is_ok()
}

#[test]
fn a_servers_proof_and_arbitrary_bytes_are_refused() {
    let world = world();
    let inputs = [
        proof(b"TLS 1.3, server CertificateVerify\0", 32),
        proof(b"TLS 1.3, client CertificateVerify", 33),
        proof(b"TLS 1.3, client CertificateVerify\0", 31),
        proof(b"TLS 1.3, client CertificateVerify\0", 64),
        proof(CONTEXT, 0),
        proof(CONTEXT, 32)[1..].to_vec(),
        [b" ".as_slice(), &proof(CONTEXT, 32)].concat(),
        b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(),
        vec![0; 146],
        Vec::new(),
    ];
    for input in inputs {
        assert_eq!(world.refuses(&world.transcript(input)), Refusal::NoClientProof);
    }
}

#[test]
fn identities_keys_and_schemes_that_are_not_ours_are_refused() {
    let world = world();
    let good = world.transcript(proof(CONTEXT, 32));
    for identity in ["spiffe://cluster.local/ns/bookinfo/sa/ratings", "reviews", ""] {
        let stranger = Transcript { identity: identity.to_owned(), ..good.clone() };
        assert_eq!(world.refuses(&stranger), Refusal::NoKey(identity.to_owned()));
    }
    let older = Transcript { key_id: good.key_id + 1, ..good.clone() };
    assert_eq!(world.refuses(&older), Refusal::Renewed(REVIEWS.parse().expect("identity")));
    // PSS, P-384, Ed25519, one that does not exist, and a number that is no scheme.
    for scheme in [0x0804, 0x0503, 0x0807, 0, 0x1_0403] {
        let other = Transcript { scheme, ..good.clone() };
        assert_eq!(world.refuses(&other), Refusal::Scheme(REVIEWS.parse().expect("identity"), scheme));
    }
}
