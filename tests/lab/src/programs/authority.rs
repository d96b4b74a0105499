//! The lab's certificate authority: of the programs' certificates, and, in the replay server, of the mesh.

use super::istio_token;
use crate::topology::Host;
use anyhow::{Context, Result};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A root that signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// PEM of the root.
    pub root: String,
}

impl Authority {
    /// A new root with this common name.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let root = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), root })
    }

    /// Reads a root that `save` wrote.
    pub fn load(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            std::fs::read_to_string(folder.join(name))
                .with_context(|| format!("cannot read {name} in {}", folder.display()))
        };
        let (root, key) = (read("ca.pem")?, KeyPair::from_pem(&read("ca-key.pem")?)?);
        Ok(Self { issuer: Issuer::from_ca_cert_pem(&root, key)?, root })
    }

    /// Writes the root and its key.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        write_private(&folder.join("ca.pem"), &self.root)?;
        write_private(&folder.join("ca-key.pem"), &self.issuer.key().serialize_pem())
    }

    /// A program's certificate and key as `NAME.pem` and `NAME-key.pem`, with the root as `ca.pem`.
    pub fn issue(&self, folder: &Path, name: &str, uri: &str, hosts: &[&str]) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri.to_owned())?));
        for host in hosts {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from((*host).to_owned())?));
        }
        finish(&mut params);
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        write_private(&folder.join(format!("{name}.pem")), &certificate)?;
        write_private(&folder.join(format!("{name}-key.pem")), &key.serialize_pem())?;
        write_private(&folder.join("ca.pem"), &self.root)
    }

    /// Signs a request for exactly this identity, whatever the request asks for; leaf first, root last.
    pub fn sign(&self, request: &str, identity: &str) -> Result<Vec<String>> {
        let mut request =
            CertificateSigningRequestParams::from_pem(request).context("the signing request does not parse")?;
        request.params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_owned())?)];
        finish(&mut request.params);
        Ok(vec![request.signed_by(&self.issuer)?.pem(), self.root.clone()])
    }
}

/// A request for a certificate of `identity`, with a key that is thrown away.
pub fn signing_request(identity: &str) -> Result<String> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_owned())?)];
    Ok(params.serialize_request(&KeyPair::generate()?)?.pem()?)
}

/// For both ends of a connection.
fn finish(params: &mut CertificateParams) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
}

/// Makes the token that a host's adapter shows to the certificate service.
pub fn write_token(host: Host) -> Result<()> {
    let path = istio_token(host);
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let digest = KeyPair::generate()?.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    write_private(&path, &digest)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_signed_for_the_given_identity_only() {
        let authority = Authority::new("lab").expect("root");
        let key = KeyPair::generate().expect("key");
        let asked = CertificateParams::new(vec!["other.example".to_owned()]).expect("params");
        let request = asked.serialize_request(&key).expect("request").pem().expect("PEM");
        let identity = "spiffe://cluster.local/ns/bookinfo/sa/curl";
        let chain = authority.sign(&request, identity).expect("signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).expect("PEM");
        let leaf = pem.parse_x509().expect("certificate");
        let names = leaf.subject_alternative_name().expect("extension").expect("present");
        assert_eq!(format!("{:?}", names.value.general_names), format!("[URI(\"{identity}\")]"));
        assert_eq!(chain[1], authority.root);
    }
}
