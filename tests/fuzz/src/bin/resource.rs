//! Discovery resources of any type: converted or refused by name, never a panic.

#![no_main]

use dpu_proxy_core::config::resource;
use libfuzzer_sys::fuzz_target;
use mesh_api::{Any, type_url};

const TYPES: [&str; 7] = [
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::LISTENER,
    type_url::ROUTE_CONFIGURATION,
    type_url::SECRET,
    type_url::SCOPE,
    type_url::PROXY_WORKLOAD,
];

fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    let type_url = TYPES[usize::from(kind) % TYPES.len()];
    let body = Any { type_url: type_url.to_owned(), value: bytes.to_vec() };
    let no_files = |path: &str| Err(std::io::Error::other(format!("{path} is not read here")));
    if let Err(error) = resource::accept(type_url, "fuzzed", &body, &no_files) {
        assert!(!error.to_string().is_empty(), "a refusal says why");
    }
});
