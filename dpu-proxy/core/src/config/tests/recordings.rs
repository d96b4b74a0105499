//! What istiod 1.30.3 was recorded to send.

use super::super::report::Unsupported;
use super::super::resource;
use super::one_file;
use mesh_api::Any;
use mesh_api::envoy::service::discovery::v3::DiscoveryResponse;
use mesh_api::type_url;
use prost::Message;
use std::path::{Path, PathBuf};

const TYPES: &[(&str, &str)] = &[
    ("CDS", type_url::CLUSTER),
    ("EDS", type_url::CLUSTER_LOAD_ASSIGNMENT),
    ("LDS", type_url::LISTENER),
    ("RDS", type_url::ROUTE_CONFIGURATION),
];

fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/istiod-1.30.3").join(name)
}

fn workloads(scenario: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(scenario).expect("recordings").map(|entry| entry.expect("entry").path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

/// Resources of a type, by name.
fn recorded(folder: &Path, file: &str) -> Vec<(String, Any)> {
    let Ok(bytes) = std::fs::read(folder.join(format!("{file}.pb"))) else { return Vec::new() };
    let response = DiscoveryResponse::decode(bytes.as_slice()).expect("a response");
    response.resources.into_iter().map(|body| (name(&body), body)).collect()
}

fn name(body: &Any) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(body.value.as_slice()).expect("named").name
}

/// Errors and reports of everything that a workload was sent.
fn convert(folder: &Path) -> (Vec<String>, Vec<Unsupported>) {
    let (mut errors, mut reports) = (Vec::new(), Vec::new());
    for (file, type_url) in TYPES {
        for (name, body) in recorded(folder, file) {
            match resource::accept(type_url, &name, &body, &one_file) {
                Ok(accepted) => reports.extend(accepted.reports),
                Err(error) => errors.push(error.to_string()),
            }
        }
    }
    (errors, reports)
}

fn converts_whole(name: &str) {
    let folders = workloads(&scenario(name));
    assert!(!folders.is_empty());
    for folder in folders {
        let (errors, _) = convert(&folder);
        assert_eq!(errors, Vec::<String>::new(), "{}", folder.display());
    }
}

#[test]
fn everything_of_the_demo_converts() {
    converts_whole("0-demo");
    converts_whole("0-demo-shift");
}

#[test]
fn everything_of_the_permissive_mesh_converts() {
    converts_whole("1-permissive");
}

#[test]
fn everything_of_the_strict_mesh_with_authorization_converts() {
    converts_whole("2-strict-authz");
}
