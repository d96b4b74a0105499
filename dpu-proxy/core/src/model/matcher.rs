//! String and header matchers, compiled once.

use regex::Regex;

/// Envoy's `StringMatcher`.
#[derive(Clone, Debug)]
pub struct StringMatcher {
    pub pattern: StringPattern,
    pub ignore_case: bool,
}

#[derive(Clone, Debug)]
pub enum StringPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// Compiled so that it must match the whole text, as RE2 full match in Envoy.
    Regex(Regex),
}

impl PartialEq for StringMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.ignore_case == other.ignore_case && self.pattern == other.pattern
    }
}

impl PartialEq for StringPattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Suffix(a), Self::Suffix(b))
            | (Self::Contains(a), Self::Contains(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// Envoy's `HeaderMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatcher {
    /// Lower case; pseudo-headers as `:method`.
    pub name: String,
    pub value: HeaderValueMatch,
    pub invert: bool,
    pub treat_missing_as_empty: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValueMatch {
    Present(bool),
    String(StringMatcher),
    /// `[start, end)`.
    Range {
        start: i64,
        end: i64,
    },
}

/// Envoy's `QueryParameterMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatcher {
    pub name: String,
    /// None: present is enough.
    pub value: Option<StringMatcher>,
}
