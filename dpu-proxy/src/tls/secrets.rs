//! Certificates with their keys, and trusted roots. Immutable; a new set takes the place of the old.

use super::{TlsError, peer, provider};
use dpu_proxy_core::model::{CaSource, CertificateSource, Workload};
use mesh_model::Identity;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// A certificate chain with its key. Neither `Debug` nor anything else shows the key.
#[derive(Clone)]
pub struct KeyPair {
    /// Unique in this process: says whether a configuration was made of it.
    pub id: u64,
    pub certified: Arc<CertifiedKey>,
    /// URI SANs of the leaf.
    pub uri_sans: Arc<[String]>,
    pub description: Arc<peer::Description>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("id", &self.id).field("description", &self.description).finish()
    }
}

/// Trusted roots.
#[derive(Clone, Debug)]
pub struct Roots {
    pub id: u64,
    pub store: Arc<RootCertStore>,
    pub descriptions: Arc<[peer::Description]>,
}

/// A workload's own certificate with the mesh's root.
#[derive(Clone, Debug)]
pub struct IdentitySecret {
    pub key_pair: KeyPair,
    pub roots: Roots,
    pub not_after: SystemTime,
}

/// Everything that TLS contexts may refer to by name.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// SDS names of the root scope.
    pub key_pairs: HashMap<String, KeyPair>,
    pub roots: HashMap<String, Roots>,
    /// What `default` and `ROOTCA` mean in a workload's scope.
    pub identities: HashMap<Identity, IdentitySecret>,
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl KeyPair {
    /// Of PEM texts: a chain, leaf first, and its private key.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(chain)?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Unusable(format!("private key: {error}")))?;
        let description = peer::Description::of(&chain[0])?;
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        let uri_sans = description.uri_sans.clone().into();
        Ok(Self { id: next_id(), certified: Arc::new(certified), uri_sans, description: Arc::new(description) })
    }
}

impl Roots {
    /// Of PEM certificates.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        let mut descriptions = Vec::new();
        for certificate in certificates(pem)? {
            descriptions.push(peer::Description::of(&certificate)?);
            store.add(certificate)?;
        }
        Ok(Self { id: next_id(), store: Arc::new(store), descriptions: descriptions.into() })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| TlsError::Unusable(format!("certificate: {error}")))?;
    match chain.is_empty() {
        true => Err(TlsError::Unusable("no PEM certificate in it".to_owned())),
        false => Ok(chain),
    }
}

/// Which secrets these are: equal ids are equal secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretIds(Vec<u64>);

impl Secrets {
    /// Says whether two sets are the same.
    pub fn ids(&self) -> SecretIds {
        let named = self.key_pairs.values().map(|pair| pair.id).chain(self.roots.values().map(|roots| roots.id));
        let own = self.identities.values().map(|secret| secret.key_pair.id);
        let mut ids: Vec<u64> = named.chain(own).collect();
        ids.sort_unstable();
        SecretIds(ids)
    }

    /// The key pair that `source` means for `workload` (or in the root scope).
    pub fn key_pair(&self, source: &CertificateSource, workload: Option<&Workload>) -> Result<KeyPair, TlsError> {
        match (source, workload) {
            (CertificateSource::Pem { chain, key }, _) => KeyPair::from_pem(chain, key),
            (CertificateSource::Sds(name), Some(workload)) if name == "default" => {
                Ok(self.identity(&workload.identity)?.key_pair.clone())
            }
            (CertificateSource::Sds(name), _) => self.key_pairs.get(name).cloned().ok_or_else(|| missing(name)),
        }
    }

    /// The roots that `source` means for `workload` (or in the root scope).
    pub fn roots(&self, source: &CaSource, workload: Option<&Workload>) -> Result<Roots, TlsError> {
        match (source, workload) {
            (CaSource::Pem(pem), _) => Roots::from_pem(pem),
            (CaSource::Sds(name), Some(workload)) if name == "ROOTCA" => {
                Ok(self.identity(&workload.identity)?.roots.clone())
            }
            (CaSource::Sds(name), _) => self.roots.get(name).cloned().ok_or_else(|| missing(name)),
        }
    }

    fn identity(&self, identity: &Identity) -> Result<&IdentitySecret, TlsError> {
        self.identities.get(identity).ok_or_else(|| TlsError::IdentityMissing { identity: identity.to_string() })
    }
}

fn missing(name: &str) -> TlsError {
    TlsError::SecretMissing { name: name.to_owned() }
}
