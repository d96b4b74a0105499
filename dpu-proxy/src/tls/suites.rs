//! Protocol versions and cipher suites, by their OpenSSL names.

use super::TlsError;
use dpu_proxy_core::model::{TlsContext, TlsVersion};
use rustls::crypto::CryptoProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, SupportedCipherSuite, SupportedProtocolVersion};
use std::sync::Arc;

/// The provider and versions that a context allows.
pub fn provider(
    context: &TlsContext,
) -> Result<(Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>), TlsError> {
    let mut versions = Vec::with_capacity(2);
    if context.max_version >= TlsVersion::V13 {
        versions.push(&TLS13);
    }
    if context.min_version <= TlsVersion::V12 {
        versions.push(&TLS12);
    }
    let all = super::provider();
    if context.cipher_suites.is_empty() {
        return Ok((all, versions));
    }
    // As in OpenSSL, the list is about TLS 1.2 and below; suites of TLS 1.3 are always there.
    let allowed = |suite: &&SupportedCipherSuite| {
        suite.version().version == rustls::ProtocolVersion::TLSv1_3
            || context.cipher_suites.iter().any(|entry| entry_allows(entry, openssl_name(suite.suite())))
    };
    let cipher_suites: Vec<_> = all.cipher_suites.iter().filter(allowed).copied().collect();
    match cipher_suites.is_empty() || context.max_version == TlsVersion::V12 && !has_tls12(&cipher_suites) {
        true => Err(TlsError::CipherSuites(context.cipher_suites.clone())),
        false => Ok((Arc::new(CryptoProvider { cipher_suites, ..(*all).clone() }), versions)),
    }
}

fn has_tls12(suites: &[SupportedCipherSuite]) -> bool {
    suites.iter().any(|suite| suite.version().version == rustls::ProtocolVersion::TLSv1_2)
}

/// `[A|B]` is a group of equal preference.
fn entry_allows(entry: &str, name: &str) -> bool {
    entry.trim_matches(['[', ']']).split('|').any(|one| one == name)
}

/// The OpenSSL name of a suite, as Envoy writes it; the IANA name for TLS 1.3.
pub fn openssl_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "unknown",
    }
}
