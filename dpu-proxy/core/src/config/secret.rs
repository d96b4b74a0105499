//! Secrets, of the bootstrap or of SDS.

use super::report::{At, ConfigError};
use super::tls;
use crate::model::{CaSource, CertificateSource};
use mesh_api::envoy::extensions::transport_sockets::tls::v3 as proto;

/// A secret by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    pub name: String,
    pub content: SecretContent,
}

/// What a secret holds, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretContent {
    /// Always `CertificateSource::Pem`.
    Certificate(CertificateSource),
    /// PEM roots.
    TrustedCa(Vec<u8>),
}

/// Converts a secret.
pub fn secret(at: At<'_>, proto: &proto::Secret) -> Result<Secret, ConfigError> {
    use proto::secret::Type;
    if proto.name.is_empty() {
        return Err(at.field("name").refuse("a name is required"));
    }
    let content = match &proto.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            SecretContent::Certificate(tls::pem_certificate(at.field("tls_certificate"), certificate)?)
        }
        Some(Type::ValidationContext(context)) => trusted_ca(at.field("validation_context"), context)?,
        Some(Type::SessionTicketKeys(_)) => {
            return Err(at.field("session_ticket_keys").refuse("session ticket keys from outside are not supported"));
        }
        Some(Type::GenericSecret(_)) => return Err(at.field("generic_secret").refuse("not supported")),
        None => return Err(at.refuse("give tls_certificate or validation_context")),
    };
    Ok(Secret { name: proto.name.clone(), content })
}

/// Only roots: further checks belong to the `default_validation_context` that is combined with it.
fn trusted_ca(at: At<'_>, context: &proto::CertificateValidationContext) -> Result<SecretContent, ConfigError> {
    let validation = tls::validation_context(at, context)?;
    if !validation.subject_alt_names.is_empty()
        || !validation.certificate_hashes.is_empty()
        || validation.accept_untrusted
    {
        return Err(at.refuse("a secret may hold trusted_ca only; put other checks into default_validation_context"));
    }
    match validation.trusted_ca {
        Some(CaSource::Pem(pem)) => Ok(SecretContent::TrustedCa(pem)),
        _ => Err(at.field("trusted_ca").refuse("required")),
    }
}
