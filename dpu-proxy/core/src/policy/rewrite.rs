//! Rewrites of path and host before a request goes upstream.

use crate::head::RequestHead;
use crate::model::{HostRewrite, PathMatch, RegexRewrite, RouteAction, RouteMatch, WeightedCluster};

const ORIGINAL_PATH: &[u8] = b"x-envoy-original-path";
const ORIGINAL_HOST: &[u8] = b"x-envoy-original-host";
const FORWARDED_HOST: &[u8] = b"x-forwarded-host";

/// Rewrites host and path as the route says. `HostRewrite::Auto` is done by `set_host` once the endpoint
/// is known. `tells_original`: write `x-envoy-original-host` and `x-envoy-original-path` (off with
/// `suppress_envoy_headers`).
pub fn rewrite(
    matches: &RouteMatch,
    action: &RouteAction,
    weighted: Option<&WeightedCluster>,
    tells_original: bool,
    head: &mut RequestHead,
) {
    if let Some(host) = weighted.and_then(|cluster| cluster.host_rewrite.as_deref()) {
        head.set_authority(host.as_bytes());
    }
    if let Some(host) = rewritten_host(&action.host_rewrite, head) {
        set_host(&host, action.append_x_forwarded_host, tells_original, head);
    }
    if let Some(path) = rewritten_path(&matches.path, action, head) {
        if tells_original {
            let original = head.path().to_vec();
            head.headers.set(ORIGINAL_PATH, &original);
        }
        head.set_path(&path);
    }
}

/// Replaces the host; the old one goes to `x-forwarded-host` and `x-envoy-original-host` where asked.
pub fn set_host(host: &[u8], append_x_forwarded_host: bool, tells_original: bool, head: &mut RequestHead) {
    if append_x_forwarded_host && !head.authority().is_empty() {
        append_forwarded_host(head);
    }
    if tells_original && !head.authority().is_empty() {
        let original = head.authority().to_vec();
        head.headers.set(ORIGINAL_HOST, &original);
    }
    head.set_authority(host);
}

fn append_forwarded_host(head: &mut RequestHead) {
    let old = head.authority().to_vec();
    let mut list = head.headers.get(FORWARDED_HOST).unwrap_or_default().to_vec();
    let last = list.rsplit(|byte| *byte == b',').next().unwrap_or_default();
    if last.trim_ascii() == old {
        return;
    }
    if !list.is_empty() {
        list.push(b',');
    }
    list.extend_from_slice(&old);
    head.headers.set(FORWARDED_HOST, &list);
}

fn rewritten_host(rewrite: &HostRewrite, head: &RequestHead) -> Option<Vec<u8>> {
    match rewrite {
        HostRewrite::Keep | HostRewrite::Auto => None,
        HostRewrite::Literal(host) => Some(host.as_bytes().to_vec()),
        HostRewrite::Header(name) => head.header(name).filter(|host| !host.is_empty()).map(<[u8]>::to_vec),
        HostRewrite::PathRegex(regex) => replaced(regex, head.path_only()),
    }
}

fn rewritten_path(matched: &PathMatch, action: &RouteAction, head: &RequestHead) -> Option<Vec<u8>> {
    let prefix = action.prefix_rewrite.as_deref().filter(|prefix| !prefix.is_empty());
    path_rewrite(matched, prefix, action.regex_rewrite.as_ref(), head)
}

/// The path with its query after a prefix or regular-expression rewrite; `None` without either.
pub(super) fn path_rewrite(
    matched: &PathMatch,
    prefix: Option<&str>,
    regex: Option<&RegexRewrite>,
    head: &RequestHead,
) -> Option<Vec<u8>> {
    let (path, plain) = (head.path(), head.path_only());
    let mut rewritten = match (prefix, regex) {
        (Some(prefix), _) => {
            let mut text = prefix.as_bytes().to_vec();
            text.extend_from_slice(&plain[matched_length(matched, plain)..]);
            text
        }
        (None, Some(regex)) => replaced(regex, plain)?,
        (None, None) => return None,
    };
    rewritten.extend_from_slice(&path[plain.len()..]);
    Some(rewritten)
}

/// How much of the path the match stands for: its prefix, or all of it.
fn matched_length(matched: &PathMatch, path: &[u8]) -> usize {
    match matched {
        PathMatch::Prefix(prefix) | PathMatch::PathSeparatedPrefix(prefix) => prefix.len().min(path.len()),
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect => path.len(),
    }
}

/// Every match replaced, as RE2's global replacement. `None` when the text is not UTF-8.
pub fn replaced(rewrite: &RegexRewrite, text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let replaced = rewrite.pattern.replace_all(text, |captures: &regex::Captures<'_>| {
        let mut output = String::new();
        substitute(&rewrite.substitution, captures, &mut output);
        output
    });
    Some(replaced.into_owned().into_bytes())
}

/// RE2 substitution: `\0` to `\9` are groups, `\\` is a backslash.
fn substitute(substitution: &str, captures: &regex::Captures<'_>, output: &mut String) {
    let mut chars = substitution.chars();
    while let Some(letter) = chars.next() {
        let escaped = if letter == '\\' { chars.next() } else { None };
        match (letter, escaped) {
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                let group = digit.to_digit(10).unwrap_or(0) as usize;
                output.push_str(captures.get(group).map_or("", |group| group.as_str()));
            }
            (_, Some(other)) => output.push(other),
            (plain, None) => output.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    fn head(path: &str) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_authority(b"example.test");
        head.set_path(path.as_bytes());
        head
    }

    fn regex(pattern: &str, substitution: &str) -> RegexRewrite {
        RegexRewrite { pattern: Regex::new(pattern).expect("valid"), substitution: substitution.into() }
    }

    fn by_prefix(matched: PathMatch, prefix: &str, path: &str) -> String {
        String::from_utf8(path_rewrite(&matched, Some(prefix), None, &head(path)).expect("rewritten")).expect("text")
    }

    #[test]
    fn a_prefix_rewrite_replaces_what_was_matched() {
        assert_eq!(by_prefix(PathMatch::Prefix("/rewrite".into()), "/r", "/rewrite/x?y=1"), "/r/x?y=1");
        assert_eq!(by_prefix(PathMatch::Exact("/a/b".into()), "/", "/a/b?c"), "/?c");
        assert_eq!(by_prefix(PathMatch::PathSeparatedPrefix("/a".into()), "/z", "/a"), "/z");
    }

    #[test]
    fn a_regular_expression_rewrites_every_match_outside_the_query() {
        let rewrite = |pattern, substitution, path| {
            let regex = regex(pattern, substitution);
            let text =
                path_rewrite(&PathMatch::Prefix("/".into()), None, Some(&regex), &head(path)).expect("rewritten");
            String::from_utf8(text).expect("text")
        };
        assert_eq!(rewrite("/regex/([a-z]+)", r"/x/\1/y", "/regex/abc?q=1"), "/x/abc/y?q=1");
        assert_eq!(rewrite("one", "two", "/xxx/one/yyy/one/zzz"), "/xxx/two/yyy/two/zzz");
        assert_eq!(
            rewrite("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api"),
            "/v1/api/instance/foo"
        );
        assert_eq!(rewrite("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb"), "/aaa/yyy/bbb");
        assert_eq!(rewrite("a", r"\\\9", "/a"), r"/\");
    }

    #[test]
    fn the_old_host_is_appended_once() {
        let mut head = head("/");
        set_host(b"literal.test", true, true, &mut head);
        assert_eq!(head.headers.get_str("x-forwarded-host"), Some("example.test"));
        assert_eq!(head.authority(), b"literal.test");
        head.set_authority(b"example.test");
        set_host(b"other.test", true, true, &mut head);
        assert_eq!(head.headers.get_str("x-forwarded-host"), Some("example.test"));
        set_host(b"third.test", true, true, &mut head);
        assert_eq!(head.headers.get_str("x-forwarded-host"), Some("example.test,other.test"));
        assert_eq!(head.headers.get_str("x-envoy-original-host"), Some("other.test"));
    }

    #[test]
    fn a_host_header_that_is_missing_changes_nothing() {
        let rewrite = HostRewrite::Header("x-host".into());
        let mut head = head("/");
        assert_eq!(rewritten_host(&rewrite, &head), None);
        head.headers.append(b"x-host", b"from.header");
        assert_eq!(rewritten_host(&rewrite, &head), Some(b"from.header".to_vec()));
        let by_path = HostRewrite::PathRegex(regex("^/(.+)/.+$", r"\1"));
        head.set_path(b"/envoyproxy.io/some/path?x");
        assert_eq!(rewritten_host(&by_path, &head), Some(b"envoyproxy.io/some".to_vec()));
    }
}
