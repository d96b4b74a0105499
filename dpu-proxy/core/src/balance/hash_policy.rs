//! The hash of a request by a route's hash policies, for ring hash and Maglev.

use crate::head::{HeaderBlock, RequestHead};
use crate::matching::query;
use crate::model::HashPolicy;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::time::Duration;
use xxhash_rust::xxh64::xxh64;

/// What the policies make of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHash {
    /// None: choose at random.
    pub hash: Option<u64>,
    /// `set-cookie` values to add to the response, for cookies that were generated.
    pub set_cookies: Vec<String>,
}

/// Evaluates the policies. `remote` and `local` are the connection's addresses.
pub fn evaluate(policies: &[HashPolicy], head: &RequestHead, remote: SocketAddr, local: SocketAddr) -> RequestHash {
    let mut result = RequestHash::default();
    for policy in policies {
        let (new, terminal) = one(policy, head, remote, local, &mut result.set_cookies);
        if let Some(new) = new {
            // Rotating keeps equal policies from cancelling each other out.
            result.hash = Some(result.hash.map_or(0, |old| old.rotate_left(1)) ^ new);
        }
        if terminal && result.hash.is_some() {
            break;
        }
    }
    result
}

fn one(
    policy: &HashPolicy,
    head: &RequestHead,
    remote: SocketAddr,
    local: SocketAddr,
    set_cookies: &mut Vec<String>,
) -> (Option<u64>, bool) {
    match policy {
        HashPolicy::Header { name, terminal } => (of_header(head, name), *terminal),
        HashPolicy::SourceIp { terminal } => (Some(xxh64(remote.ip().to_string().as_bytes(), 0)), *terminal),
        HashPolicy::QueryParameter { name, terminal } => {
            let value = head.query().and_then(|query| query::parameter(query, name.as_bytes()));
            (value.map(|value| xxh64(value, 0)), *terminal)
        }
        HashPolicy::Cookie { name, ttl, path, terminal } => {
            let found = cookie(&head.headers, name).filter(|value| !value.is_empty()).map(|value| xxh64(value, 0));
            let generate = |ttl: &Duration| {
                let value = format!("{:016x}", xxh64(format!("{remote}{local}").as_bytes(), 0));
                set_cookies.push(set_cookie(name, &value, path, *ttl));
                xxh64(value.as_bytes(), 0)
            };
            (found.or_else(|| ttl.as_ref().map(generate)), *terminal)
        }
    }
}

/// Repeated headers are hashed in sorted order, each seeded with the hash before it.
fn of_header(head: &RequestHead, name: &str) -> Option<u64> {
    if name.starts_with(':') || name == "host" {
        return head.header(name).filter(|value| !value.is_empty()).map(|value| xxh64(value, 0));
    }
    let mut values: SmallVec<[&[u8]; 4]> = head.headers.get_all(name.as_bytes()).collect();
    values.sort_unstable();
    (!values.is_empty()).then(|| values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

fn cookie<'a>(headers: &'a HeaderBlock, name: &str) -> Option<&'a [u8]> {
    headers.get_all(b"cookie").flat_map(|line| line.split(|byte| *byte == b';')).find_map(|pair| {
        let pair = pair.trim_ascii();
        let split = pair.iter().position(|byte| *byte == b'=')?;
        let value = &pair[split + 1..];
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        (&pair[..split] == name.as_bytes()).then_some(bare)
    })
}

fn set_cookie(name: &str, value: &str, path: &str, ttl: Duration) -> String {
    let max_age = if ttl.is_zero() { String::new() } else { format!("; Max-Age={}", ttl.as_secs()) };
    let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
    format!("{name}=\"{value}\"{max_age}{path}; HttpOnly")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_path(b"/p?user=jason");
        for (name, value) in headers {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn hash(policies: &[HashPolicy], head: &RequestHead) -> RequestHash {
        let address = |text: &str| text.parse().expect("address");
        evaluate(policies, head, address("10.0.0.1:4000"), address("10.0.0.2:80"))
    }

    fn by_header(name: &str, terminal: bool) -> HashPolicy {
        HashPolicy::Header { name: name.into(), terminal }
    }

    #[test]
    fn each_policy_hashes_its_part_of_the_request() {
        let head = head(&[("x-user", "jason"), ("cookie", "a=1; session=\"jason\"")]);
        let expected = Some(xxh64(b"jason", 0));
        let cookie = HashPolicy::Cookie { name: "session".into(), ttl: None, path: String::new(), terminal: false };
        let parameter = HashPolicy::QueryParameter { name: "user".into(), terminal: false };
        for policy in [by_header("x-user", false), cookie, parameter] {
            assert_eq!(hash(&[policy], &head).hash, expected);
        }
        let source = hash(&[HashPolicy::SourceIp { terminal: false }], &head);
        assert_eq!(source.hash, Some(xxh64(b"10.0.0.1", 0)));
        assert_eq!(hash(&[by_header("none", false)], &head).hash, None);
    }

    #[test]
    fn policies_combine_until_a_terminal_one_has_a_hash() {
        let head = head(&[("a", "1"), ("b", "2")]);
        let (a, b) = (xxh64(b"1", 0), xxh64(b"2", 0));
        assert_eq!(hash(&[by_header("a", false), by_header("b", false)], &head).hash, Some(a.rotate_left(1) ^ b));
        assert_eq!(hash(&[by_header("a", true), by_header("b", false)], &head).hash, Some(a));
        assert_eq!(hash(&[by_header("none", true), by_header("b", false)], &head).hash, Some(b));
    }

    #[test]
    fn the_order_of_repeated_headers_does_not_matter() {
        let (one, other) = (head(&[("a", "1"), ("a", "2")]), head(&[("a", "2"), ("a", "1")]));
        let policies = [by_header("a", false)];
        assert_eq!(hash(&policies, &one), hash(&policies, &other));
    }

    #[test]
    fn a_cookie_with_a_lifetime_is_made_where_it_is_missing() {
        let cookie = |ttl| HashPolicy::Cookie { name: "s".into(), ttl, path: "/p".into(), terminal: false };
        assert_eq!(hash(&[cookie(None)], &head(&[])), RequestHash::default());
        let made = hash(&[cookie(Some(Duration::from_secs(60)))], &head(&[]));
        let set = made.set_cookies.first().expect("a cookie");
        assert!(set.starts_with("s=\"") && set.ends_with("\"; Max-Age=60; Path=/p; HttpOnly"), "{set}");
        let sent = head(&[("cookie", &set["s=".len() - 2..set.find(';').expect("attributes")])]);
        assert_eq!(hash(&[cookie(None)], &sent).hash, made.hash);
    }
}
