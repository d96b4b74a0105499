//! TLS contexts, as asked for. The shell turns them, with a secret, into rustls configurations.

use super::StringMatcher;

/// Envoy's `CommonTlsContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsContext {
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// OpenSSL names; empty for the default.
    pub cipher_suites: Vec<String>,
    pub alpn: Vec<String>,
    pub certificate: Option<CertificateSource>,
    pub validation: Validation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V12,
    V13,
}

/// Where the own certificate and key come from.
#[derive(Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// SDS secret of this name: in a workload's scope `default` is the workload's own.
    Sds(String),
    /// PEM given inline or read from files when the configuration was loaded.
    Pem { chain: Vec<u8>, key: Vec<u8> },
}

impl std::fmt::Debug for CertificateSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sds(name) => write!(f, "Sds({name:?})"),
            Self::Pem { .. } => f.write_str("Pem(redacted)"),
        }
    }
}

/// Whom to trust.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Validation {
    pub trusted_ca: Option<CaSource>,
    /// Any of these must match a SAN; empty: any SAN.
    pub subject_alt_names: Vec<SanMatcher>,
    pub accept_untrusted: bool,
    pub certificate_hashes: Vec<[u8; 32]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaSource {
    /// SDS secret of this name: in a workload's scope `ROOTCA` is the mesh's root.
    Sds(String),
    Pem(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SanMatcher {
    pub san_type: SanType,
    pub matcher: StringMatcher,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanType {
    Any,
    Dns,
    Uri,
    Email,
    Ip,
}

/// Envoy's `DownstreamTlsContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct DownstreamTls {
    pub common: TlsContext,
    pub require_client_certificate: bool,
}

/// Envoy's `UpstreamTlsContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamTls {
    pub common: TlsContext,
    /// Empty: none is sent.
    pub sni: String,
    pub auto_host_sni: bool,
    pub auto_sni_san_validation: bool,
}
