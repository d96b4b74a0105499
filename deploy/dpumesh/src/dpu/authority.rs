//! The authority of the programs' certificates, as the Secret holds it.

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use service::grpc::{Facts, program_identity, server_name};
use std::time::{Duration, SystemTime};

/// Clocks of DPUs that have just started are behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// It signs. Has no `Debug` that shows its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    facts: Facts,
}

/// A program's certificate and its key.
pub struct Issued {
    /// PEM, leaf first.
    pub certificate: String,
    /// PEM.
    pub key: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority cannot sign: {0}")]
    Unusable(String),
    #[error("no certificate for {name}: {source}")]
    Sign { name: String, source: rcgen::Error },
}

impl Authority {
    /// From the Secret's `tls.crt` and `tls.key`.
    pub fn new(certificate: &str, key: &str, now: SystemTime) -> Result<Self, AuthorityError> {
        let unusable = |error: rcgen::Error| AuthorityError::Unusable(error.to_string());
        let facts = Facts::of_pem(certificate).ok_or_else(|| AuthorityError::Unusable("no certificate".to_owned()))?;
        facts.check(now).map_err(AuthorityError::Unusable)?;
        let key = KeyPair::from_pem(key).map_err(unusable)?;
        if facts.public_key != key.public_key_raw() {
            return Err(AuthorityError::Unusable("its key belongs to another certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(unusable)?;
        Ok(Self { issuer, certificate: certificate.to_owned(), facts })
    }

    /// PEM of its certificate, by which others know what it signed.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A new key for the program of a node, and its certificate, which does not outlive the authority's own.
    pub fn issue(
        &self,
        program: &str,
        node: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let failed = |source| AuthorityError::Sign { name: program_identity(program, node), source };
        let key = KeyPair::generate().map_err(failed)?;
        let validity = validity.min(self.facts.remaining(now));
        let params = params(program, node, validity, now).map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(program: &str, node: &str, validity: Duration, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, program);
    let name = |text: &str| Ia5String::try_from(text.to_owned());
    params.subject_alt_names = vec![
        SanType::URI(name(&program_identity(program, node))?),
        SanType::DnsName(name(program)?),
        SanType::DnsName(name(&server_name(program, node))?),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + validity).into();
    Ok(params)
}
