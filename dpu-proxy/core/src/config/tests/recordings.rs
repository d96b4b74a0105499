//! What istiod was recorded to send: 1.30.3, and where it is named, 1.31.

use super::super::assemble::Assembler;
use super::super::report::Unsupported;
use super::super::resource::{self, Content};
use super::one_file;
use crate::model::{
    CaSource, CertificateSource, ForwardClientCert, HttpFilter, Listener, RbacAction, TerminalFilter, TrafficDirection,
};
use mesh_api::Any;
use mesh_api::envoy::service::discovery::v3::DiscoveryResponse;
use mesh_api::proxy::{Reference, Scope, Workload};
use mesh_api::type_url;
use prost::Message;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const TYPES: &[(&str, &str)] = &[
    ("CDS", type_url::CLUSTER),
    ("EDS", type_url::CLUSTER_LOAD_ASSIGNMENT),
    ("LDS", type_url::LISTENER),
    ("RDS", type_url::ROUTE_CONFIGURATION),
];

pub(super) fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/istiod-1.30.3").join(name)
}

pub(super) fn workloads(scenario: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(scenario).expect("recordings").map(|entry| entry.expect("entry").path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

/// Resources of a type, by name.
pub(super) fn recorded(folder: &Path, file: &str) -> Vec<(String, Any)> {
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

/// A scenario of istiod 1.31.
fn later(name: &str) -> String {
    format!("../istiod-1.31/{name}")
}

#[test]
fn everything_of_the_demo_of_a_later_istiod_converts() {
    converts_whole(&later("0-demo"));
    converts_whole(&later("0-demo-shift"));
    let refused = refusals(&later("3-rich"));
    for what in ["jwt_authn", "ext_authz", "local_ratelimit", "extension discovery"] {
        assert!(refused.iter().any(|error| error.contains(what)), "{what} is not among {refused:#?}");
    }
}

#[test]
fn a_later_istiod_also_sends_unready_endpoints_and_lets_nobody_panic_over_them() {
    let outbound = |scenario_name: &str| -> Vec<f64> {
        let clusters = recorded(&scenario(scenario_name).join("curl"), "CDS");
        let clusters = clusters.iter().filter(|(name, _)| name.starts_with("outbound|9080|"));
        let thresholds = clusters.map(|(name, body)| {
            match resource::accept(type_url::CLUSTER, name, body, &one_file).expect("converts").content {
                Content::Cluster(cluster) => cluster.healthy_panic_threshold_percent,
                other => panic!("not a cluster: {other:?}"),
            }
        });
        thresholds.collect()
    };
    // Before, that was so for clusters with outlier detection only.
    assert!(outbound("0-demo").contains(&50.0) && outbound("0-demo").contains(&0.0));
    assert_eq!(outbound(&later("0-demo")), [0.0; 7]);
}

/// What a workload's recording is refused for.
fn refusals(scenario_name: &str) -> BTreeSet<String> {
    let folders = workloads(&scenario(scenario_name));
    folders.iter().flat_map(|folder| convert(folder).0).collect()
}

#[test]
fn filters_that_guard_are_refused_by_name() {
    let refused = refusals("3-rich");
    let named = |what: &str| refused.iter().any(|error| error.contains(what));
    for what in ["jwt_authn", "ext_authz"] {
        assert!(named(what), "{what} is not among {refused:#?}");
    }
    for error in &refused {
        assert!(error.starts_with("listener "), "only listeners hold such filters: {error}");
    }
}

#[test]
fn what_is_left_out_of_the_demo_is_reported_and_nothing_else() {
    let mut paths = BTreeSet::new();
    for folder in workloads(&scenario("0-demo")) {
        paths.extend(convert(&folder).1.into_iter().map(|report| last_field(&report)));
    }
    let expected: BTreeSet<String> = DEMO_REPORTS.iter().map(|path| (*path).to_owned()).collect();
    assert_eq!(paths, expected);
}

/// Tracing, and the exchange of peer metadata: filters of clusters, and filters of listeners.
const DEMO_REPORTS: &[&str] = &["filters[*]", "tracing", "typed_config"];

fn last_field(report: &Unsupported) -> String {
    report.path.rsplit('.').next().unwrap_or_default().to_owned()
}

/// The folder as the adapter would serve it: every resource under its name and a hash, and one scope.
fn serve(assembler: &mut Assembler, uid: &str, folder: &Path, address: &str) {
    let mut scope = Scope::default();
    for (file, type_url) in TYPES {
        let references = match *file {
            "CDS" => &mut scope.clusters,
            "EDS" => &mut scope.endpoints,
            "LDS" => &mut scope.listeners,
            _ => &mut scope.routes,
        };
        for (name, body) in recorded(folder, file) {
            let resource = format!("{name}@{:x}", resource::content_hash(type_url, &body.value));
            super::apply(assembler, &resource, &body).unwrap_or_else(|refused| panic!("{refused:?}"));
            references.push(Reference { name, resource });
        }
    }
    let scope_name = format!("scope@{uid}");
    let workload = Workload {
        uid: uid.to_owned(),
        identity: format!("spiffe://cluster.local/ns/bookinfo/sa/{uid}"),
        addresses: vec![address.to_owned()],
        port_id: uid.to_owned(),
        scope: scope_name.clone(),
        ..Workload::default()
    };
    let any = |type_url: &str, value| Any { type_url: type_url.to_owned(), value };
    super::apply(assembler, &scope_name, &any(type_url::SCOPE, scope.encode_to_vec())).expect("a scope");
    super::apply(assembler, uid, &any(type_url::PROXY_WORKLOAD, workload.encode_to_vec())).expect("a workload");
}

#[test]
fn all_workloads_of_the_demo_are_in_force_and_share_what_is_the_same() {
    let mut assembler = Assembler::new();
    let folders = workloads(&scenario("0-demo"));
    for (index, folder) in folders.iter().enumerate() {
        let uid = folder.file_name().expect("named").to_string_lossy().into_owned();
        serve(&mut assembler, &uid, folder, &format!("10.244.1.{}", 10 + index));
    }
    assert_eq!(assembler.incomplete(), vec![]);
    let snapshot = assembler.snapshot();
    assert_eq!(snapshot.workloads.len(), 8);
    let scopes: Vec<_> = snapshot.workloads.values().map(|workload| &workload.scope).collect();
    let referred: usize = scopes.iter().map(|scope| scope.clusters.len()).sum();
    let distinct: BTreeSet<u64> =
        scopes.iter().flat_map(|scope| scope.clusters.values().map(|cluster| cluster.id)).collect();
    assert!(distinct.len() * 3 < referred, "{} distinct of {referred}", distinct.len());
    for scope in scopes {
        let mut names: Vec<_> =
            scope.listeners.iter().filter(|listener| listener.bind_to_port).map(|l| l.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["virtualInbound", "virtualOutbound"]);
        assert!(scope.clusters.values().any(|cluster| cluster.cluster.delivers_to_workload));
    }
}

/// The inbound listener of a workload of the demo.
fn inbound(workload: &str) -> Arc<Listener> {
    let found =
        recorded(&scenario("0-demo").join(workload), "LDS").into_iter().find(|(name, _)| name == "virtualInbound");
    let (name, body) = found.expect("an inbound listener");
    match resource::accept(type_url::LISTENER, &name, &body, &one_file).expect("converts").content {
        Content::Listener(listener) => listener,
        other => panic!("not a listener: {other:?}"),
    }
}

#[test]
fn a_sidecars_inbound_listener_means_what_istio_means() {
    let listener = inbound("ratings-v1");
    assert_eq!(listener.direction, TrafficDirection::Inbound);
    assert!(listener.bind_to_port && listener.filters.original_dst && listener.filters.tls_inspector.is_some());
    assert_eq!(listener.listener_filters_timeout, None);
    assert!(listener.continue_on_listener_filters_timeout);
    let chains = listener.filter_chains.iter();
    let http: Vec<_> = chains.filter(|chain| matches!(chain.terminal, TerminalFilter::Http(_))).collect();
    assert!(!http.is_empty());
    for chain in http {
        let TerminalFilter::Http(manager) = &chain.terminal else { continue };
        assert_eq!(manager.stream_idle_timeout, None);
        assert_eq!(manager.forward_client_cert, ForwardClientCert::AppendForward);
        assert!(manager.normalize_path && manager.upgrades == ["websocket"]);
        let tls = chain.tls.as_ref().expect("strict mTLS");
        assert!(tls.require_client_certificate);
        assert_eq!(tls.common.certificate, Some(CertificateSource::Sds("default".into())));
        assert_eq!(tls.common.validation.trusted_ca, Some(CaSource::Sds("ROOTCA".into())));
        assert_eq!(tls.common.validation.subject_alt_names.len(), 1);
    }
    let rules = listener.filter_chains.iter().find_map(|chain| match &chain.terminal {
        TerminalFilter::Http(manager) => manager.filters.iter().find_map(|filter| match filter {
            HttpFilter::Rbac(rbac) => rbac.rules.clone(),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(rules.expect("only reviews may read ratings").action, RbacAction::Allow);
}

#[test]
fn a_sidecars_outbound_alpn_override_is_read() {
    let mut seen = false;
    for (name, body) in recorded(&scenario("0-demo").join("productpage-v1"), "LDS") {
        let accepted = resource::accept(type_url::LISTENER, &name, &body, &one_file).expect("converts");
        let Content::Listener(listener) = accepted.content else { continue };
        for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
            let TerminalFilter::Http(manager) = &chain.terminal else { continue };
            for filter in &manager.filters {
                if let HttpFilter::IstioAlpn(alpn) = filter {
                    assert!(alpn.http11.contains(&"istio-http/1.1".to_owned()), "{alpn:?}");
                    assert!(alpn.http2.contains(&"istio-h2".to_owned()) && !alpn.http10.is_empty(), "{alpn:?}");
                    seen = true;
                }
            }
        }
    }
    assert!(seen);
}
