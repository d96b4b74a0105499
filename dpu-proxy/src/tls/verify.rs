//! Whom to trust: a chain to a trusted root, and a SAN that a matcher wants. No host name is checked
//! where SANs are asked for, as in Envoy; without a trusted root an upstream is not verified, as in Envoy.

use super::provider;
use dpu_proxy_core::model::{SanMatcher, SanType, StringMatcher, StringPattern, Validation};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The peer is not whom the configuration names.
#[derive(Debug, thiserror::Error)]
#[error("peer shows {shown:?}; expected one of {expected:?}")]
struct WrongIdentity {
    shown: Vec<String>,
    expected: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate's SHA-256 is not among those that are allowed")]
struct WrongHash;

/// Verifies upstreams.
#[derive(Debug)]
pub struct UpstreamVerifier {
    provider: Arc<CryptoProvider>,
    roots: Option<Arc<RootCertStore>>,
    rules: Rules,
    /// `auto_sni_san_validation`: the SNI must be a DNS SAN.
    check_server_name: bool,
}

/// Verifies downstream peers: a chain by webpki, then the same rules.
#[derive(Debug)]
pub struct DownstreamVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    rules: Rules,
}

/// What a certificate must say beyond its chain.
#[derive(Clone, Debug, Default)]
struct Rules {
    sans: Vec<SanMatcher>,
    hashes: Vec<[u8; 32]>,
}

impl Rules {
    fn of(validation: &Validation) -> Self {
        Self { sans: validation.subject_alt_names.clone(), hashes: validation.certificate_hashes.clone() }
    }

    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if !self.hashes.is_empty() {
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
            if !self.hashes.iter().any(|allowed| allowed == hash.as_ref()) {
                return Err(other(WrongHash));
            }
        }
        match self.sans.is_empty() {
            true => Ok(()),
            false => self.check_names(leaf),
        }
    }

    fn check_names(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let (_, certificate) =
            X509Certificate::from_der(leaf).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let shown = shown_names(&certificate);
        let fits = |(kind, name): &(SanType, String)| self.sans.iter().any(|wanted| wants(wanted, *kind, name));
        if shown.iter().any(fits) {
            return Ok(());
        }
        let expected = self.sans.iter().map(|wanted| pattern_text(&wanted.matcher)).collect();
        Err(other(WrongIdentity { shown: shown.into_iter().map(|(_, name)| name).collect(), expected }))
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn shown_names(certificate: &X509Certificate<'_>) -> Vec<(SanType, String)> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((SanType::Uri, (*uri).to_owned())),
            GeneralName::DNSName(host) => Some((SanType::Dns, (*host).to_owned())),
            GeneralName::RFC822Name(mail) => Some((SanType::Email, (*mail).to_owned())),
            GeneralName::IPAddress(bytes) => ip_text(bytes).map(|ip| (SanType::Ip, ip)),
            _ => None,
        })
        .collect()
}

fn ip_text(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| std::net::Ipv6Addr::from(sixteen).to_string())
}

fn wants(wanted: &SanMatcher, kind: SanType, name: &str) -> bool {
    let is_kind = wanted.san_type == SanType::Any || wanted.san_type == kind;
    is_kind && (matches(&wanted.matcher, name) || is_wildcard_of(kind, name, &wanted.matcher))
}

/// Envoy: an exact DNS matcher is satisfied by a wildcard DNS SAN.
fn is_wildcard_of(kind: SanType, name: &str, matcher: &StringMatcher) -> bool {
    let StringPattern::Exact(exact) = &matcher.pattern else { return false };
    kind == SanType::Dns && covers(name, exact)
}

fn covers(pattern: &str, host: &str) -> bool {
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(suffix), Some((first, rest))) => !first.is_empty() && suffix.eq_ignore_ascii_case(rest),
        _ => pattern.eq_ignore_ascii_case(host),
    }
}

fn matches(matcher: &StringMatcher, text: &str) -> bool {
    let lower = |text: &str| if matcher.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    let value = lower(text);
    match &matcher.pattern {
        StringPattern::Exact(exact) => value == lower(exact),
        StringPattern::Prefix(prefix) => value.starts_with(&lower(prefix)),
        StringPattern::Suffix(suffix) => value.ends_with(&lower(suffix)),
        StringPattern::Contains(part) => value.contains(&lower(part)),
        StringPattern::Regex(regex) => {
            regex.find(text).is_some_and(|found| found.start() == 0 && found.end() == text.len())
        }
    }
}

fn pattern_text(matcher: &StringMatcher) -> String {
    match &matcher.pattern {
        StringPattern::Exact(text) => text.clone(),
        StringPattern::Prefix(text) => format!("{text}*"),
        StringPattern::Suffix(text) => format!("*{text}"),
        StringPattern::Contains(text) => format!("*{text}*"),
        StringPattern::Regex(regex) => regex.as_str().to_owned(),
    }
}

/// True when a peer that shows this URI SAN alone would be accepted.
pub fn accepts_uri(validation: &Validation, uri: &str) -> bool {
    let wanted = &validation.subject_alt_names;
    wanted.is_empty() || wanted.iter().any(|wanted| wants(wanted, SanType::Uri, uri))
}

impl UpstreamVerifier {
    /// By the validation of a context; `roots` is what its `trusted_ca` means.
    pub fn new(validation: &Validation, roots: Option<Arc<RootCertStore>>, check_server_name: bool) -> Self {
        let roots = roots.filter(|_| !validation.accept_untrusted);
        Self { provider: provider(), roots, rules: Rules::of(validation), check_server_name }
    }
}

impl ServerCertVerifier for UpstreamVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        if let Some(roots) = &self.roots {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        }
        self.rules.check(leaf)?;
        if self.check_server_name {
            rustls::client::verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl DownstreamVerifier {
    /// `chain` verifies the chain; the rest is by the validation of the context.
    pub fn new(validation: &Validation, chain: Arc<dyn ClientCertVerifier>) -> Self {
        Self { chain, rules: Rules::of(validation) }
    }
}

impl ClientCertVerifier for DownstreamVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        self.rules.check(leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_san_covers_one_label() {
        assert!(covers("*.example.com", "a.example.com"));
        assert!(!covers("*.example.com", "a.b.example.com"));
        assert!(!covers("*.example.com", "example.com"));
        assert!(covers("example.com", "EXAMPLE.com"));
    }
}
