//! String matching, as Envoy's `StringMatcher`.

use crate::model::{StringMatcher, StringPattern};

/// True when `text` matches. Text that is not UTF-8 matches no regular expression.
pub fn matches(matcher: &StringMatcher, text: &[u8]) -> bool {
    let fold = matcher.ignore_case;
    match &matcher.pattern {
        StringPattern::Exact(exact) => equal(text, exact.as_bytes(), fold),
        StringPattern::Prefix(prefix) => starts_with(text, prefix.as_bytes(), fold),
        StringPattern::Suffix(suffix) => ends_with(text, suffix.as_bytes(), fold),
        StringPattern::Contains(part) => contains(text, part.as_bytes(), fold),
        // Envoy ignores `ignore_case` here.
        StringPattern::Regex(regex) => std::str::from_utf8(text).is_ok_and(|text| regex.is_match(text)),
    }
}

/// Equality, without ASCII case when `fold`.
pub fn equal(a: &[u8], b: &[u8], fold: bool) -> bool {
    if fold { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// Prefix test, without ASCII case when `fold`.
pub fn starts_with(text: &[u8], prefix: &[u8], fold: bool) -> bool {
    text.len() >= prefix.len() && equal(&text[..prefix.len()], prefix, fold)
}

fn ends_with(text: &[u8], suffix: &[u8], fold: bool) -> bool {
    text.len() >= suffix.len() && equal(&text[text.len() - suffix.len()..], suffix, fold)
}

fn contains(text: &[u8], part: &[u8], fold: bool) -> bool {
    if part.is_empty() {
        return true;
    }
    match fold {
        false => memchr::memmem::find(text, part).is_some(),
        true => text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    fn matcher(pattern: StringPattern, ignore_case: bool) -> StringMatcher {
        StringMatcher { pattern, ignore_case }
    }

    #[test]
    fn each_pattern_matches_what_it_says_and_case_only_counts_where_asked() {
        let cases = [
            (StringPattern::Exact("aB".into()), "aB", "ab"),
            (StringPattern::Prefix("aB".into()), "aBc", "abc"),
            (StringPattern::Suffix("Bc".into()), "aBc", "abc"),
            (StringPattern::Contains("B".into()), "aBc", "abc"),
        ];
        for (pattern, same, other_case) in cases {
            let strict = matcher(pattern.clone(), false);
            let folded = matcher(pattern, true);
            assert!(matches(&strict, same.as_bytes()));
            assert!(!matches(&strict, other_case.as_bytes()));
            assert!(matches(&folded, other_case.as_bytes()));
            assert!(!matches(&folded, b"zzz"));
        }
    }

    #[test]
    fn bytes_that_are_no_text_match_no_regular_expression() {
        let any = matcher(StringPattern::Regex(Regex::new("^(?:.*)$").expect("valid")), false);
        assert!(matches(&any, b"x"));
        assert!(!matches(&any, b"\xff"));
    }

    #[test]
    fn an_empty_part_is_in_every_text() {
        assert!(matches(&matcher(StringPattern::Contains(String::new()), true), b""));
    }
}
