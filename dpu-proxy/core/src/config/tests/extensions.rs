//! Single resources: what they mean, and what is refused and why.

use super::super::resource::Content;
use super::accept;
use crate::model::{
    ClusterSpecifier, LbPolicy, PathMatch, RedirectPath, RouteActionKind, RouteConfig, UpstreamProtocol,
};
use mesh_api::envoy::config::cluster::v3::Cluster;
use mesh_api::envoy::config::listener::v3::Listener;
use mesh_api::envoy::config::route::v3::RouteConfiguration;
use mesh_api::envoy::extensions::transport_sockets::tls::v3::Secret;
use std::sync::Arc;
use std::time::Duration;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

fn cluster(yaml: &str) -> Result<Arc<crate::model::Cluster>, String> {
    let accepted = accept::<Cluster>("a", &format!("{{name: a, {yaml}}}")).map_err(|error| error.to_string())?;
    let Content::Cluster(cluster) = accepted.content else { panic!("a cluster") };
    Ok(cluster)
}

fn routes(yaml: &str) -> Result<Arc<RouteConfig>, String> {
    let text = format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{yaml}]}}]}}");
    let accepted = accept::<RouteConfiguration>("r", &text).map_err(|error| error.to_string())?;
    let Content::Routes(routes) = accepted.content else { panic!("routes") };
    Ok(routes)
}

fn filters(yaml: &str) -> Result<Vec<String>, String> {
    let text = format!(
        r#"{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: [{{filters: [{{name: h, typed_config: {{"@type": {TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager, route_config: {{name: r}}, http_filters: [{yaml}, {{name: router, typed_config: {{"@type": {TYPE}.filters.http.router.v3.Router}}}}]}}}}]}}]}}"#
    );
    let accepted = accept::<Listener>("l", &text).map_err(|error| error.to_string())?;
    Ok(accepted.reports.into_iter().map(|report| report.reason).collect())
}

#[test]
fn a_cluster_has_envoys_defaults() {
    let cluster = cluster("").expect("valid");
    assert_eq!(cluster.lb_policy, LbPolicy::RoundRobin);
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.circuit_breakers.max_connections, 1024);
    assert_eq!(cluster.protocol, UpstreamProtocol::Http1);
    assert_eq!(cluster.http.idle_timeout, Some(Duration::from_secs(3600)));
    assert!(cluster.outlier_detection.is_none());
}

#[test]
fn load_balancing_is_read_from_fields_and_from_extensions() {
    let typed = |name: &str, rest: &str| {
        cluster(&format!(
            "load_balancing_policy: {{policies: [{{typed_extension_config: {{name: x, typed_config: {{\"@type\": {TYPE}.load_balancing_policies.{name}, {rest}}}}}}}]}}"
        ))
        .map(|cluster| cluster.lb_policy)
    };
    let least = LbPolicy::LeastRequest { choice_count: 3, active_request_bias: 1.0 };
    assert_eq!(
        cluster("lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 3}").expect("valid").lb_policy,
        least
    );
    assert_eq!(typed("least_request.v3.LeastRequest", "choice_count: 3"), Ok(least));
    assert_eq!(typed("maglev.v3.Maglev", "table_size: 13"), Ok(LbPolicy::Maglev { table_size: 13 }));
    assert!(typed("maglev.v3.Maglev", "table_size: 12").is_err_and(|error| error.contains("not a prime")));
    assert!(typed("pick_first.v3.PickFirst", "").is_err_and(|error| error.contains("none of the policies")));
    assert!(cluster("lb_policy: CLUSTER_PROVIDED").is_err_and(|error| error.contains("ORIGINAL_DST")));
}

#[test]
fn what_a_certificate_check_would_lose_is_refused() {
    let tls = |context: &str| {
        cluster(&format!(
            "transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPE}.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {{validation_context: {{{context}}}}}}}}}"
        ))
    };
    assert!(
        tls("trusted_ca: {inline_string: pem}, match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: a}}]")
            .is_ok()
    );
    assert!(tls("trusted_ca: {filename: /files/body}").is_ok());
    for (context, field) in [
        ("crl: {inline_string: x}", "crl"),
        ("verify_certificate_spki: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]", "verify_certificate_spki"),
        ("trusted_ca: {filename: /none}", "trusted_ca.filename: cannot read /none"),
        ("match_typed_subject_alt_names: [{matcher: {exact: a}}]", "san_type"),
    ] {
        let error = tls(context).expect_err(context);
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn routes_mean_what_envoy_means() {
    let routes = routes(
        "{match: {path_separated_prefix: /a}, route: {weighted_clusters: {clusters: [{name: x, weight: 70}, {name: b, weight: 30}]}}},
         {match: {safe_regex: {regex: '/b.'}}, redirect: {https_redirect: true, prefix_rewrite: /c, response_code: FOUND}},
         {match: {prefix: /d}, direct_response: {status: 418, body: {filename: /files/body}}},
         {match: {prefix: /}, route: {cluster: z, timeout: 0s, retry_policy: {retry_on: '5xx,cancelled,odd', num_retries: 3}}}",
    )
    .expect("valid");
    let routes = &routes.virtual_hosts[0].routes;
    let RouteActionKind::Forward(action) = &routes[0].action else { panic!("forwards") };
    assert!(matches!(&action.cluster, ClusterSpecifier::Weighted { total: 100, clusters } if clusters[0].weight == 70));
    assert_eq!(action.timeout, Some(Duration::from_secs(15)));
    let PathMatch::Regex(regex) = &routes[1].matches.path else { panic!("a regex") };
    assert!(regex.is_match("/bx") && !regex.is_match("/bxy") && !regex.is_match("/a/bx"));
    let RouteActionKind::Redirect(redirect) = &routes[1].action else { panic!("redirects") };
    assert!(redirect.https && redirect.status == 302);
    assert_eq!(redirect.path, RedirectPath::PrefixRewrite("/c".into()));
    assert!(
        matches!(&routes[2].action, RouteActionKind::DirectResponse { status: 418, body } if body == b"from a file")
    );
    let RouteActionKind::Forward(action) = &routes[3].action else { panic!("forwards") };
    let retry = action.retry.as_ref().expect("a policy");
    assert_eq!((action.timeout, retry.num_retries), (None, 3));
    assert!(retry.on.server_error_5xx && retry.on.grpc_cancelled && !retry.on.reset);
    assert_eq!(retry.backoff_max, Duration::from_millis(250));
}

#[test]
fn routes_that_cannot_be_followed_are_refused() {
    for (route, reason) in [
        ("{match: {prefix: /, cookies: [{name: a, string_match: {exact: b}}]}, route: {cluster: a}}", "cookies"),
        (
            "{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}}",
            "sum of the weights is 0",
        ),
        ("{match: {safe_regex: {regex: '('}}, route: {cluster: a}}", "not a valid RE2"),
        ("{match: {prefix: /}, direct_response: {status: 42}}", "between 200 and 599"),
        (
            "{match: {prefix: /}, route: {cluster: a}, request_headers_to_add: [{header: {key: x, value: '%NO%'}}]}",
            "%NO%",
        ),
        (
            "{match: {prefix: /}, route: {cluster: a}, request_headers_to_add: [{header: {key: ':path', value: x}}]}",
            ":path",
        ),
        ("{match: {prefix: /}}", "give route"),
    ] {
        let error = routes(route).expect_err(route);
        assert!(error.contains(reason), "{error}");
        assert!(error.contains("virtual_hosts[0].routes[0]"), "{error}");
    }
}

#[test]
fn domains_are_indexed_longest_first_and_given_once() {
    let config = |domains: &str| {
        let host = "routes: [{match: {prefix: /}, route: {cluster: a}}]";
        let accepted = accept::<RouteConfiguration>(
            "r",
            &format!("{{name: r, virtual_hosts: [{{name: v, {host}, domains: {domains}}}]}}"),
        );
        accepted.map(|accepted| match accepted.content {
            Content::Routes(routes) => routes,
            other => panic!("{other:?}"),
        })
    };
    let routes = config("['A.b', '*.b', '*.a.b', 'c.*', '*']").expect("valid");
    assert_eq!(routes.exact_domains.get("a.b"), Some(&0));
    assert_eq!(routes.suffix_domains, [("*.a.b".to_owned(), 0), ("*.b".to_owned(), 0)]);
    assert_eq!((routes.prefix_domains.len(), routes.default_virtual_host), (1, Some(0)));
    for twice in ["['a', 'A']", "['*', '*']", "['*.a', '*.A']", "['*.a.*']", "[]"] {
        assert!(config(twice).is_err(), "{twice}");
    }
}

#[test]
fn filters_that_are_not_there_are_refused_unless_optional_and_harmless() {
    let filter = |name: &str, rest: &str| {
        filters(&format!("{{name: f, {rest} typed_config: {{\"@type\": {TYPE}.filters.http.{name}}}}}"))
    };
    let refused = filter("lua.v3.Lua", "").expect_err("unknown");
    assert!(refused.contains("http_filters[0]") && refused.contains("lua.v3.Lua"), "{refused}");
    assert_eq!(filter("lua.v3.Lua", "is_optional: true,").expect("optional").len(), 1);
    assert!(filter("jwt_authn.v3.JwtAuthentication", "is_optional: true,").is_err());
    assert!(filter("ext_authz.v3.ExtAuthz", "is_optional: true,").is_err());
    assert!(filter("cors.v3.Cors", "disabled: true,").is_err());
    assert_eq!(filter("cors.v3.Cors", ""), Ok(vec![]));
    let stats = "{name: s, typed_config: {\"@type\": type.googleapis.com/stats.PluginConfig}}";
    assert_eq!(filters(stats), Ok(vec![]));
    let typed = "{name: m, typed_config: {\"@type\": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: {a: 1}}}";
    assert_eq!(filters(typed).expect("known").len(), 1);
}

#[test]
fn a_typed_struct_of_a_known_filter_is_that_filter() {
    let rbac = |value: &str| {
        filters(&format!(
            "{{name: f, typed_config: {{\"@type\": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: {TYPE}.filters.http.rbac.v3.RBAC, value: {value}}}}}"
        ))
    };
    assert_eq!(
        rbac(
            "{rules: {action: DENY, policies: {p: {permissions: [{destination_port: 80}], principals: [{any: true}]}}}}"
        ),
        Ok(vec![])
    );
    assert!(
        rbac("{rules: {policies: {p: {permissions: [], principals: []}}}}")
            .is_err_and(|error| error.contains("at least one permission"))
    );
    assert!(rbac("{roles: {}}").is_err_and(|error| error.contains("value")));
}

#[test]
fn authorization_keeps_the_order_of_names_and_refuses_conditions() {
    let rbac = |policies: &str| {
        filters(&format!(
            "{{name: f, typed_config: {{\"@type\": {TYPE}.filters.http.rbac.v3.RBAC, rules: {{action: DENY, policies: {{{policies}}}}}}}}}"
        ))
    };
    let any = "principals: [{any: true}]";
    assert!(
        rbac(&format!("p: {{permissions: [{{destination_port_range: {{start: 1, end: 65536}}}}], {any}}}")).is_ok()
    );
    let condition =
        rbac(&format!("p: {{permissions: [{{any: true}}], {any}, condition: {{const_expr: {{bool_value: true}}}}}}"));
    assert!(condition.is_err_and(|error| error.contains("policies[\"p\"].condition")));
    assert!(rbac(&format!("p: {{permissions: [], {any}}}")).is_err());
    assert!(rbac(&format!("p: {{permissions: [{{matcher: {{name: m}}}}], {any}}}")).is_err());
}

#[test]
fn two_filter_chains_with_one_match_are_refused() {
    let tcp = format!(
        "filters: [{{name: t, typed_config: {{\"@type\": {TYPE}.filters.network.tcp_proxy.v3.TcpProxy, cluster: a}}}}]"
    );
    let listener = |first: &str, second: &str| {
        accept::<Listener>(
            "l",
            &format!(
                "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 1}}}}, filter_chains: [{{{tcp}, filter_chain_match: {first}}}, {{{tcp}, filter_chain_match: {second}}}]}}"
            ),
        )
    };
    assert!(listener("{destination_port: 1}", "{destination_port: 2}").is_ok());
    let refused = listener("{destination_port: 1}", "{destination_port: 1}").expect_err("the same").to_string();
    assert!(refused.contains("filter_chains[1].filter_chain_match"), "{refused}");
    assert!(listener("{server_names: ['a*.b']}", "{}").is_err());
}

#[test]
fn a_secret_holds_a_certificate_or_roots() {
    let pem = "certificate_chain: {inline_string: c}, private_key: {inline_string: k}";
    assert!(accept::<Secret>("s", &format!("{{name: s, tls_certificate: {{{pem}}}}}")).is_ok());
    assert!(accept::<Secret>("s", "{name: s, validation_context: {trusted_ca: {inline_string: c}}}").is_ok());
    for bad in [
        "{name: s}",
        "{name: s, tls_certificate: {}}",
        "{name: s, generic_secret: {}}",
        "{name: s, validation_context: {}}",
    ] {
        assert!(accept::<Secret>("s", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_field_without_effect_is_reported_with_its_path() {
    let accepted =
        accept::<Cluster>("a", "{name: a, track_timeout_budgets: true, preconnect_policy: {}}").expect("valid");
    let mut paths: Vec<_> = accepted.reports.into_iter().map(|report| report.path).collect();
    paths.sort();
    assert_eq!(paths, ["preconnect_policy", "track_timeout_budgets"]);
}
