//! Keys and certificates of Kubernetes itself: its root, the API server, an administrator, each node.

use crate::layout::{self, CONTROL_ADDRESS, FOLDER, KUBERNETES_SERVICE};
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Kubernetes' certificate authority.
#[derive(Debug)]
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
}

/// Path of a key or certificate.
pub fn file(name: &str) -> PathBuf {
    layout::path("pki").join(name)
}

impl Pki {
    /// A new root, and all that the control plane needs.
    pub fn create() -> Result<Self> {
        std::fs::create_dir_all(file(""))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes of the test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        write_private(&file("ca.crt"), &params.self_signed(&key)?.pem())?;
        write_private(&file("ca.key"), &key.serialize_pem())?;
        let pki = Self { issuer: Issuer::new(params, key) };
        pki.issue("apiserver", "kube-apiserver", None, &api_server_names()?)?;
        pki.user("admin", "admin", Some("system:masters"))?;
        pki.user("controller-manager", "system:kube-controller-manager", None)?;
        pki.user("scheduler", "system:kube-scheduler", None)?;
        pki.user("proxy", "system:kube-proxy", None)?;
        let accounts = KeyPair::generate()?;
        write_private(&file("service-accounts.key"), &accounts.serialize_pem())?;
        write_private(&file("service-accounts.pub"), &accounts.public_key_pem())?;
        Ok(pki)
    }

    /// A certificate for a user of the API server, and a kubeconfig.
    pub fn user(&self, name: &str, common_name: &str, group: Option<&str>) -> Result<()> {
        self.issue(name, common_name, group, &[])?;
        write_private(&kubeconfig(name), &kubeconfig_text(name))
    }

    fn issue(&self, name: &str, common_name: &str, group: Option<&str>, names: &[SanType]) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.subject_alt_names = names.to_vec();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        write_private(&file(&format!("{name}.crt")), &params.signed_by(&key, &self.issuer)?.pem())?;
        write_private(&file(&format!("{name}.key")), &key.serialize_pem())
    }
}

fn api_server_names() -> Result<Vec<SanType>> {
    let mut names = Vec::new();
    for name in ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
        names.push(SanType::DnsName(name.to_owned().try_into()?));
    }
    for address in ["127.0.0.1", CONTROL_ADDRESS, KUBERNETES_SERVICE] {
        names.push(SanType::IpAddress(address.parse()?));
    }
    Ok(names)
}

/// Path of a user's kubeconfig.
pub fn kubeconfig(user: &str) -> PathBuf {
    layout::path(format!("{user}.kubeconfig"))
}

fn kubeconfig_text(user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: cluster\n\
         contexts: [{{name: cluster, context: {{cluster: cluster, user: {user}}}}}]\n\
         clusters: [{{name: cluster, cluster: {{server: \"https://{CONTROL_ADDRESS}:6443\", certificate-authority: {FOLDER}/pki/ca.crt}}}}]\n\
         users: [{{name: {user}, user: {{client-certificate: {FOLDER}/pki/{user}.crt, client-key: {FOLDER}/pki/{user}.key}}}}]\n"
    )
}

/// Writes a file that only root reads.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}
