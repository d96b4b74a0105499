//! Who is let in, by which policy, and what the log says of it.

use super::*;
use crate::model::{HeaderValueMatch, StringPattern};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

fn exact(text: &str) -> StringMatcher {
    StringMatcher { pattern: StringPattern::Exact(text.into()), ignore_case: false }
}

fn prefix(text: &str) -> StringMatcher {
    StringMatcher { pattern: StringPattern::Prefix(text.into()), ignore_case: false }
}

fn header(name: &str, value: &str) -> HeaderMatcher {
    let value = HeaderValueMatch::String(exact(value));
    HeaderMatcher { name: name.into(), value, invert: false, treat_missing_as_empty: false }
}

fn rules(action: RbacAction, policies: Vec<(&str, Permission, Principal)>) -> HttpRbac {
    let policy = |(name, permission, principal): (&str, Permission, Principal)| RbacPolicy {
        name: name.into(),
        permissions: vec![permission],
        principals: vec![principal],
    };
    HttpRbac {
        rules: Some(RbacRules { action, policies: policies.into_iter().map(policy).collect() }),
        shadow_rules: None,
        stat_prefix: String::new(),
        shadow_stat_prefix: String::new(),
    }
}

fn facts<'a>(request: Option<&'a RequestHead>, uri_sans: &'a [String]) -> RbacFacts<'a> {
    RbacFacts {
        request,
        tls: !uri_sans.is_empty(),
        uri_sans,
        dns_sans: &[],
        subject: "CN=client",
        destination: "10.0.0.2:9080".parse().expect("address"),
        source: "10.0.0.1".parse().expect("address"),
        direct_remote: "127.0.0.1".parse().expect("address"),
        remote: "192.168.1.1".parse().expect("address"),
        server_name: "outbound_.80_._.a",
    }
}

fn head(method: &str, path: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_method(method.as_bytes());
    head.set_path(path.as_bytes());
    head
}

#[test]
fn a_denial_names_the_policy_that_matched() {
    let rbac =
        rules(RbacAction::Deny, vec![("no delete", Permission::Header(header(":method", "DELETE")), Principal::Any)]);
    let delete = head("DELETE", "/");
    let verdict = evaluate(&rbac, &facts(Some(&delete), &[]));
    assert!(!verdict.allowed);
    assert_eq!(verdict.details(), "rbac_access_denied_matched_policy[no_delete]");
    assert!(evaluate(&rbac, &facts(Some(&head("GET", "/")), &[])).allowed);
}

#[test]
fn without_a_match_an_allow_list_denies_and_names_none() {
    let rbac = rules(RbacAction::Allow, vec![("readers", Permission::UrlPath(prefix("/read")), Principal::Any)]);
    assert!(evaluate(&rbac, &facts(Some(&head("GET", "/read/1?x")), &[])).allowed);
    let write = head("GET", "/write");
    let denied = evaluate(&rbac, &facts(Some(&write), &[]));
    assert!(!denied.allowed);
    assert_eq!(denied.details(), "rbac_access_denied_matched_policy[none]");
}

#[test]
fn a_rule_that_is_negated_lets_the_header_open_the_path() {
    let closed = Principal::Not(Box::new(Principal::Header(header("x-key", "open"))));
    let rbac = rules(RbacAction::Deny, vec![("no-secret", Permission::UrlPath(prefix("/secret")), closed)]);
    let mut secret = head("GET", "/secret/1");
    assert!(!evaluate(&rbac, &facts(Some(&secret), &[])).allowed);
    secret.headers.append(b"x-key", b"open");
    assert!(evaluate(&rbac, &facts(Some(&secret), &[])).allowed);
}

#[test]
fn the_identity_is_a_uri_san_or_what_filter_state_keeps_of_it() {
    let known = [CLIENT.to_owned()];
    let other = ["spiffe://cluster.local/ns/default/sa/other".to_owned()];
    let state = Principal::FilterState { key: PEER_PRINCIPAL.into(), matcher: exact(CLIENT) };
    for principal in [Principal::Authenticated(Some(exact(CLIENT))), state] {
        let rbac = rules(RbacAction::Allow, vec![("client", Permission::Any, principal)]);
        assert!(evaluate(&rbac, &facts(None, &known)).allowed);
        assert!(!evaluate(&rbac, &facts(None, &other)).allowed);
        assert!(!evaluate(&rbac, &facts(None, &[])).allowed);
    }
}

#[test]
fn a_plain_connection_is_never_authenticated() {
    let rbac = rules(RbacAction::Allow, vec![("any", Permission::Any, Principal::Authenticated(None))]);
    assert!(evaluate(&rbac, &facts(None, &[CLIENT.to_owned()])).allowed);
    assert!(!evaluate(&rbac, &facts(None, &[])).allowed);
    let subject =
        rules(RbacAction::Allow, vec![("s", Permission::Any, Principal::Authenticated(Some(exact("CN=client"))))]);
    assert!(evaluate(&subject, &facts(None, &["spiffe://x".to_owned()])).allowed);
}

#[test]
fn addresses_and_ports_are_told_apart_by_their_kind() {
    let net = |text: &str| text.parse().expect("network");
    let facts = facts(None, &[]);
    for (principal, expected) in [
        (Principal::SourceIp(net("10.0.0.0/24")), true),
        (Principal::DirectRemoteIp(net("127.0.0.0/8")), true),
        (Principal::RemoteIp(net("192.168.0.0/16")), true),
        (Principal::RemoteIp(net("10.0.0.0/8")), false),
    ] {
        assert_eq!(is_principal(&principal, &facts), expected, "{principal:?}");
    }
    for (permission, expected) in [
        (Permission::DestinationPort(9080), true),
        (Permission::DestinationPortRange(9000, 9080), false),
        (Permission::DestinationPortRange(9080, 9081), true),
        (Permission::DestinationIp(net("10.0.0.2/32")), true),
        (Permission::RequestedServerName(prefix("outbound_")), true),
        (Permission::Metadata { invert: true }, true),
    ] {
        assert_eq!(permits(&permission, &facts), expected, "{permission:?}");
    }
}

#[test]
fn a_connection_has_no_path_and_no_headers() {
    let facts = facts(None, &[]);
    assert!(!permits(&Permission::UrlPath(prefix("")), &facts));
    assert!(!permits(&Permission::Header(header("x", "y")), &facts));
}

#[test]
fn shadow_rules_are_told_and_not_enforced() {
    let mut rbac = rules(RbacAction::Allow, vec![("all", Permission::Any, Principal::Any)]);
    rbac.shadow_rules = Some(RbacRules { action: RbacAction::Allow, policies: Vec::new() });
    let verdict = evaluate(&rbac, &facts(None, &[]));
    assert!(verdict.allowed);
    assert_eq!(verdict.shadow, Some(Shadow { allowed: false, policy: None }));
    let none = HttpRbac { rules: None, ..rbac };
    assert!(evaluate(&none, &facts(None, &[])).allowed);
}
