//! Cross-origin requests: preflights are answered here, other answers get their headers.

use crate::head::{RequestHead, ResponseHead};
use crate::matching::route::Matched;
use crate::matching::string;
use crate::model::CorsPolicy;

/// `%RESPONSE_CODE_DETAILS%` of an answered preflight.
pub const PREFLIGHT_DETAILS: &str = "cors_response";

/// The policies of a request, most specific first. A field that the route leaves out is the virtual host's.
#[derive(Clone, Copy, Debug, Default)]
pub struct CorsPolicies<'a> {
    pub route: Option<&'a CorsPolicy>,
    pub virtual_host: Option<&'a CorsPolicy>,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorsDecision {
    /// No cross-origin request, or of an origin that is not known: nothing to add.
    Pass,
    /// Forward; `add_headers` to the response.
    AddHeaders,
    /// Answer with `preflight`.
    Answer,
}

impl<'a> CorsPolicies<'a> {
    /// Those of a matched route.
    pub fn of(matched: &Matched<'a>) -> Self {
        Self { route: matched.route.cors.as_deref(), virtual_host: matched.virtual_host.cors.as_deref() }
    }

    fn each(self) -> impl Iterator<Item = &'a CorsPolicy> {
        [self.route, self.virtual_host].into_iter().flatten()
    }

    fn text(self, of: impl Fn(&'a CorsPolicy) -> &'a str) -> &'a str {
        self.each().map(of).find(|text| !text.is_empty()).unwrap_or("")
    }

    fn allows(self, origin: &[u8]) -> bool {
        let origins = self.each().map(|policy| &policy.allow_origins).find(|origins| !origins.is_empty());
        let fits = |matcher| string::matches(matcher, b"*") || string::matches(matcher, origin);
        origins.is_some_and(|origins| origins.iter().any(fits))
    }

    fn allows_credentials(self) -> bool {
        self.each().find_map(|policy| policy.allow_credentials).unwrap_or(false)
    }

    fn forwards_unknown(self) -> bool {
        self.each().next().is_none_or(|policy| policy.forward_not_matching_preflights)
    }
}

/// Decides for a request.
pub fn decide(policies: CorsPolicies<'_>, head: &RequestHead) -> CorsDecision {
    let origin = head.headers.get(b"origin").filter(|origin| !origin.is_empty());
    let (Some(origin), Some(_)) = (origin, policies.each().next()) else { return CorsDecision::Pass };
    let is_allowed = policies.allows(origin);
    let asks = head.headers.get(b"access-control-request-method").is_some_and(|method| !method.is_empty());
    let is_preflight = head.method() == b"OPTIONS" && asks;
    match (is_preflight, is_allowed) {
        (true, false) if policies.forwards_unknown() => CorsDecision::Pass,
        (true, _) => CorsDecision::Answer,
        (false, true) => CorsDecision::AddHeaders,
        (false, false) => CorsDecision::Pass,
    }
}

/// The answer to a preflight: 200 without body.
pub fn preflight(policies: CorsPolicies<'_>, head: &RequestHead) -> ResponseHead {
    let mut response = ResponseHead { version: head.version, status: 200, ..ResponseHead::default() };
    let origin = head.headers.get(b"origin").unwrap_or_default();
    let is_allowed = policies.allows(origin);
    if is_allowed {
        response.headers.set(b"access-control-allow-origin", origin);
    }
    if policies.allows_credentials() {
        response.headers.set(b"access-control-allow-credentials", b"true");
    }
    let asked = |name: &[u8]| head.headers.get(name).unwrap_or_default();
    let lists = [
        (
            "access-control-allow-methods",
            policies.text(|policy| &policy.allow_methods),
            "access-control-request-method",
        ),
        (
            "access-control-allow-headers",
            policies.text(|policy| &policy.allow_headers),
            "access-control-request-headers",
        ),
    ];
    for (name, list, request) in lists {
        match list {
            "" => {}
            "*" => response.headers.set(name.as_bytes(), asked(request.as_bytes())),
            list => response.headers.set(name.as_bytes(), list.as_bytes()),
        }
    }
    let max_age = policies.text(|policy| &policy.max_age);
    if !max_age.is_empty() {
        response.headers.set(b"access-control-max-age", max_age.as_bytes());
    }
    // The answer passes the filter on its way out.
    if is_allowed {
        add_headers(policies, head, &mut response);
    }
    response
}

/// Headers of the answer to a request of an allowed origin.
pub fn add_headers(policies: CorsPolicies<'_>, head: &RequestHead, response: &mut ResponseHead) {
    let Some(origin) = head.headers.get(b"origin") else { return };
    response.headers.set(b"access-control-allow-origin", origin);
    if policies.allows_credentials() {
        response.headers.set(b"access-control-allow-credentials", b"true");
    }
    let expose = policies.text(|policy| &policy.expose_headers);
    if !expose.is_empty() {
        response.headers.set(b"access-control-expose-headers", expose.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{StringMatcher, StringPattern};

    fn policy() -> CorsPolicy {
        let good = StringPattern::Exact("https://good.test".into());
        CorsPolicy {
            allow_origins: vec![StringMatcher { pattern: good, ignore_case: false }],
            allow_methods: "GET,POST".into(),
            allow_headers: "*".into(),
            expose_headers: "x-seen".into(),
            max_age: "600".into(),
            allow_credentials: Some(true),
            forward_not_matching_preflights: true,
        }
    }

    fn request(method: &str, origin: &str) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_method(method.as_bytes());
        head.headers.append(b"origin", origin.as_bytes());
        head.headers.append(b"access-control-request-method", b"POST");
        head.headers.append(b"access-control-request-headers", b"x-one");
        head
    }

    #[test]
    fn a_preflight_of_a_known_origin_is_answered() {
        let policy = policy();
        let policies = CorsPolicies { route: None, virtual_host: Some(&policy) };
        let head = request("OPTIONS", "https://good.test");
        assert_eq!(decide(policies, &head), CorsDecision::Answer);
        let answer = preflight(policies, &head);
        assert_eq!(answer.status, 200);
        for (name, value) in [
            ("access-control-allow-origin", "https://good.test"),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-allow-headers", "x-one"),
            ("access-control-max-age", "600"),
            ("access-control-allow-credentials", "true"),
        ] {
            assert_eq!(answer.headers.get_str(name), Some(value), "{name}");
        }
    }

    #[test]
    fn a_preflight_of_an_unknown_origin_passes_or_is_answered_without_the_origin() {
        let policy = CorsPolicy { forward_not_matching_preflights: false, ..policy() };
        let strict = CorsPolicies { route: None, virtual_host: Some(&policy) };
        let head = request("OPTIONS", "https://bad.test");
        assert_eq!(decide(strict, &head), CorsDecision::Answer);
        assert_eq!(preflight(strict, &head).headers.get(b"access-control-allow-origin"), None);
        let open = self::policy();
        let open = CorsPolicies { route: None, virtual_host: Some(&open) };
        assert_eq!(decide(open, &head), CorsDecision::Pass);
    }

    #[test]
    fn an_ordinary_request_gets_headers_only_for_a_known_origin() {
        let policy = policy();
        let policies = CorsPolicies { route: Some(&policy), virtual_host: None };
        let head = request("GET", "https://good.test");
        assert_eq!(decide(policies, &head), CorsDecision::AddHeaders);
        let mut response = ResponseHead::default();
        add_headers(policies, &head, &mut response);
        assert_eq!(response.headers.get_str("access-control-expose-headers"), Some("x-seen"));
        assert_eq!(decide(policies, &request("GET", "https://bad.test")), CorsDecision::Pass);
        assert_eq!(decide(CorsPolicies::default(), &head), CorsDecision::Pass);
    }
}
