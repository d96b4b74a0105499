//! TLS contexts.

use super::any;
use super::convert::{data_source, flag};
use super::matcher;
use super::report::{At, ConfigError};
use crate::model::{
    CaSource, CertificateSource, DownstreamTls, SanMatcher, SanType, TlsContext, TlsVersion, UpstreamTls, Validation,
};
use mesh_api::Any;
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use mesh_api::envoy::extensions::transport_sockets::tls::v3 as tls;
use prost::Name;

/// The TLS of a downstream transport socket; `None`: plain.
pub fn downstream(at: At<'_>, proto: Option<&core::TransportSocket>) -> Result<Option<DownstreamTls>, ConfigError> {
    let Some(config) = socket(at, proto)? else { return Ok(None) };
    let at = at.field("typed_config");
    let proto: tls::DownstreamTlsContext = any::expect(at, config)?;
    if flag(proto.require_sni, false) {
        return Err(at.field("require_sni").refuse("not supported; match server_names in the filter chain instead"));
    }
    if proto.ocsp_staple_policy == tls::downstream_tls_context::OcspStaplePolicy::MustStaple as i32 {
        return Err(at.field("ocsp_staple_policy").refuse("OCSP stapling is not supported; use LENIENT_STAPLING"));
    }
    let common = context(at.field("common_tls_context"), proto.common_tls_context.as_ref())?;
    if common.certificate.is_none() {
        return Err(at.field("common_tls_context").refuse("a server needs a certificate: tls_certificates or SDS"));
    }
    let require_client_certificate = flag(proto.require_client_certificate, false);
    if require_client_certificate && common.validation.trusted_ca.is_none() && !common.validation.accept_untrusted {
        at.field("require_client_certificate")
            .unsupported("no trusted_ca is given: every client certificate is refused");
    }
    Ok(Some(DownstreamTls { common, require_client_certificate }))
}

/// The TLS of an upstream transport socket; `None`: plain.
pub fn upstream(at: At<'_>, proto: Option<&core::TransportSocket>) -> Result<Option<UpstreamTls>, ConfigError> {
    let Some(config) = socket(at, proto)? else { return Ok(None) };
    let at = at.field("typed_config");
    let proto: tls::UpstreamTlsContext = any::expect(at, config)?;
    Ok(Some(UpstreamTls {
        common: context(at.field("common_tls_context"), proto.common_tls_context.as_ref())?,
        sni: proto.sni.clone(),
        auto_host_sni: proto.auto_host_sni,
        auto_sni_san_validation: proto.auto_sni_san_validation,
    }))
}

/// The configuration of a transport socket, unless it is plain.
fn socket<'p>(at: At<'_>, proto: Option<&'p core::TransportSocket>) -> Result<Option<&'p Any>, ConfigError> {
    let Some(proto) = proto else { return Ok(None) };
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &proto.config_type else {
        return match proto.name.as_str() {
            "envoy.transport_sockets.raw_buffer" => Ok(None),
            name => Err(at.refuse(format!("transport socket {name:?} has no typed_config; give one"))),
        };
    };
    Ok(Some(config).filter(|config| any::type_name(config) != RawBuffer::full_name()))
}

fn context(at: At<'_>, proto: Option<&tls::CommonTlsContext>) -> Result<TlsContext, ConfigError> {
    let empty = tls::CommonTlsContext::default();
    let proto = proto.unwrap_or(&empty);
    if proto.custom_handshaker.is_some() || proto.custom_tls_certificate_selector.is_some() {
        return Err(at.refuse("custom handshakers and certificate selectors are not supported"));
    }
    let empty = tls::TlsParameters::default();
    let parameters = proto.tls_params.as_ref().unwrap_or(&empty);
    let at_parameters = at.field("tls_params");
    let (min_version, max_version) = versions(at_parameters, parameters)?;
    Ok(TlsContext {
        min_version,
        max_version,
        cipher_suites: parameters.cipher_suites.clone(),
        alpn: proto.alpn_protocols.clone(),
        certificate: certificate(at, proto)?,
        validation: validation(at, proto)?,
    })
}

fn versions(at: At<'_>, proto: &tls::TlsParameters) -> Result<(TlsVersion, TlsVersion), ConfigError> {
    use tls::tls_parameters::TlsProtocol;
    let min = match TlsProtocol::try_from(proto.tls_minimum_protocol_version) {
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv12) => TlsVersion::V12,
        Ok(TlsProtocol::TlSv13) => TlsVersion::V13,
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => {
            at.field("tls_minimum_protocol_version").unsupported("TLS before 1.2 is not spoken; 1.2 is the minimum");
            TlsVersion::V12
        }
        Err(_) => return Err(at.field("tls_minimum_protocol_version").refuse("not a TLS version that is known")),
    };
    let at_max = at.field("tls_maximum_protocol_version");
    let max = match TlsProtocol::try_from(proto.tls_maximum_protocol_version) {
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => TlsVersion::V13,
        Ok(TlsProtocol::TlSv12) => TlsVersion::V12,
        _ => return Err(at_max.refuse("TLS before 1.2 is not supported; use TLSv1_2 or TLSv1_3")),
    };
    match min <= max {
        true => Ok((min, max)),
        false => Err(at_max.refuse("must not be lower than tls_minimum_protocol_version")),
    }
}

fn certificate(at: At<'_>, proto: &tls::CommonTlsContext) -> Result<Option<CertificateSource>, ConfigError> {
    let count = proto.tls_certificates.len() + proto.tls_certificate_sds_secret_configs.len();
    if count > 1 {
        return Err(at.field("tls_certificates").refuse("one certificate is supported; give one"));
    }
    if proto.tls_certificate_provider_instance.is_some() {
        return Err(at.field("tls_certificate_provider_instance").refuse("not supported; use SDS"));
    }
    if let Some(sds) = proto.tls_certificate_sds_secret_configs.first() {
        return sds_name(at.item("tls_certificate_sds_secret_configs", 0), sds)
            .map(|name| Some(CertificateSource::Sds(name)));
    }
    proto.tls_certificates.first().map(|pem| pem_certificate(at.item("tls_certificates", 0), pem)).transpose()
}

/// The name of a secret. Where it comes from is the shell's affair: the bootstrap, the stream, or in a
/// workload's scope the identity of the pod.
fn sds_name(at: At<'_>, proto: &tls::SdsSecretConfig) -> Result<String, ConfigError> {
    use core::config_source::ConfigSourceSpecifier as Source;
    let source = proto.sds_config.as_ref().and_then(|config| config.config_source_specifier.as_ref());
    if let Some(Source::Path(_) | Source::PathConfigSource(_)) = source {
        return Err(at
            .field("sds_config")
            .refuse("secrets are not read from files that hold resources; use tls_certificates"));
    }
    match proto.name.is_empty() {
        true => Err(at.field("name").refuse("the secret needs a name")),
        false => Ok(proto.name.clone()),
    }
}

/// A certificate that is given inline or as files.
pub fn pem_certificate(at: At<'_>, proto: &tls::TlsCertificate) -> Result<CertificateSource, ConfigError> {
    if proto.private_key_provider.is_some() || proto.pkcs12.is_some() || proto.password.is_some() {
        return Err(at.refuse("only PEM certificate_chain and private_key without password are supported"));
    }
    let part = |field, source: Option<&core::DataSource>| {
        let at = at.field(field);
        data_source(at, source.ok_or_else(|| at.refuse("required"))?)
    };
    Ok(CertificateSource::Pem {
        chain: part("certificate_chain", proto.certificate_chain.as_ref())?,
        key: part("private_key", proto.private_key.as_ref())?,
    })
}

fn validation(at: At<'_>, proto: &tls::CommonTlsContext) -> Result<Validation, ConfigError> {
    use tls::common_tls_context::ValidationContextType as Kind;
    match &proto.validation_context_type {
        None => Ok(Validation::default()),
        Some(Kind::ValidationContext(context)) => validation_context(at.field("validation_context"), context),
        Some(Kind::ValidationContextSdsSecretConfig(sds)) => {
            let name = sds_name(at.field("validation_context_sds_secret_config"), sds)?;
            Ok(Validation { trusted_ca: Some(CaSource::Sds(name)), ..Validation::default() })
        }
        Some(Kind::CombinedValidationContext(combined)) => {
            self::combined(at.field("combined_validation_context"), combined)
        }
        Some(_) => Err(at.refuse("certificate providers are not supported; use validation_context or SDS")),
    }
}

/// The SDS secret brings the roots, the default context the rest, as Envoy merges them.
fn combined(
    at: At<'_>,
    proto: &tls::common_tls_context::CombinedCertificateValidationContext,
) -> Result<Validation, ConfigError> {
    let mut made = match &proto.default_validation_context {
        Some(context) => validation_context(at.field("default_validation_context"), context)?,
        None => Validation::default(),
    };
    let at = at.field("validation_context_sds_secret_config");
    let sds = proto.validation_context_sds_secret_config.as_ref().ok_or_else(|| at.refuse("required"))?;
    made.trusted_ca = Some(CaSource::Sds(sds_name(at, sds)?));
    Ok(made)
}

/// A validation context. What it asks for beyond our checks is refused: to leave a check out is to let
/// strangers in.
pub fn validation_context(at: At<'_>, proto: &tls::CertificateValidationContext) -> Result<Validation, ConfigError> {
    refuse_unchecked(at, proto)?;
    let trusted_ca = match &proto.trusted_ca {
        Some(source) => Some(CaSource::Pem(data_source(at.field("trusted_ca"), source)?)),
        None => None,
    };
    let mut subject_alt_names = Vec::new();
    for (index, san) in proto.match_typed_subject_alt_names.iter().enumerate() {
        subject_alt_names.push(typed_san(at.item("match_typed_subject_alt_names", index), san)?);
    }
    if proto.match_typed_subject_alt_names.is_empty() {
        for matcher in matcher::strings(at, "match_subject_alt_names", &proto.match_subject_alt_names)? {
            subject_alt_names.push(SanMatcher { san_type: SanType::Any, matcher });
        }
    }
    let accept_untrusted = proto.trust_chain_verification
        == tls::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32;
    Ok(Validation { trusted_ca, subject_alt_names, accept_untrusted, certificate_hashes: hashes(at, proto)? })
}

fn refuse_unchecked(at: At<'_>, proto: &tls::CertificateValidationContext) -> Result<(), ConfigError> {
    let refuse = |field: &str, asked: bool, what: &str| match asked {
        true => Err(at.field(field).refuse(what)),
        false => Ok(()),
    };
    refuse("crl", proto.crl.is_some(), "certificate revocation lists are not checked; leave it out")?;
    refuse(
        "verify_certificate_spki",
        !proto.verify_certificate_spki.is_empty(),
        "not supported; use verify_certificate_hash",
    )?;
    refuse("custom_validator_config", proto.custom_validator_config.is_some(), "custom validators are not supported")?;
    refuse("system_root_certs", proto.system_root_certs.is_some(), "not supported; give trusted_ca")?;
    refuse(
        "ca_certificate_provider_instance",
        proto.ca_certificate_provider_instance.is_some(),
        "not supported; give trusted_ca",
    )?;
    refuse(
        "require_signed_certificate_timestamp",
        flag(proto.require_signed_certificate_timestamp, false),
        "certificate transparency is not checked",
    )
}

fn typed_san(at: At<'_>, proto: &tls::SubjectAltNameMatcher) -> Result<SanMatcher, ConfigError> {
    use tls::subject_alt_name_matcher::SanType as Type;
    let san_type = match Type::try_from(proto.san_type) {
        Ok(Type::Dns) => SanType::Dns,
        Ok(Type::Uri) => SanType::Uri,
        Ok(Type::Email) => SanType::Email,
        Ok(Type::IpAddress) => SanType::Ip,
        _ => return Err(at.field("san_type").refuse("give DNS, URI, EMAIL or IP_ADDRESS")),
    };
    let proto = proto.matcher.as_ref().ok_or_else(|| at.field("matcher").refuse("required"))?;
    Ok(SanMatcher { san_type, matcher: matcher::string(at.field("matcher"), proto)? })
}

fn hashes(at: At<'_>, proto: &tls::CertificateValidationContext) -> Result<Vec<[u8; 32]>, ConfigError> {
    let one = |(index, text): (usize, &String)| {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        hex_32(&digits).ok_or_else(|| at.item("verify_certificate_hash", index).refuse("not a SHA-256 in hexadecimal"))
    };
    proto.verify_certificate_hash.iter().enumerate().map(one).collect()
}

fn hex_32(digits: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}
