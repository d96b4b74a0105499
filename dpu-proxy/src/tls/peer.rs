//! What a certificate says about its owner.

use super::TlsError;
use crate::connection::PeerCertificate;
use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::asn1_rs::Any;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, GeneralName, RelativeDistinguishedName, X509Certificate};

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

/// The subject, last part first, as Envoy's `%DOWNSTREAM_PEER_SUBJECT%`: RFC 2253, whose special characters are escaped
/// so that no value can pass for another attribute.
fn rfc2253(certificate: &X509Certificate<'_>) -> String {
    let one = |part: &RelativeDistinguishedName<'_>| {
        let mut values: Vec<String> = part.iter().map(attribute).collect();
        values.reverse();
        values.join("+")
    };
    let mut parts: Vec<String> = certificate.subject().iter_rdn().map(one).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let name = oid2abbrev(attribute.attr_type(), oid_registry());
    match (name, attribute.as_str()) {
        (Ok(name), Ok(text)) => format!("{name}={}", escaped(text)),
        (name, _) => {
            let name = name.map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
            format!("{name}=#{}", dumped(attribute.attr_value()))
        }
    }
}

/// RFC 2253 §2.4: special characters by a backslash; control characters and bytes outside ASCII in hexadecimal.
fn escaped(text: &str) -> String {
    let last = text.len().saturating_sub(1);
    let mut output = String::with_capacity(text.len());
    for (index, byte) in text.bytes().enumerate() {
        let is_special = matches!(byte, b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';')
            || (index == 0 && matches!(byte, b'#' | b' '))
            || (index == last && byte == b' ');
        match byte {
            b' '..=b'~' => {
                output.extend(is_special.then_some('\\'));
                output.push(char::from(byte));
            }
            _ => output.push_str(&format!("\\{byte:02X}")),
        }
    }
    output
}

/// A value that is no text: its DER.
fn dumped(value: &Any<'_>) -> String {
    let length = value.data.len();
    let mut der = vec![u8::try_from(value.tag().0).unwrap_or(0) | if value.header.is_constructed() { 0x20 } else { 0 }];
    match u8::try_from(length) {
        Ok(short @ 0..0x80) => der.push(short),
        Ok(long) => der.extend([0x81, long]),
        Err(_) => {
            let bytes = length.to_be_bytes();
            let bytes: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
            der.push(0x80 | bytes.len() as u8);
            der.extend(bytes);
        }
    }
    der.extend(value.data);
    der.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    #[test]
    fn a_subject_cannot_pass_for_more_attributes_than_it_has() {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Ex, Inc.");
        name.push(DnType::CommonName, "#a+b=c,O=evil ");
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        let certificate = params.self_signed(&KeyPair::generate().expect("key")).expect("certificate");
        let peer = describe(&[certificate.der().clone()]).expect("described");
        assert_eq!(peer.subject, r"CN=\#a\+b=c\,O=evil\ ,O=Ex\, Inc.");
        assert_eq!(escaped("\u{e9}\n"), r"\C3\A9\0A");
    }
}
