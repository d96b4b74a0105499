//! Query parameter matching, as Envoy's `QueryParameterMatcher`: values are compared as sent.

use super::string;
use crate::model::QueryMatcher;

/// True when all of `matchers` match the query (without `?`).
pub fn all(matchers: &[QueryMatcher], query: Option<&[u8]>) -> bool {
    matchers.iter().all(|matcher| matches(matcher, query))
}

/// True when the first parameter of that name matches.
pub fn matches(matcher: &QueryMatcher, query: Option<&[u8]>) -> bool {
    let value = query.and_then(|query| parameter(query, matcher.name.as_bytes()));
    match (&matcher.value, value) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(wanted), Some(value)) => string::matches(wanted, value),
    }
}

/// The first value of a parameter; empty when it has no `=`.
pub fn parameter<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let end = query.iter().position(|byte| *byte == b'#').unwrap_or(query.len());
    query[..end].split(|byte| *byte == b'&').find_map(|pair| {
        let split = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let (key, rest) = pair.split_at(split);
        (key == name).then(|| rest.strip_prefix(b"=").unwrap_or(rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{StringMatcher, StringPattern};

    #[test]
    fn a_parameter_is_found_by_its_whole_name_and_may_lack_a_value() {
        assert_eq!(parameter(b"ab=1&a=2&a=3", b"a"), Some(&b"2"[..]));
        assert_eq!(parameter(b"v", b"v"), Some(&b""[..]));
        assert_eq!(parameter(b"v=1#x", b"v"), Some(&b"1"[..]));
        assert_eq!(parameter(b"av=1", b"v"), None);
    }

    #[test]
    fn presence_or_value_is_matched() {
        let present = QueryMatcher { name: "v".into(), value: None };
        let two = StringMatcher { pattern: StringPattern::Exact("2".into()), ignore_case: false };
        let value = QueryMatcher { name: "v".into(), value: Some(two) };
        assert!(matches(&present, Some(b"v")) && !matches(&present, None));
        assert!(matches(&value, Some(b"a=1&v=2")) && !matches(&value, Some(b"v=1")));
    }
}
