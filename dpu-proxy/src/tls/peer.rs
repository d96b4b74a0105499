//! What a certificate says about its owner.

use super::TlsError;
use crate::connection::PeerCertificate;
use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate for a person: the admin page and logs. No key material.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Description {
    pub subject: String,
    pub issuer: String,
    pub serial: String,
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    /// RFC 3339-like text of the validity.
    pub not_before: String,
    pub not_after: String,
    /// Seconds since 1970.
    pub not_before_seconds: i64,
    pub not_after_seconds: i64,
}

impl Description {
    /// Reads a DER certificate.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| TlsError::Unusable(format!("certificate: {error}")))?;
        let (uri_sans, dns_sans) = names(&certificate);
        let validity = certificate.validity();
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: certificate.raw_serial_as_string(),
            uri_sans,
            dns_sans,
            not_before: validity.not_before.to_string(),
            not_after: validity.not_after.to_string(),
            not_before_seconds: validity.not_before.timestamp(),
            not_after_seconds: validity.not_after.timestamp(),
        })
    }
}

/// Describes the peer of a handshake by its chain, leaf first. `None` when the leaf can't be read.
pub fn describe(chain: &[CertificateDer<'_>]) -> Option<PeerCertificate> {
    let leaf = chain.first()?;
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let (uri_sans, dns_sans) = names(&certificate);
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest::digest(&digest::SHA256, leaf).as_ref());
    let chain_der = chain.iter().map(|certificate| certificate.to_vec()).collect();
    Some(PeerCertificate { uri_sans, dns_sans, subject: rfc2253(&certificate), sha256, chain_der })
}

/// URI SANs and DNS SANs.
pub fn names(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<String>) {
    let (mut uris, mut hosts) = (Vec::new(), Vec::new());
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                _ => {}
            }
        }
    }
    (uris, hosts)
}

/// The subject, last part first, as Envoy's `%DOWNSTREAM_PEER_SUBJECT%`.
fn rfc2253(certificate: &X509Certificate<'_>) -> String {
    let subject = certificate.subject().to_string();
    let mut parts: Vec<&str> = subject.split(", ").collect();
    parts.reverse();
    parts.join(",")
}
