//! Which route and which cluster of it take a request.

use super::*;
use crate::model::{
    FilterOverrides, HeaderEdits, HeaderMatcher, HeaderValueMatch, RouteAction, StringMatcher, StringPattern,
    WeightedCluster,
};
use regex::Regex;

fn head(method: &str, path: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_method(method.as_bytes());
    head.set_path(path.as_bytes());
    head.set_authority(b"example.test");
    head
}

fn to(name: &str, matches: RouteMatch, cluster: ClusterSpecifier) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matches,
        action: RouteActionKind::Forward(Box::new(RouteAction::new(cluster))),
        headers: HeaderEdits::default(),
        cors: None,
        overrides: FilterOverrides::default(),
    })
}

fn config(routes: Vec<Arc<Route>>) -> RouteConfig {
    let host = Arc::new(VirtualHost { routes, ..VirtualHost::default() });
    RouteConfig { virtual_hosts: vec![host], default_virtual_host: Some(0), ..RouteConfig::default() }
}

fn single(name: &str) -> ClusterSpecifier {
    ClusterSpecifier::Single(name.into())
}

fn path_holds(path: PathMatch, case_sensitive: bool, text: &str) -> bool {
    let wanted = RouteMatch { case_sensitive, ..RouteMatch::new(path) };
    matches(&wanted, &head("GET", text), &RouteFacts::default())
}

#[test]
fn a_path_is_matched_without_its_query() {
    assert!(path_holds(PathMatch::Exact("/exact".into()), true, "/exact?x=1"));
    assert!(!path_holds(PathMatch::Exact("/exact".into()), true, "/exact/more"));
    assert!(path_holds(PathMatch::Prefix("/CASE".into()), false, "/case/x"));
    assert!(!path_holds(PathMatch::Prefix("/CASE".into()), true, "/case/x"));
}

#[test]
fn a_regular_expression_matches_the_whole_path() {
    let regex = || PathMatch::Regex(Regex::new("^(?:/r[0-9]+)$").expect("valid"));
    assert!(path_holds(regex(), true, "/r123?q"));
    assert!(!path_holds(regex(), true, "/r123/x"));
}

#[test]
fn a_separated_prefix_ends_at_a_slash() {
    let separated = || PathMatch::PathSeparatedPrefix("/sep".into());
    for (path, expected) in [("/sep", true), ("/sep/x", true), ("/sep?x", true), ("/separate", false), ("/se", false)] {
        assert_eq!(path_holds(separated(), true, path), expected, "{path}");
    }
}

#[test]
fn connect_requests_without_a_path_are_for_connect_matches_only() {
    let facts = RouteFacts::default();
    assert!(matches(&RouteMatch::new(PathMatch::Connect), &head("CONNECT", ""), &facts));
    assert!(!matches(&RouteMatch::new(PathMatch::Prefix(String::new())), &head("CONNECT", ""), &facts));
    assert!(!matches(&RouteMatch::new(PathMatch::Connect), &head("GET", "/"), &facts));
}

#[test]
fn the_first_route_that_matches_wins_and_none_is_not_found() {
    let user = StringMatcher { pattern: StringPattern::Exact("jason".into()), ignore_case: false };
    let header = HeaderMatcher {
        name: "x-user".into(),
        value: HeaderValueMatch::String(user),
        invert: false,
        treat_missing_as_empty: false,
    };
    let jason = RouteMatch { headers: vec![header], ..RouteMatch::new(PathMatch::Prefix("/h".into())) };
    let config = config(vec![
        to("jason", jason, single("b")),
        to("rest", RouteMatch::new(PathMatch::Prefix("/h".into())), single("a")),
    ]);
    let name = |head: &RequestHead| match route(&config, head, &RouteFacts::default()) {
        RouteDecision::Matched(matched) => matched.route.name.clone(),
        other => format!("{other:?}"),
    };
    let mut of_jason = head("GET", "/h");
    of_jason.headers.append(b"x-user", b"jason");
    assert_eq!(name(&of_jason), "jason");
    assert_eq!(name(&head("GET", "/h")), "rest");
    assert_eq!(name(&head("GET", "/nothing")), "NotFound");
}

#[test]
fn a_share_of_requests_matches_by_the_random_number() {
    let some = Fraction { numerator: 30, denominator: 100 };
    let wanted = RouteMatch { runtime_fraction: Some(some), ..RouteMatch::new(PathMatch::Prefix("/".into())) };
    let count =
        (0..100).filter(|random| matches(&wanted, &head("GET", "/"), &RouteFacts { random: *random << 32 })).count();
    assert_eq!(count, 30);
}

#[test]
fn grpc_is_told_by_its_content_type() {
    for (content_type, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        let mut head = head("POST", "/");
        head.headers.append(b"content-type", content_type.as_bytes());
        assert_eq!(is_grpc(&head), expected, "{content_type}");
    }
}

#[test]
fn weighted_clusters_get_their_weights_exactly_over_all_random_numbers() {
    let of = |name: &str, weight| WeightedCluster {
        name: name.into(),
        weight,
        headers: HeaderEdits::default(),
        host_rewrite: None,
        overrides: FilterOverrides::default(),
    };
    let clusters = vec![of("a", 50), of("none", 0), of("b", 30), of("c", 20)];
    let weighted = ClusterSpecifier::Weighted { clusters, total: 100 };
    let config = config(vec![to("w", RouteMatch::new(PathMatch::Prefix("/".into())), weighted)]);
    let mut counts = [0; 4];
    for random in 0..100 {
        let head = head("GET", "/");
        let RouteDecision::Matched(matched) = route(&config, &head, &RouteFacts { random }) else {
            panic!("no route");
        };
        counts[matched.weighted.expect("weighted")] += 1;
    }
    assert_eq!(counts, [50, 0, 30, 20]);
}

#[test]
fn a_header_names_the_cluster() {
    let action = RouteAction::new(ClusterSpecifier::Header("x-cluster".into()));
    let mut head = head("GET", "/");
    assert_eq!(cluster_name(&action, None, &head), "");
    head.headers.append(b"x-cluster", b"b");
    assert_eq!(cluster_name(&action, None, &head), "b");
}

#[test]
fn a_virtual_host_that_wants_tls_redirects_plain_requests() {
    let host = VirtualHost { require_tls: RequireTls::ExternalOnly, ..VirtualHost::default() };
    let config =
        RouteConfig { virtual_hosts: vec![Arc::new(host)], default_virtual_host: Some(0), ..RouteConfig::default() };
    let mut head = head("GET", "/");
    head.headers.append(b"x-forwarded-proto", b"http");
    assert!(matches!(route(&config, &head, &RouteFacts::default()), RouteDecision::RequireTls(_)));
    head.headers.append(b"x-envoy-internal", b"true");
    assert!(matches!(route(&config, &head, &RouteFacts::default()), RouteDecision::NotFound));
}

#[test]
fn shares_follow_their_weights_and_do_not_depend_on_the_fraction_that_matched() {
    let half = Fraction { numerator: 50, denominator: 100 };
    let mut random = 0u64;
    let mut counts = [0u32; 2];
    for _ in 0..200_000 {
        // SplitMix64.
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let mixed = mixed ^ (mixed >> 31);
        if hit(half, mixed >> 32) {
            counts[share([75, 25].into_iter(), 100, mixed).expect("within the total")] += 1;
        }
    }
    let part = f64::from(counts[0]) / f64::from(counts[0] + counts[1]);
    // Five standard deviations of 100,000 draws.
    assert!((part - 0.75).abs() < 0.007, "{part}");
}
