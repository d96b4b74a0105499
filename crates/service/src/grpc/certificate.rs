//! This program's own certificate: from files, or held in memory and replaced while it is in use.

use super::reload::Reloaded;
use super::{GrpcError, provider};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

/// A certificate chain with its key.
#[derive(Debug)]
pub(super) struct Own {
    key: Arc<CertifiedKey>,
    facts: Facts,
}

/// What is said of a certificate in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its first URI SAN, else its first DNS SAN, else its subject.
    pub name: String,
    /// Unix time in seconds.
    pub not_before: i64,
    /// Unix time in seconds.
    pub not_after: i64,
    /// Raw, as in its subject public key information.
    pub public_key: Vec<u8>,
}

impl Facts {
    /// Of the first PEM certificate.
    pub fn of_pem(pem: &str) -> Option<Self> {
        Self::of(certificates(pem.as_bytes()).ok()?.first()?)
    }

    /// Of a DER certificate.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = subject_alt_names(der);
        let name = names.into_iter().next().unwrap_or_else(|| certificate.subject().to_string());
        let validity = certificate.validity();
        Some(Self {
            name,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// Why it cannot be used at that time.
    pub fn check(&self, now: SystemTime) -> Result<(), String> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        if now > self.not_after {
            return Err(format!("the certificate of {} expired on {}", self.name, date(self.not_after)));
        }
        if now < self.not_before {
            let date = date(self.not_before);
            return Err(format!("the certificate of {} is not valid before {date}: check the clocks", self.name));
        }
        Ok(())
    }

    /// How long it is still valid.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        let end = UNIX_EPOCH + Duration::from_secs(self.not_after.max(0) as u64);
        end.duration_since(now).unwrap_or_default()
    }
}

fn date(unix_seconds: i64) -> String {
    let time = ASN1Time::from_timestamp(unix_seconds)
        .and_then(|time| time.to_rfc2822().map_err(|_| x509_parser::error::X509Error::InvalidDate));
    time.unwrap_or_else(|_| format!("Unix time {unix_seconds}"))
}

/// URI SANs, then DNS SANs.
pub(super) fn subject_alt_names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = &names.value.general_names;
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        _ => None,
    });
    uris.chain(hosts).collect()
}

impl Own {
    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, String> {
        let leaf = chain.first().ok_or("there is no certificate in it")?;
        let facts = Facts::of(leaf).ok_or("the first certificate is no X.509 certificate")?;
        let key = CertifiedKey::from_der(chain, key, provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => "the key is not that of the certificate".to_owned(),
            error => error.to_string(),
        })?;
        Ok(Self { key: Arc::new(key), facts })
    }

    /// Of a certificate file and a key file.
    fn parse(contents: &[Vec<u8>]) -> Result<Self, String> {
        let [chain, key] = contents else { return Err("a certificate and a key are needed".to_owned()) };
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key is no PEM private key: {error}"))?;
        Self::new(certificates(chain)?, key)
    }
}

/// All PEM certificates.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("there is no PEM certificate in it".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("it is no PEM certificate: {error}")),
    }
}

/// A certificate in memory; clones share it. Whoever gets certificates puts each new one in.
#[derive(Clone, Debug, Default)]
pub struct Held {
    state: Arc<RwLock<HeldState>>,
}

#[derive(Debug, Default)]
struct HeldState {
    own: Option<Arc<Own>>,
    /// Why there is no newer one.
    failure: Option<String>,
}

impl Held {
    /// Puts a new certificate in force, chain in PEM with the leaf first.
    pub fn put(&self, chain_pem: &str, key: &rcgen::KeyPair) -> Result<Facts, String> {
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
        let own = Own::new(certificates(chain_pem.as_bytes())?, key)?;
        let facts = own.facts.clone();
        *self.write() = HeldState { own: Some(Arc::new(own)), failure: None };
        Ok(facts)
    }

    /// Notes why there is no newer certificate.
    pub fn failed(&self, reason: String) {
        self.write().failure = Some(reason);
    }

    /// The certificate, if it can be used at that time.
    pub fn check(&self, now: SystemTime) -> Result<Facts, String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let failure = state.failure.as_deref();
        let Some(own) = &state.own else {
            return Err(format!("there is no certificate yet: {}", failure.unwrap_or("it was just asked for")));
        };
        let renewal = || failure.map(|reason| format!("; it was not renewed: {reason}")).unwrap_or_default();
        own.facts.check(now).map(|()| own.facts.clone()).map_err(|error| error + &renewal())
    }

    fn get(&self) -> Option<Arc<Own>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).own.clone()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HeldState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the certificate comes from. Both rustls resolvers.
#[derive(Debug)]
pub(super) enum Source {
    Files(Reloaded<Own>),
    Held(Held),
}

impl Source {
    pub(super) fn files(certificate: PathBuf, key: PathBuf) -> Result<Self, GrpcError> {
        Reloaded::open(vec![certificate, key], Own::parse).map(Self::Files)
    }

    /// The certificate, if it can be used at that time, else what is wrong and where.
    pub(super) fn check(&self, now: SystemTime) -> Result<Facts, String> {
        match self {
            Self::Held(held) => held.check(now),
            Self::Files(files) => {
                let facts = files.get().facts.clone();
                let place = || {
                    format!(" ({}): put a new one there, it is read without a restart", files.first_path().display())
                };
                facts.check(now).map_err(|error| error + &place())?;
                Ok(facts)
            }
        }
    }

    fn get(&self) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::Files(files) => Some(Arc::clone(&files.get().key)),
            Self::Held(held) => held.get().map(|own| Arc::clone(&own.key)),
        }
    }
}

impl ResolvesServerCert for Source {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}

impl ResolvesClientCert for Source {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
