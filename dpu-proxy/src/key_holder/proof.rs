//! What is signed for the host, and what is refused; pure.
//!
//! In: the keys of this DPU and a transcript from the adapter. Out: a signature, or why not. Only one
//! kind of input is signed: that by which a TLS 1.3 *client* proves that it has the key of its
//! certificate. A server's proof, a signing request, a certificate or anything else that the key
//! could vouch for is none of the host's affair. Inputs are never repeated in an error or a log.

use crate::tls::secrets::Secrets;
use mesh_api::ca::Transcript;
use mesh_model::Identity;
use rustls::SignatureScheme;

/// RFC 8446, 4.4.3: padding that no other signed structure of TLS begins with.
const PADDING: [u8; 64] = [0x20; 64];
const CONTEXT: &[u8] = b"TLS 1.3, client CertificateVerify\0";
/// Lengths of SHA-256 and SHA-384, the hashes of TLS 1.3.
const HASHES: [usize; 2] = [32, 48];

/// Why something was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the input is not what a TLS 1.3 client signs (RFC 8446, 4.4.3): nothing else is signed for the host")]
    NoClientProof,
    #[error(
        "there is no key of {0:?} on this DPU: no workload with that identity is attached, or it is not signed yet"
    )]
    NoKey(String),
    #[error("the key of {0} was renewed meanwhile: connect again with its new certificate")]
    Renewed(Identity),
    #[error("the key of {0} makes no signature of scheme {1:#06x}")]
    Scheme(Identity, u32),
    #[error("signing failed: {0}")]
    Failed(String),
}

/// Signs a client's proof with the key that its certificate is of.
pub fn sign(secrets: &Secrets, transcript: &Transcript) -> Result<Vec<u8>, Refusal> {
    if !is_client_proof(&transcript.input) {
        return Err(Refusal::NoClientProof);
    }
    let no_key = || Refusal::NoKey(transcript.identity.clone());
    let identity: Identity = transcript.identity.parse().map_err(|_| no_key())?;
    let key_pair = &secrets.identities.get(&identity).ok_or_else(no_key)?.key_pair;
    if key_pair.id != transcript.key_id {
        return Err(Refusal::Renewed(identity));
    }
    let scheme = u16::try_from(transcript.scheme).ok().map(SignatureScheme::from);
    let signer = scheme.and_then(|scheme| key_pair.certified.key.choose_scheme(&[scheme]));
    let signer = signer.ok_or(Refusal::Scheme(identity, transcript.scheme))?;
    signer.sign(&transcript.input).map_err(|error| Refusal::Failed(error.to_string()))
}

/// Whether this is the input of a client's CertificateVerify.
pub fn is_client_proof(input: &[u8]) -> bool {
    let hash = input.strip_prefix(&PADDING).and_then(|rest| rest.strip_prefix(CONTEXT));
    hash.is_some_and(|hash| HASHES.contains(&hash.len()))
}

#[cfg(test)]
mod tests;
