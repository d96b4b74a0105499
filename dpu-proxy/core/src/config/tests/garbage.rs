//! Garbage in: an error out, never a panic.

use super::super::{bootstrap, format, resource};
use super::one_file;
use super::recordings::{TYPES, recorded, scenario, workloads};
use mesh_api::{Any, type_url};
use proptest::prelude::*;

const ALL: &[&str] = &[
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::LISTENER,
    type_url::ROUTE_CONFIGURATION,
    type_url::SECRET,
    type_url::SCOPE,
    type_url::PROXY_WORKLOAD,
];

/// Every resource of one workload, to be damaged.
fn samples() -> Vec<(&'static str, String, Any)> {
    let folder = workloads(&scenario("3-rich")).remove(0);
    let of_type = |(file, type_url): &(&str, &'static str)| {
        let type_url = *type_url;
        recorded(&folder, file).into_iter().map(move |(name, body)| (type_url, name, body)).collect::<Vec<_>>()
    };
    TYPES.iter().flat_map(of_type).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_of_any_type_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..ALL.len()) {
        let body = Any { type_url: ALL[kind].to_owned(), value: bytes };
        let _ = resource::accept(ALL[kind], "name", &body, &one_file);
    }

    #[test]
    fn random_text_is_answered(text in "\\PC{0,200}") {
        let _ = bootstrap::parse(&text, &one_file);
        let _ = format::parse_lenient(&text, &mut |_| ());
    }

    #[test]
    fn random_yaml_like_text_is_answered(text in "[a-z_%(){}\\[\\]:,\"'\n &*|>@1-]{0,120}") {
        let _ = bootstrap::parse(&text, &one_file);
        let _ = format::parse(&text);
    }
}

#[test]
fn damaged_recordings_are_answered() {
    let samples = samples();
    let mut state = 0x9e37_79b9_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    for round in 0..600 {
        let (type_url, name, mut body) = samples[round % samples.len()].clone();
        for _ in 0..=next(3) {
            let at = next(body.value.len());
            match next(3) {
                0 => body.value.truncate(at),
                1 if !body.value.is_empty() => body.value[at] = next(256) as u8,
                _ => body.value.insert(at, next(256) as u8),
            }
        }
        let _ = resource::accept(type_url, &name, &body, &one_file);
    }
}

/// A load-balancing policy in a load-balancing policy, and so on: each level is bytes to the one above it.
#[test]
fn endless_nesting_is_refused() {
    use mesh_api::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy, load_balancing_policy::Policy};
    use mesh_api::envoy::config::core::v3::TypedExtensionConfig;
    use mesh_api::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
    use prost::{Message, Name};

    let mut policy = LoadBalancingPolicy::default();
    for _ in 0..3000 {
        let inner = WrrLocality { endpoint_picking_policy: Some(policy) };
        let typed_config = Some(Any { type_url: WrrLocality::type_url(), value: inner.encode_to_vec() });
        let typed_extension_config = Some(TypedExtensionConfig { name: String::new(), typed_config });
        policy = LoadBalancingPolicy { policies: vec![Policy { typed_extension_config }] };
    }
    let cluster = Cluster { name: "a".into(), load_balancing_policy: Some(policy), ..Cluster::default() };
    let body = Any { type_url: type_url::CLUSTER.into(), value: cluster.encode_to_vec() };
    let error = resource::accept(type_url::CLUSTER, "a", &body, &one_file).expect_err("too deep");
    assert!(error.reason.contains("nested too deeply"), "{error}");
}
