//! Certificates of the cases, made once for each run: files that bootstraps name and clients show.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use std::path::Path;

/// (name, URI SAN, signed by the trusted authority).
pub const NAMES: &[(&str, &str, bool)] = &[
    ("proxy", "spiffe://cluster.local/ns/default/sa/proxy", true),
    ("client", "spiffe://cluster.local/ns/default/sa/client", true),
    ("other", "spiffe://cluster.local/ns/default/sa/other", true),
    ("stranger", "spiffe://cluster.local/ns/default/sa/client", false),
];

/// Writes `ca.pem` and `NAME.pem`, `NAME.key` into `folder`.
pub fn write(folder: &Path) -> anyhow::Result<()> {
    let (trusted, untrusted) = (authority("trusted")?, authority("untrusted")?);
    std::fs::write(folder.join("ca.pem"), trusted.pem())?;
    for (name, uri, is_trusted) in NAMES {
        let issuer = if *is_trusted { &trusted } else { &untrusted };
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![format!("{name}.example.test"), "one.test".to_owned()])?;
        params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
        params.distinguished_name.push(DnType::CommonName, *name);
        let certificate = params.signed_by(&key, issuer)?;
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn authority(name: &str) -> anyhow::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("{name} test authority"));
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}
