//! The bootstraps that also drive a stock Envoy (`tests/conformance`).

use super::super::assemble::Assembler;
use super::super::bootstrap;
use std::path::{Path, PathBuf};

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/cases")
}

/// With a value for every placeholder: they are ports, but for these.
fn rendered(template: &str) -> String {
    let clusters = std::fs::read_to_string(cases().join("clusters.inc")).expect("the common clusters");
    let mut text =
        template.replace("{{clusters}}", &clusters).replace("{{log}}", "[]").replace("{{certificates}}", "/files");
    let mut port = 20_000;
    while let Some(start) = text.find("{{") {
        port += 1;
        let end = text[start..].find("}}").expect("a placeholder ends") + start + 2;
        text.replace_range(start..end, &port.to_string());
    }
    text
}

#[test]
fn every_bootstrap_of_the_conformance_cases_is_taken() {
    let any_file = |_: &str| Ok(b"-----BEGIN CERTIFICATE-----".to_vec());
    let mut taken = 0;
    for entry in std::fs::read_dir(cases()).expect("the cases") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let group: serde_json::Value =
            serde_saphyr::from_str(&std::fs::read_to_string(&path).expect("text")).expect("a case file");
        let template = group["bootstrap"].as_str().expect("a bootstrap");
        let bootstrap = bootstrap::parse(&rendered(template), &any_file);
        let bootstrap = bootstrap.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut assembler = Assembler::with_bootstrap(&bootstrap).expect("clusters exist");
        assert_eq!(assembler.incomplete(), vec![], "{}", path.display());
        assert!(!assembler.snapshot().root.listeners.is_empty(), "{}", path.display());
        let reports: Vec<_> = assembler.unsupported().map(ToString::to_string).collect();
        assert_eq!(reports, Vec::<String>::new(), "{}", path.display());
        taken += 1;
    }
    assert!(taken >= 8, "only {taken} case files");
}
