//! Header matching, as Envoy's `HeaderMatcher`: repeated headers are one value joined by commas.

use super::string;
use crate::head::{HeaderBlock, RequestHead, ResponseHead};
use crate::model::{HeaderMatcher, HeaderValueMatch};
use std::borrow::Cow;

/// Where a header matcher looks: a request or a response.
pub trait HeaderSource {
    /// Regular headers.
    fn block(&self) -> &HeaderBlock;

    /// A header that the block does not hold (pseudo-headers, the host).
    fn special(&self, name: &str) -> Option<Cow<'_, [u8]>>;

    /// All values of a lower-case name, joined by commas; borrowed when there is one.
    fn joined<'a>(&'a self, name: &'a str) -> Option<Cow<'a, [u8]>> {
        self.special(name).or_else(|| joined(self.block(), name))
    }
}

impl HeaderSource for RequestHead {
    fn block(&self) -> &HeaderBlock {
        &self.headers
    }

    fn special(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let is_special = name.starts_with(':') || name == "host";
        let value = if is_special { self.header(name).filter(|value| !value.is_empty()) } else { None };
        value.map(Cow::Borrowed)
    }
}

impl HeaderSource for ResponseHead {
    fn block(&self) -> &HeaderBlock {
        &self.headers
    }

    fn special(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        (name == ":status").then(|| Cow::Owned(itoa::Buffer::new().format(self.status).as_bytes().to_vec()))
    }
}

impl HeaderSource for HeaderBlock {
    fn block(&self) -> &HeaderBlock {
        self
    }

    fn special(&self, _name: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
}

fn joined<'a>(block: &'a HeaderBlock, name: &'a str) -> Option<Cow<'a, [u8]>> {
    let mut values = block.get_all(name.as_bytes());
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
    let mut all = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value);
    }
    Some(Cow::Owned(all))
}

/// True when all of `matchers` match.
pub fn all(matchers: &[HeaderMatcher], source: &impl HeaderSource) -> bool {
    matchers.iter().all(|matcher| matches(matcher, source))
}

/// True when the headers match. A missing header matches no value, inverted or not, unless it is
/// treated as empty.
pub fn matches(matcher: &HeaderMatcher, source: &impl HeaderSource) -> bool {
    let value = source.joined(&matcher.name);
    let matched = match (&matcher.value, value) {
        (HeaderValueMatch::Present(present), value) => *present == (value.is_some() || matcher.treat_missing_as_empty),
        (wanted, Some(value)) => value_matches(wanted, &value),
        (wanted, None) if matcher.treat_missing_as_empty => value_matches(wanted, b""),
        (_, None) => return false,
    };
    matched != matcher.invert
}

fn value_matches(wanted: &HeaderValueMatch, value: &[u8]) -> bool {
    match wanted {
        HeaderValueMatch::Present(present) => *present,
        HeaderValueMatch::String(matcher) => string::matches(matcher, value),
        HeaderValueMatch::Range { start, end } => number(value).is_some_and(|value| (*start..*end).contains(&value)),
    }
}

fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim_ascii().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{StringMatcher, StringPattern};

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_method(b"GET");
        for (name, value) in headers {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn matcher(name: &str, value: HeaderValueMatch, invert: bool, treat_missing_as_empty: bool) -> HeaderMatcher {
        HeaderMatcher { name: name.into(), value, invert, treat_missing_as_empty }
    }

    fn exact(text: &str) -> HeaderValueMatch {
        HeaderValueMatch::String(StringMatcher { pattern: StringPattern::Exact(text.into()), ignore_case: false })
    }

    #[test]
    fn repeated_headers_match_as_one_value() {
        let head = head(&[("x", "1"), ("y", "0"), ("x", "2")]);
        assert!(matches(&matcher("x", exact("1,2"), false, false), &head));
        assert!(!matches(&matcher("x", exact("1"), false, false), &head));
    }

    #[test]
    fn a_missing_header_matches_nothing_even_inverted_unless_it_is_treated_as_empty() {
        let head = head(&[]);
        let range = HeaderValueMatch::Range { start: 0, end: 10 };
        assert!(!matches(&matcher("header2", range.clone(), true, false), &head));
        assert!(matches(&matcher("header1", range, true, true), &head));
        assert!(matches(&matcher("x", exact(""), false, true), &head));
    }

    #[test]
    fn a_range_is_half_open_and_takes_signed_numbers() {
        let range = HeaderValueMatch::Range { start: -10, end: 0 };
        for (value, expected) in [("-1", true), ("-10", true), ("0", false), ("x", false), ("-1x", false)] {
            assert_eq!(
                matches(&matcher("n", range.clone(), false, false), &head(&[("n", value)])),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn presence_can_be_asked_for_and_inverted() {
        for (present, invert, there, expected) in [
            (true, false, true, true),
            (true, false, false, false),
            (true, true, false, true),
            (false, false, false, true),
            (false, true, true, true),
            (false, false, true, false),
        ] {
            let head = if there { head(&[("x", "")]) } else { head(&[]) };
            let matcher = matcher("x", HeaderValueMatch::Present(present), invert, false);
            assert_eq!(matches(&matcher, &head), expected);
        }
    }

    #[test]
    fn pseudo_headers_and_the_status_match_too() {
        assert!(matches(&matcher(":method", exact("GET"), false, false), &head(&[])));
        let response = ResponseHead { status: 503, ..ResponseHead::default() };
        assert!(matches(&matcher(":status", exact("503"), false, false), &response));
    }
}
