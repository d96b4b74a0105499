//! The programs' authority: signs certificates of the programs, from files.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SanType,
};
use service::grpc::{Facts, program_identity, server_name};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a certificate is valid.
pub const VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Clocks may differ by so much.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// E.g. `adapter`.
    pub program: String,
    pub node: String,
}

impl Name {
    /// `spiffe://dpumesh/PROGRAM/NODE`.
    pub fn identity(&self) -> String {
        program_identity(&self.program, &self.node)
    }
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the authority of {path} cannot sign: {reason}")]
    Authority { path: PathBuf, reason: String },
    /// The caller's fault.
    #[error("the signing request is refused: {0}")]
    Request(String),
}

/// Where the authority is. The files are read at each use, so that they may be replaced.
#[derive(Clone, Debug)]
pub struct Authority {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Signs a signing request of `name`, which it must ask for and nothing else. PEM, the leaf alone.
    pub fn sign(&self, csr_pem: &str, name: &Name, now: SystemTime) -> Result<String, AuthorityError> {
        let request = checked(csr_pem, name).map_err(AuthorityError::Request)?;
        self.issue(&request.public_key, name, now)
    }

    /// A certificate of `name` for a key.
    pub fn issue(&self, key: &impl PublicKeyData, name: &Name, now: SystemTime) -> Result<String, AuthorityError> {
        let failed = |reason: String| AuthorityError::Authority { path: self.certificate.clone(), reason };
        let (issuer, facts) = self.load(now)?;
        let params = params(name, now, facts.remaining(now)).map_err(|error| failed(error.to_string()))?;
        let certificate = params.signed_by(key, &issuer).map_err(|error| failed(error.to_string()))?;
        Ok(certificate.pem())
    }

    fn load(&self, now: SystemTime) -> Result<(Issuer<'static, KeyPair>, Facts), AuthorityError> {
        let failed = |reason: String| AuthorityError::Authority { path: self.certificate.clone(), reason };
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let facts = Facts::of_pem(&certificate).ok_or_else(|| failed("it is no PEM certificate".to_owned()))?;
        facts.check(now).map_err(failed)?;
        let key = KeyPair::from_pem(&key)
            .map_err(|error| failed(format!("{} is no PEM private key: {error}", self.key.display())))?;
        let public = key.public_key_raw().to_vec();
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| failed(error.to_string()))?;
        match facts.public_key == public {
            true => Ok((issuer, facts)),
            false => Err(failed(format!("{} is not its key", self.key.display()))),
        }
    }
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    std::fs::read_to_string(path).map_err(|source| AuthorityError::Read { path: path.to_owned(), source })
}

fn params(name: &Name, now: SystemTime, authority_valid: Duration) -> Result<CertificateParams, rcgen::Error> {
    let hosts = vec![name.program.clone(), server_name(&name.program, &name.node)];
    let mut params = CertificateParams::new(hosts)?;
    params.subject_alt_names.insert(0, SanType::URI(name.identity().as_str().try_into()?));
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY.min(authority_valid)).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The request, if it asks for `name`, proves a key of ours, and nothing else.
fn checked(csr_pem: &str, name: &Name) -> Result<CertificateSigningRequestParams, String> {
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|error| error.to_string())?;
    let expected = name.identity();
    match request.params.subject_alt_names.as_slice() {
        [SanType::URI(uri)] if uri.as_str() == expected => {}
        names => return Err(format!("it must name {expected} and nothing else, not {names:?}")),
    }
    let (algorithm, key) = (request.public_key.algorithm(), request.public_key.der_bytes());
    // A key of another curve than its signature's would make a certificate that nobody can read.
    let lengths = [(&PKCS_ECDSA_P256_SHA256, 65), (&PKCS_ECDSA_P384_SHA384, 97), (&PKCS_ED25519, 32)];
    match lengths.iter().any(|(known, length)| algorithm == *known && key.len() == *length) {
        true => Ok(request),
        false => Err("its key is none of ECDSA P-256, ECDSA P-384, Ed25519".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, IsCa};

    /// An authority in a folder.
    pub(crate) fn authority(folder: &Path, valid_until_year: i32) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(valid_until_year, 1, 1);
        let key = KeyPair::generate().expect("key");
        let authority = Authority { certificate: folder.join("ca.crt"), key: folder.join("ca.key") };
        std::fs::write(&authority.certificate, params.self_signed(&key).expect("signed").pem()).expect("written");
        std::fs::write(&authority.key, key.serialize_pem()).expect("written");
        authority
    }

    pub(crate) fn name(program: &str, node: &str) -> Name {
        Name { program: program.to_owned(), node: node.to_owned() }
    }

    pub(crate) fn csr(key: &KeyPair, names: &[SanType]) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.serialize_request(key).and_then(|csr| csr.pem()).expect("signing request")
    }

    pub(crate) fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("ASCII"))
    }

    #[test]
    fn a_certificate_is_for_the_name_and_a_day() {
        let folder = tempfile::tempdir().expect("folder");
        let (key, now) = (KeyPair::generate().expect("key"), SystemTime::now());
        let request = csr(&key, &[uri("spiffe://dpumesh/adapter/host1")]);
        let pem = authority(folder.path(), 2100).sign(&request, &name("adapter", "host1"), now).expect("signed");
        let facts = Facts::of_pem(&pem).expect("certificate");
        assert_eq!(facts.name, "spiffe://dpumesh/adapter/host1");
        assert!(facts.remaining(now).abs_diff(VALIDITY) < Duration::from_secs(2));
        assert_eq!(facts.public_key, key.public_key_raw());
    }

    #[test]
    fn a_request_for_anything_else_is_refused_with_what_it_must_be() {
        let folder = tempfile::tempdir().expect("folder");
        let authority = authority(folder.path(), 2100);
        let key = KeyPair::generate().expect("key");
        let own = uri("spiffe://dpumesh/adapter/host1");
        let host = SanType::DnsName("controller".try_into().expect("ASCII"));
        for names in
            [vec![], vec![uri("spiffe://dpumesh/adapter/host2")], vec![own.clone(), host], vec![own.clone(), own]]
        {
            let refused = authority.sign(&csr(&key, &names), &name("adapter", "host1"), SystemTime::now());
            let error = refused.expect_err("another name").to_string();
            assert!(error.contains("must name spiffe://dpumesh/adapter/host1 and nothing else"), "{error}");
        }
        let good = csr(&key, &[uri("spiffe://dpumesh/adapter/host1")]);
        let forged = good.replacen("MII", "MIA", 1);
        for request in ["", "text", forged.as_str()] {
            let refused = authority.sign(request, &name("adapter", "host1"), SystemTime::now());
            assert!(matches!(refused, Err(AuthorityError::Request(_))), "{request}: {refused:?}");
        }
    }

    #[test]
    fn an_authority_that_cannot_sign_says_why() {
        let (folder, other) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let key = KeyPair::generate().expect("key");
        let sign = |authority: &Authority| {
            authority.issue(&key, &name("adapter", "host1"), SystemTime::now()).expect_err("no certificate").to_string()
        };
        let expired = sign(&authority(folder.path(), 2001));
        assert!(expired.contains("ca.crt") && expired.contains("expired on Mon, 01 Jan 2001"), "{expired}");
        let good = authority(folder.path(), 2100);
        let mixed = sign(&Authority { key: authority(other.path(), 2100).key, ..good.clone() });
        assert!(mixed.contains("is not its key"), "{mixed}");
        let missing = sign(&Authority { key: "/nonexistent".into(), ..good });
        assert!(missing.contains("/nonexistent"), "{missing}");
    }
}
