//! Timeouts of a request: the route's, the caller's (`x-envoy-*`), gRPC's.

use crate::head::RequestHead;
use crate::matching::route::is_grpc;
use crate::model::{RetryPolicy, RouteAction, RouterOptions};
use std::time::Duration;

const UPSTREAM: &[u8] = b"x-envoy-upstream-rq-timeout-ms";
const PER_TRY: &[u8] = b"x-envoy-upstream-rq-per-try-timeout-ms";
const EXPECTED: &[u8] = b"x-envoy-expected-rq-timeout-ms";
const GRPC: &[u8] = b"grpc-timeout";

/// None: without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// All attempts together, from the end of the request.
    pub global: Option<Duration>,
    pub per_try: Option<Duration>,
    pub per_try_idle: Option<Duration>,
    /// The stream, from its beginning.
    pub stream: Option<Duration>,
    /// The upstream is told its time in `grpc-timeout`, too.
    pub writes_grpc: bool,
}

/// The timeouts of a request. Takes the headers that ask for them off it, and writes the time that the
/// upstream may expect to have.
pub fn resolve(
    action: &RouteAction,
    retry: Option<&RetryPolicy>,
    router: &RouterOptions,
    head: &mut RequestHead,
) -> Timeouts {
    let of_grpc = grpc_timeout(action, head);
    let is_of_stream = action.grpc_timeout_is_of_stream;
    let mut timeouts = Timeouts {
        global: of_grpc.filter(|_| !is_of_stream).or(action.timeout),
        per_try: retry.and_then(|retry| retry.per_try_timeout),
        per_try_idle: retry.and_then(|retry| retry.per_try_idle_timeout),
        stream: of_grpc.filter(|_| is_of_stream).or(action.max_stream_duration),
        writes_grpc: is_grpc(head) && !is_of_stream && action.grpc_timeout_header_max.is_some(),
    };
    let expected = if router.respect_expected_rq_timeout { milliseconds(head, EXPECTED) } else { None };
    if let Some(asked) = expected.or_else(|| taken(head, UPSTREAM)) {
        timeouts.global = nonzero(asked);
    }
    if let Some(asked) = taken(head, PER_TRY) {
        timeouts.per_try = nonzero(asked);
    }
    if timeouts.global.is_some_and(|global| timeouts.per_try.is_some_and(|per_try| per_try >= global)) {
        timeouts.per_try = None;
    }
    write_expected(&timeouts, Duration::ZERO, router, head);
    timeouts
}

/// Writes what is left of the time `elapsed` after the start, before each attempt.
pub fn write_expected(timeouts: &Timeouts, elapsed: Duration, router: &RouterOptions, head: &mut RequestHead) {
    let Some(mut left) = timeouts.per_try.or(timeouts.global) else { return };
    if let Some(global) = timeouts.global {
        left = left.min(global.saturating_sub(elapsed).max(Duration::from_millis(1)));
    }
    if !router.suppress_envoy_headers {
        head.headers.set(EXPECTED, itoa::Buffer::new().format(left.as_millis()).as_bytes());
    }
    if timeouts.writes_grpc {
        head.headers.set(GRPC, format!("{}m", left.as_millis()).as_bytes());
    }
}

/// What the caller's `grpc-timeout` asks for: at most the route's maximum (zero: no maximum), less its
/// offset. `None` where the route does not take it into account or the caller does not ask.
fn grpc_timeout(action: &RouteAction, head: &RequestHead) -> Option<Duration> {
    let max = action.grpc_timeout_header_max.filter(|_| is_grpc(head))?;
    let asked = parse_grpc(head.headers.get_str("grpc-timeout")?)?;
    let capped = nonzero(max).map_or(asked, |max| asked.min(max));
    nonzero(capped.saturating_sub(action.grpc_timeout_header_offset))
}

/// `1S`, `20m`: up to eight digits and a unit.
fn parse_grpc(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        // Envoy rounds up to milliseconds.
        "u" => Duration::from_millis(value.div_ceil(1000)),
        "n" => Duration::from_millis(value.div_ceil(1_000_000)),
        _ => return None,
    })
}

fn taken(head: &mut RequestHead, name: &[u8]) -> Option<Duration> {
    let value = milliseconds(head, name)?;
    head.headers.remove(name);
    Some(value)
}

fn milliseconds(head: &RequestHead, name: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(head.headers.get(name)?).ok()?;
    text.trim().parse().ok().map(Duration::from_millis)
}

fn nonzero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClusterSpecifier;

    fn action(timeout: Option<u64>, grpc_max: Option<u64>) -> RouteAction {
        RouteAction {
            timeout: timeout.map(Duration::from_millis),
            grpc_timeout_header_max: grpc_max.map(Duration::from_millis),
            grpc_timeout_header_offset: Duration::from_millis(10),
            ..RouteAction::new(ClusterSpecifier::Single("a".into()))
        }
    }

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        for (name, value) in headers {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn resolved(action: &RouteAction, head: &mut RequestHead) -> Option<u128> {
        resolve(action, None, &RouterOptions::default(), head).global.map(|global| global.as_millis())
    }

    #[test]
    fn the_caller_overrides_the_route_and_the_upstream_is_told() {
        let mut plain = head(&[]);
        assert_eq!(resolved(&action(Some(15_000), None), &mut plain), Some(15_000));
        assert_eq!(plain.headers.get_str("x-envoy-expected-rq-timeout-ms"), Some("15000"));
        let mut asked = head(&[("x-envoy-upstream-rq-timeout-ms", "150")]);
        assert_eq!(resolved(&action(Some(15_000), None), &mut asked), Some(150));
        assert_eq!(asked.headers.get(UPSTREAM), None);
        assert_eq!(asked.headers.get_str("x-envoy-expected-rq-timeout-ms"), Some("150"));
        let mut unlimited = head(&[]);
        assert_eq!(resolved(&action(None, None), &mut unlimited), None);
        assert_eq!(unlimited.headers.get(EXPECTED), None);
    }

    #[test]
    fn a_per_try_timeout_that_is_not_shorter_is_ignored() {
        for (per_try, expected) in [("100", Some(100)), ("150", None), ("0", None)] {
            let mut head = head(&[("x-envoy-upstream-rq-per-try-timeout-ms", per_try)]);
            let timeouts = resolve(&action(Some(150), None), None, &RouterOptions::default(), &mut head);
            assert_eq!(timeouts.per_try, expected.map(Duration::from_millis), "{per_try}");
        }
    }

    #[test]
    fn the_time_left_shrinks_with_each_attempt() {
        let timeouts = Timeouts { global: Some(Duration::from_millis(100)), ..Timeouts::default() };
        let mut head = head(&[]);
        for (elapsed, expected) in [(30, "70"), (200, "1")] {
            let elapsed = Duration::from_millis(elapsed);
            write_expected(&timeouts, elapsed, &RouterOptions::default(), &mut head);
            assert_eq!(head.headers.get_str("x-envoy-expected-rq-timeout-ms"), Some(expected));
        }
    }

    #[test]
    fn grpc_timeouts_count_where_the_route_lets_them() {
        let grpc = |value| head(&[("content-type", "application/grpc"), ("grpc-timeout", value)]);
        let mut call = grpc("1S");
        assert_eq!(resolved(&action(Some(15_000), Some(0)), &mut call), Some(990), "offset taken off");
        assert_eq!(call.headers.get_str("grpc-timeout"), Some("990m"));
        assert_eq!(call.headers.get_str("x-envoy-expected-rq-timeout-ms"), Some("990"));
        let of_stream = RouteAction { grpc_timeout_is_of_stream: true, ..action(None, Some(0)) };
        let mut call = grpc("1S");
        let timeouts = resolve(&of_stream, None, &RouterOptions::default(), &mut call);
        assert_eq!((timeouts.global, timeouts.stream), (None, Some(Duration::from_millis(990))));
        assert_eq!(call.headers.get_str("grpc-timeout"), Some("1S"), "the upstream is told as the caller told us");
        assert_eq!(resolved(&action(Some(15_000), Some(500)), &mut grpc("1S")), Some(490), "at most the maximum");
        assert_eq!(resolved(&action(None, Some(500)), &mut grpc("x")), None, "no limit without a header");
        assert_eq!(resolved(&action(Some(15_000), None), &mut grpc("1S")), Some(15_000));
        for (text, expected) in [("2H", 7_200_000), ("3M", 180_000), ("5m", 5), ("1u", 1), ("1000001n", 2)] {
            assert_eq!(parse_grpc(text).map(|duration| duration.as_millis()), Some(expected), "{text}");
        }
        assert_eq!(parse_grpc("123456789m"), None);
        assert_eq!(parse_grpc(""), None);
    }
}
