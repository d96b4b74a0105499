//! Header matching, as Envoy's `HeaderMatcher`: of repeated headers, one that matches is enough.

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

    /// True when `fits` a value of that lower-case name; `None` when there is none.
    fn any(&self, name: &str, fits: impl Fn(&[u8]) -> bool) -> Option<bool>
    where
        Self: Sized,
    {
        if let Some(value) = self.special(name) {
            return Some(fits(&value));
        }
        let mut values = self.block().get_all(name.as_bytes()).peekable();
        values.peek()?;
        Some(values.any(fits))
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

/// True when all of `matchers` match.
pub fn all(matchers: &[HeaderMatcher], source: &impl HeaderSource) -> bool {
    matchers.iter().all(|matcher| matches(matcher, source))
}

/// True when the headers match. A missing header matches no value, inverted or not, unless it is
/// treated as empty.
pub fn matches(matcher: &HeaderMatcher, source: &impl HeaderSource) -> bool {
    let matched = match source.any(&matcher.name, |value| value_matches(&matcher.value, value)) {
        Some(matched) => matched,
        None => match &matcher.value {
            HeaderValueMatch::Present(present) => *present == matcher.treat_missing_as_empty,
            wanted if matcher.treat_missing_as_empty => value_matches(wanted, b""),
            _ => return false,
        },
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
    fn of_repeated_headers_one_that_matches_is_enough() {
        let head = head(&[("x", "1"), ("y", "0"), ("x", "2")]);
        let range = |start, end| HeaderValueMatch::Range { start, end };
        for (value, invert, expected) in [
            (exact("1"), false, true),
            (exact("2"), false, true),
            (exact("1,2"), false, false),
            (exact("1"), true, false),
            (exact("3"), true, true),
            (range(2, 3), false, true),
            (range(1, 2), true, false),
        ] {
            assert_eq!(matches(&matcher("x", value.clone(), invert, false), &head), expected, "{value:?} {invert}");
        }
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
