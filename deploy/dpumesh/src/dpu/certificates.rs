//! Certificates of the two programs of a DPU. The keys are made here, and go to the DPU as files.

use super::authority::{Authority, AuthorityError};
use super::files::File;
use std::time::{Duration, SystemTime};

/// The programs of a DPU.
const PROGRAMS: [&str; 2] = ["dataplane", "dpu-proxy"];
/// Below the DPU's root.
const FOLDER: &str = "etc/dpumesh/tls";

/// `PROGRAM.pem` and `PROGRAM-key.pem` of each, and `ca.pem`.
pub fn files(
    authority: &Authority,
    node: &str,
    validity: Duration,
    now: SystemTime,
) -> Result<Vec<File>, AuthorityError> {
    let mut files = vec![File::private(format!("{FOLDER}/ca.pem"), authority.certificate().to_owned())];
    for program in PROGRAMS {
        let issued = authority.issue(program, node, validity, now)?;
        files.push(File::private(format!("{FOLDER}/{program}.pem"), issued.certificate));
        files.push(File::private(format!("{FOLDER}/{program}-key.pem"), issued.key));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::GeneralName;

    /// As the chart's template functions make it.
    const CERTIFICATE: &str = include_str!("testdata/ca.pem");
    const KEY: &str = include_str!("testdata/ca-key.pem");
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn made() -> Vec<File> {
        valid_for(365 * DAY)
    }

    fn valid_for(validity: Duration) -> Vec<File> {
        let now = SystemTime::now();
        let authority = Authority::new(CERTIFICATE, KEY, now).expect("authority");
        files(&authority, "node1", validity, now).expect("files")
    }

    fn text(files: &[File], name: &str) -> String {
        files.iter().find(|file| file.path.ends_with(name)).expect("file").text.clone()
    }

    #[test]
    fn each_program_is_named_as_the_others_expect_it() {
        let files = made();
        let pem = text(&files, "tls/dpu-proxy.pem");
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let leaf = pem.parse_x509().expect("certificate");
        let names = leaf.subject_alternative_name().expect("valid").expect("names").value.general_names.clone();
        assert_eq!(
            names,
            [
                GeneralName::URI("spiffe://dpumesh/dpu-proxy/node1"),
                GeneralName::DNSName("dpu-proxy"),
                GeneralName::DNSName("dpu-proxy.node1.dpumesh"),
            ]
        );
        assert!(!leaf.is_ca());
        let days = leaf.validity().time_to_expiration().expect("valid now").whole_days();
        assert!((364..=365).contains(&days), "{days}");
    }

    #[test]
    fn the_authority_of_the_chart_signed_it() {
        let (_, root) = x509_parser::pem::parse_x509_pem(CERTIFICATE.as_bytes()).expect("PEM");
        let root = root.parse_x509().expect("certificate");
        let pem = text(&made(), "dataplane.pem");
        let (_, leaf) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        assert_eq!(leaf.parse_x509().expect("certificate").issuer(), root.subject());
    }

    #[test]
    fn all_files_are_private_and_no_two_keys_are_the_same() {
        let files = made();
        assert_eq!(files.len(), 5);
        assert!(files.iter().all(|file| file.is_private));
        assert_ne!(text(&files, "dataplane-key.pem"), text(&files, "dpu-proxy-key.pem"));
    }

    #[test]
    fn a_key_that_is_none_is_an_error_that_does_not_show_it() {
        let now = SystemTime::now();
        let error = Authority::new(CERTIFICATE, "-----BEGIN secret", now).expect_err("refused");
        assert!(!error.to_string().contains("secret"), "{error}");
        let other = rcgen::KeyPair::generate().expect("key").serialize_pem();
        let error = Authority::new(CERTIFICATE, &other, now).expect_err("refused");
        assert!(error.to_string().contains("another certificate"), "{error}");
    }

    #[test]
    fn no_certificate_outlives_the_authority_and_one_that_ended_signs_nothing() {
        let (_, root) = x509_parser::pem::parse_x509_pem(CERTIFICATE.as_bytes()).expect("PEM");
        let end = root.parse_x509().expect("certificate").validity().not_after;
        let pem = text(&valid_for(1000 * 365 * DAY), "tls/dataplane.pem");
        let (_, leaf) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        assert!(leaf.parse_x509().expect("certificate").validity().not_after <= end);
        let later = SystemTime::now() + 200 * 365 * DAY;
        assert!(Authority::new(CERTIFICATE, KEY, later).is_err());
    }
}
