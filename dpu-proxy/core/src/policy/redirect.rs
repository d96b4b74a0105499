//! The `location` of a redirect.

use super::rewrite::path_rewrite;
use crate::head::RequestHead;
use crate::matching::virtual_host;
use crate::model::{PathMatch, Redirect, RedirectPath, RouteMatch};
use std::io::Write;

/// Where a redirect leads.
pub fn location(redirect: &Redirect, matches: &RouteMatch, head: &RequestHead) -> Vec<u8> {
    let request_scheme = head.scheme();
    let scheme = match (&redirect.scheme, redirect.https) {
        (Some(scheme), _) => scheme.as_bytes(),
        (None, true) => b"https",
        (None, false) => request_scheme,
    };
    let host = match &redirect.host {
        Some(host) => host.as_bytes(),
        None => kept_host(head, scheme, redirect.port.is_some()),
    };
    let mut location = Vec::with_capacity(64);
    location.extend_from_slice(scheme);
    location.extend_from_slice(b"://");
    location.extend_from_slice(host);
    if let Some(port) = redirect.port {
        write!(location, ":{port}").expect("a vector takes every byte");
    }
    location.extend_from_slice(&path(redirect, &matches.path, head));
    location
}

/// Where a virtual host that requires TLS leads: the same by https, with status 301.
pub fn to_https(head: &RequestHead) -> Vec<u8> {
    [b"https://", head.authority(), head.path()].concat()
}

/// The `location` that a direct response has: Envoy names the request's own place for 201 and 3xx.
pub fn of_direct_response(status: u16, head: &RequestHead) -> Option<Vec<u8>> {
    let has_one = status == 201 || (300..400).contains(&status);
    has_one.then(|| [head.scheme(), b"://", head.authority(), head.path()].concat())
}

/// The request's host; its port goes when there is a new one, or when it is the default of the old scheme.
fn kept_host<'a>(head: &'a RequestHead, scheme: &[u8], has_new_port: bool) -> &'a [u8] {
    let (host, old_scheme) = (head.authority(), head.scheme());
    let bare = virtual_host::without_port(host);
    let port = &host[bare.len()..];
    let is_default = (old_scheme == b"http" && port == b":80") || (old_scheme == b"https" && port == b":443");
    if has_new_port || (scheme != old_scheme && is_default) { bare } else { host }
}

fn path(redirect: &Redirect, matched: &PathMatch, head: &RequestHead) -> Vec<u8> {
    let rewritten = match &redirect.path {
        RedirectPath::Path(path) => return with_query(path.as_bytes(), redirect.strip_query, head),
        RedirectPath::Keep => None,
        RedirectPath::PrefixRewrite(prefix) => path_rewrite(matched, Some(prefix), None, head),
        RedirectPath::Regex(regex) => path_rewrite(matched, None, Some(regex), head),
    };
    let mut path = rewritten.unwrap_or_else(|| head.path().to_vec());
    if let Some(query) = path.iter().position(|byte| *byte == b'?').filter(|_| redirect.strip_query) {
        path.truncate(query);
    }
    path
}

/// A query in the configured path takes the place of the request's.
fn with_query(path: &[u8], strip: bool, head: &RequestHead) -> Vec<u8> {
    let query = head.query().filter(|_| !strip && !path.contains(&b'?'));
    match query {
        None => path.to_vec(),
        Some(query) => [path, b"?", query].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RegexRewrite;
    use std::sync::Arc;

    fn to(redirect: Redirect, scheme: &str, host: &str, path: &str) -> String {
        let mut head = RequestHead::default();
        head.set_scheme(scheme.as_bytes());
        head.set_authority(host.as_bytes());
        head.set_path(path.as_bytes());
        let matches = RouteMatch::new(PathMatch::Prefix("/old".into()));
        String::from_utf8(location(&redirect, &matches, &head)).expect("text")
    }

    fn redirect() -> Redirect {
        Redirect { status: 301, ..Redirect::default() }
    }

    #[test]
    fn what_the_redirect_leaves_out_is_the_requests() {
        let host = Redirect { host: Some("other.test".into()), ..redirect() };
        assert_eq!(to(host, "http", "example.test", "/old/x?y=1"), "http://other.test/old/x?y=1");
        let port = Redirect { port: Some(8443), scheme: Some("https".into()), ..redirect() };
        assert_eq!(to(port, "http", "example.test:8080", "/old"), "https://example.test:8443/old");
    }

    #[test]
    fn a_default_port_goes_with_its_scheme() {
        let https = || Redirect { https: true, ..redirect() };
        assert_eq!(to(https(), "http", "example.test:80", "/old"), "https://example.test/old");
        assert_eq!(to(https(), "http", "example.test:8080", "/old"), "https://example.test:8080/old");
        assert_eq!(to(https(), "https", "example.test:443", "/old"), "https://example.test:443/old");
    }

    #[test]
    fn paths_are_replaced_or_rewritten_and_queries_kept_unless_stripped() {
        let with = |path, strip_query| Redirect { path, strip_query, ..redirect() };
        let of = |redirect| to(redirect, "http", "a", "/old/x?y=1");
        assert_eq!(of(with(RedirectPath::Path("/new".into()), false)), "http://a/new?y=1");
        assert_eq!(of(with(RedirectPath::Path("/new".into()), true)), "http://a/new");
        assert_eq!(of(with(RedirectPath::Path("/new?z".into()), true)), "http://a/new?z");
        assert_eq!(of(with(RedirectPath::PrefixRewrite("/fresh".into()), true)), "http://a/fresh/x");
        let pattern = regex::Regex::new("^/old/(.*)$").expect("valid");
        let regex = RedirectPath::Regex(Arc::new(RegexRewrite { pattern, substitution: r"/to/\1".into() }));
        assert_eq!(of(with(regex, false)), "http://a/to/x?y=1");
    }
}
