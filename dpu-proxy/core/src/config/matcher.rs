//! String, header and query matchers.

use super::convert::header_name;
use super::report::{At, ConfigError};
use crate::model::{HeaderMatcher, HeaderValueMatch, QueryMatcher, StringMatcher, StringPattern};
use mesh_api::envoy::config::route::v3 as route;
use mesh_api::envoy::r#type::matcher::v3 as matcher;
use regex::Regex;

/// A regular expression that must match the whole text, as RE2's full match.
pub fn full_regex(at: At<'_>, proto: &matcher::RegexMatcher) -> Result<Regex, ConfigError> {
    compile(at, &format!("^(?:{})$", expression(at, proto)?))
}

/// A regular expression that may match a part.
pub fn partial_regex(at: At<'_>, proto: &matcher::RegexMatcher) -> Result<Regex, ConfigError> {
    compile(at, expression(at, proto)?)
}

fn expression<'p>(at: At<'_>, proto: &'p matcher::RegexMatcher) -> Result<&'p str, ConfigError> {
    match proto.regex.is_empty() {
        true => Err(at.field("regex").refuse("a regular expression is required")),
        false => Ok(&proto.regex),
    }
}

fn compile(at: At<'_>, text: &str) -> Result<Regex, ConfigError> {
    let built = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
    built.map_err(|error| at.field("regex").refuse(format!("not a valid RE2 expression: {error}")))
}

/// `StringMatcher`.
pub fn string(at: At<'_>, proto: &matcher::StringMatcher) -> Result<StringMatcher, ConfigError> {
    use matcher::string_matcher::MatchPattern;
    let pattern = match &proto.match_pattern {
        Some(MatchPattern::Exact(text)) => StringPattern::Exact(text.clone()),
        Some(MatchPattern::Prefix(text)) => StringPattern::Prefix(required(at.field("prefix"), text)?),
        Some(MatchPattern::Suffix(text)) => StringPattern::Suffix(required(at.field("suffix"), text)?),
        Some(MatchPattern::Contains(text)) => StringPattern::Contains(required(at.field("contains"), text)?),
        Some(MatchPattern::SafeRegex(regex)) => StringPattern::Regex(full_regex(at.field("safe_regex"), regex)?),
        Some(MatchPattern::Custom(_)) => {
            return Err(at.field("custom").refuse("custom string matchers are not supported"));
        }
        None => return Err(at.refuse("give exact, prefix, suffix, contains or safe_regex")),
    };
    if proto.ignore_case && matches!(pattern, StringPattern::Regex(_)) {
        return Err(at.field("ignore_case").refuse("has no meaning with safe_regex; write (?i) in the expression"));
    }
    Ok(StringMatcher { pattern, ignore_case: proto.ignore_case })
}

fn required(at: At<'_>, text: &str) -> Result<String, ConfigError> {
    match text.is_empty() {
        true => Err(at.refuse("the text must not be empty")),
        false => Ok(text.to_owned()),
    }
}

/// String matchers of a repeated field.
pub fn strings(at: At<'_>, field: &str, protos: &[matcher::StringMatcher]) -> Result<Vec<StringMatcher>, ConfigError> {
    protos.iter().enumerate().map(|(index, proto)| string(at.item(field, index), proto)).collect()
}

fn plain(pattern: StringPattern) -> HeaderValueMatch {
    HeaderValueMatch::String(StringMatcher { pattern, ignore_case: false })
}

/// `HeaderMatcher`, with its deprecated forms.
pub fn header(at: At<'_>, proto: &route::HeaderMatcher) -> Result<HeaderMatcher, ConfigError> {
    Ok(HeaderMatcher {
        name: header_name(at.field("name"), &proto.name)?,
        value: header_value(at, proto)?,
        invert: proto.invert_match,
        treat_missing_as_empty: proto.treat_missing_header_as_empty,
    })
}

fn header_value(at: At<'_>, proto: &route::HeaderMatcher) -> Result<HeaderValueMatch, ConfigError> {
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    Ok(match &proto.header_match_specifier {
        None => HeaderValueMatch::Present(true),
        Some(Specifier::PresentMatch(present)) => HeaderValueMatch::Present(*present),
        Some(Specifier::StringMatch(proto)) => HeaderValueMatch::String(string(at.field("string_match"), proto)?),
        Some(Specifier::ExactMatch(text)) => plain(StringPattern::Exact(text.clone())),
        Some(Specifier::PrefixMatch(text)) => plain(StringPattern::Prefix(required(at.field("prefix_match"), text)?)),
        Some(Specifier::SuffixMatch(text)) => plain(StringPattern::Suffix(required(at.field("suffix_match"), text)?)),
        Some(Specifier::ContainsMatch(text)) => {
            plain(StringPattern::Contains(required(at.field("contains_match"), text)?))
        }
        Some(Specifier::SafeRegexMatch(regex)) => {
            plain(StringPattern::Regex(full_regex(at.field("safe_regex_match"), regex)?))
        }
        Some(Specifier::RangeMatch(range)) => HeaderValueMatch::Range { start: range.start, end: range.end },
    })
}

/// Header matchers of a repeated field.
pub fn headers(at: At<'_>, field: &str, protos: &[route::HeaderMatcher]) -> Result<Vec<HeaderMatcher>, ConfigError> {
    protos.iter().enumerate().map(|(index, proto)| header(at.item(field, index), proto)).collect()
}

/// `QueryParameterMatcher`.
pub fn query(at: At<'_>, proto: &route::QueryParameterMatcher) -> Result<QueryMatcher, ConfigError> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
    let value = match &proto.query_parameter_match_specifier {
        Some(Specifier::StringMatch(proto)) => Some(string(at.field("string_match"), proto)?),
        Some(Specifier::PresentMatch(true)) | None => None,
        Some(Specifier::PresentMatch(false)) => {
            return Err(at
                .field("present_match")
                .refuse("matching on absence is not supported; use present_match: true"));
        }
    };
    Ok(QueryMatcher { name: required(at.field("name"), &proto.name)?, value })
}
