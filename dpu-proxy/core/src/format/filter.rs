//! Which requests an access log keeps.

use super::FormatContext;
use crate::matching::header;
use crate::model::{CompareOp, HeaderMatcher, LogFilter};
use std::time::Duration;

/// True when the filter lets the line through.
pub fn keeps(filter: &LogFilter, context: &dyn FormatContext) -> bool {
    match filter {
        LogFilter::StatusCode { op, value } => {
            compare(*op, u64::from(context.response_code().unwrap_or(0)), u64::from(*value))
        }
        LogFilter::Duration { op, value } => {
            context.duration().is_some_and(|duration| compare(*op, milliseconds(duration), milliseconds(*value)))
        }
        LogFilter::ResponseFlags(wanted) => has_flag(wanted, context),
        LogFilter::NotHealthCheck => true,
        LogFilter::And(filters) => filters.iter().all(|filter| keeps(filter, context)),
        LogFilter::Or(filters) => filters.iter().any(|filter| keeps(filter, context)),
        LogFilter::Header(matcher) => header_matches(matcher, context),
    }
}

fn has_flag(wanted: &[String], context: &dyn FormatContext) -> bool {
    let mut found = false;
    context.response_flags(&mut |flag| found |= wanted.is_empty() || wanted.iter().any(|wanted| wanted == flag));
    found
}

fn header_matches(matcher: &HeaderMatcher, context: &dyn FormatContext) -> bool {
    match context.request() {
        Some(head) => header::matches(matcher, head),
        None => header::matches(matcher, &crate::head::HeaderBlock::default()),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn compare(op: CompareOp, actual: u64, wanted: u64) -> bool {
    match op {
        CompareOp::Eq => actual == wanted,
        CompareOp::Ge => actual >= wanted,
        CompareOp::Le => actual <= wanted,
        CompareOp::Ne => actual != wanted,
    }
}
