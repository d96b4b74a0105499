//! Bootstrap files.

use super::super::bootstrap::{self, Ads, Bootstrap};
use super::super::report::ConfigError;
use super::super::resource::Content;
use super::one_file;
use crate::model::{Discovery, HttpConnectionManager, RouteSource, TerminalFilter};
use std::sync::Arc;
use std::time::Duration;

const MINIMAL: &str = r#"
node: {id: node-1, cluster: c, locality: {zone: z1}, metadata: {KEY: value}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  clusters:
  - name: a
    connectTimeout: 1.5s
    load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: l
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: a}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
"#;

fn parse(text: &str) -> Result<Bootstrap, ConfigError> {
    bootstrap::parse(text, &one_file)
}

fn error(text: &str) -> String {
    parse(text).expect_err("must be refused").to_string()
}

fn manager(bootstrap: &Bootstrap) -> Arc<HttpConnectionManager> {
    let listener = bootstrap.resources.iter().find_map(|held| match &held.content {
        Content::Listener(listener) => Some(listener),
        _ => None,
    });
    match &listener.expect("one listener").filter_chains[0].terminal {
        TerminalFilter::Http(manager) => Arc::clone(manager),
        other => panic!("not HTTP: {other:?}"),
    }
}

#[test]
fn a_minimal_file_means_what_envoy_takes_it_to_mean() {
    let bootstrap = parse(MINIMAL).expect("valid");
    assert_eq!(bootstrap.node.id, "node-1");
    assert_eq!(bootstrap.admin.map(|admin| admin.to_string()).as_deref(), Some("127.0.0.1:9901"));
    assert_eq!(bootstrap.ads, None);
    assert_eq!(bootstrap.unsupported, vec![]);
    let Content::Cluster(cluster) = &bootstrap.resources[0].content else { panic!("clusters come first") };
    assert_eq!(cluster.connect_timeout, Duration::from_millis(1500));
    let Discovery::Static(endpoints) = &cluster.discovery else { panic!("STATIC is the default") };
    assert_eq!(endpoints.priorities[0].localities[0].endpoints[0].address.to_string(), "127.0.0.1:80");
    let manager = manager(&bootstrap);
    assert_eq!(manager.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(manager.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((manager.max_request_headers_kb, manager.max_headers_count), (60, 100));
    assert!(manager.generate_request_id && !manager.use_remote_address && !manager.normalize_path);
    assert!(matches!(&manager.routes, RouteSource::Inline(routes) if routes.default_virtual_host == Some(0)));
}

#[test]
fn json_and_both_spellings_of_names_are_read() {
    let text = r#"{"staticResources": {"clusters": [{"name": "a", "connect_timeout": "2s", "lbPolicy": "RANDOM"}]}}"#;
    assert_eq!(parse(text).expect("valid").resources.len(), 1);
    assert!(parse("").expect("an empty file is a bootstrap").resources.is_empty());
}

#[test]
fn a_field_that_does_not_exist_is_named_with_its_path() {
    let text = MINIMAL.replace("stat_prefix: l", "stat_prefix: l\n          stat_prefx: l");
    let expected = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefx";
    assert!(error(&text).contains(expected), "{}", error(&text));
    assert!(error("static_resources: {clusters: [{name: a, lb_policy: FASTEST}]}").contains("clusters[0].lb_policy"));
    assert!(
        error("static_resources: {clusters: [{name: a, connect_timeout: fast}]}")
            .contains("clusters[0].connect_timeout")
    );
    assert!(error("static_resources: {clusters: [{name: 1}]}").contains("clusters[0].name: a text is expected"));
}

#[test]
fn an_unknown_type_is_named_with_its_path() {
    let text = MINIMAL.replace("filters.http.router.v3.Router", "filters.http.rooter.v3.Router");
    let error = error(&text);
    assert!(error.contains("http_filters[0].typed_config.@type"), "{error}");
    assert!(error.contains("rooter"), "{error}");
}

#[test]
fn what_is_not_text_of_either_kind_is_refused() {
    for text in ["{", "a: [", "- 1", "just words", "{\"node\": 1}"] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_static_resource_is_refused_with_its_place_in_the_file() {
    let text = MINIMAL.replace("connectTimeout: 1.5s", "connectTimeout: 0s");
    assert!(error(&text).starts_with("cluster a: static_resources.clusters[0].connect_timeout:"), "{}", error(&text));
}

#[test]
fn a_name_may_be_given_once() {
    let twice = "static_resources: {clusters: [{name: a}, {name: a}]}";
    assert!(error(twice).contains("given twice"));
}

#[test]
fn the_aggregated_stream_needs_a_static_cluster() {
    let ads = |cluster: &str| {
        format!(
            "dynamic_resources: {{ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: {cluster}}}}}]}}, cds_config: {{ads: {{}}}}, lds_config: {{ads: {{}}}}}}\nstatic_resources: {{clusters: [{{name: xds}}]}}"
        )
    };
    let bootstrap = parse(&ads("xds")).expect("valid");
    assert_eq!(bootstrap.ads, Some(Ads { cluster: "xds".into(), delta: true }));
    assert!(bootstrap.dynamic_clusters && bootstrap.dynamic_listeners);
    assert!(error(&ads("other")).contains("\"other\" is not a static cluster"));
    assert!(error("dynamic_resources: {cds_config: {ads: {}}}").contains("cds_config"));
    assert!(
        error("dynamic_resources: {lds_config: {path_config_source: {path: /x}}}")
            .contains("only the aggregated stream")
    );
}

#[test]
fn parts_that_are_not_done_are_reported() {
    let text = "layered_runtime: {layers: [{name: a, static_layer: {x: 1}}]}\noverload_manager: {}\nnode: {id: node}";
    let bootstrap = parse(text).expect("valid");
    let mut paths: Vec<_> = bootstrap.unsupported.iter().map(|report| report.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, vec!["layered_runtime", "overload_manager"]);
}
