//! Retries: does this outcome get another attempt, and after what pause.
//!
//! One `Retry` per request, made of the route's policy and what the caller asks for in `x-envoy-*`
//! headers. Counts attempts; slots of circuit breakers are the shell's.

use crate::head::{RequestHead, ResponseHead};
use crate::matching::header;
use crate::model::{HeaderMatcher, RetryOn, RetryPolicy};
use smallvec::SmallVec;
use std::time::Duration;

const DEFAULT_RETRIES: u32 = 1;
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);

/// Headers by which a caller asks for retries.
const ASKED: [&str; 7] = [
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-upstream-rq-timeout-alt-response",
];

/// What is left of the retries of a request.
#[derive(Clone, Debug)]
pub struct Retry<'a> {
    on: RetryOn,
    remaining: u32,
    status_codes: SmallVec<[u16; 4]>,
    headers: &'a [HeaderMatcher],
    extra_headers: SmallVec<[String; 1]>,
    backoff: (Duration, Duration),
    done: u32,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryVerdict {
    /// The outcome stands.
    No,
    Retry,
    /// It would be retried, but there were enough: flag `URX`.
    LimitExceeded,
}

/// Why an attempt ended without response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Refused, unreachable, or timed out while connecting.
    ConnectFailure,
    /// RST_STREAM with REFUSED_STREAM.
    RefusedStream,
    /// `started`: some of the request had been sent.
    Other {
        started: bool,
    },
    PerTryTimeout,
    /// A circuit breaker: never retried.
    Overflow,
}

impl<'a> Retry<'a> {
    /// Starts a request; takes the headers that ask for retries off it. `None`: it is never retried.
    pub fn begin(policy: Option<&'a RetryPolicy>, head: &mut RequestHead) -> Option<Self> {
        let retry = Self::of(policy, head);
        for name in ASKED {
            head.headers.remove(name.as_bytes());
        }
        retry
    }

    fn of(policy: Option<&'a RetryPolicy>, head: &RequestHead) -> Option<Self> {
        let excluded = policy.is_some_and(|policy| {
            let wanted = &policy.retriable_request_headers;
            !wanted.is_empty() && !wanted.iter().any(|matcher| header::matches(matcher, head))
        });
        let mut on = policy.map(|policy| policy.on).filter(|_| !excluded).unwrap_or_default();
        let asked = |name: &str| head.headers.get_str(name);
        for (name, parse) in
            [("x-envoy-retry-on", parse_on as fn(&mut RetryOn, &str)), ("x-envoy-retry-grpc-on", parse_grpc_on)]
        {
            list(asked(name).unwrap_or_default()).for_each(|word| parse(&mut on, word));
        }
        if on == RetryOn::default() {
            return None;
        }
        let limit = asked("x-envoy-max-retries").and_then(|text| text.trim().parse().ok());
        let mut status_codes = SmallVec::from_slice(policy.map_or(&[], |policy| &policy.retriable_status_codes));
        let asked_codes = list(asked("x-envoy-retriable-status-codes").unwrap_or_default());
        status_codes.extend(asked_codes.filter_map(|text| text.parse::<u16>().ok()));
        let extra_headers = list(asked("x-envoy-retriable-header-names").unwrap_or_default());
        Some(Self {
            on,
            remaining: limit.unwrap_or_else(|| policy.map_or(DEFAULT_RETRIES, |policy| policy.num_retries)),
            status_codes,
            headers: policy.map_or(&[], |policy| &policy.retriable_headers),
            extra_headers: extra_headers.map(str::to_ascii_lowercase).collect(),
            backoff: policy.map_or((DEFAULT_BACKOFF, DEFAULT_BACKOFF * 10), |p| (p.backoff_base, p.backoff_max)),
            done: 0,
        })
    }

    /// After the head of a response came.
    pub fn after_response(&mut self, response: &ResponseHead) -> RetryVerdict {
        let wanted = self.wants_response(response);
        self.take(wanted)
    }

    /// After an attempt ended without response.
    pub fn after_reset(&mut self, reset: Reset) -> RetryVerdict {
        let wanted = self.wants_reset(reset);
        self.take(wanted)
    }

    /// Retries so far.
    pub fn done(&self) -> u32 {
        self.done
    }

    /// The pause before the retry that was just granted: up to the base interval, doubled each time.
    pub fn backoff(&self, random: u64) -> Duration {
        let (base, max) = (millis(self.backoff.0).max(1), millis(self.backoff.1).max(1));
        let doubled = base.saturating_mul(1 << self.done.saturating_sub(1).min(32));
        // Envoy goes straight to the maximum when one more doubling would pass it.
        let interval = if self.done <= 1 { base } else { doubled.min(max) };
        Duration::from_millis(random % interval).min(Duration::from_millis(max))
    }

    fn take(&mut self, wanted: bool) -> RetryVerdict {
        match (wanted, self.remaining) {
            (false, _) => RetryVerdict::No,
            (true, 0) => RetryVerdict::LimitExceeded,
            (true, _) => {
                self.remaining -= 1;
                self.done += 1;
                RetryVerdict::Retry
            }
        }
    }

    fn wants_response(&self, response: &ResponseHead) -> bool {
        let (on, status) = (&self.on, response.status);
        if response.headers.get(b"x-envoy-ratelimited").is_some() {
            return on.envoy_ratelimited;
        }
        (on.server_error_5xx && (500..600).contains(&status))
            || (on.gateway_error && (502..=504).contains(&status))
            || (on.retriable_4xx && status == 409)
            || (on.retriable_status_codes && self.status_codes.contains(&status))
            || (on.retriable_headers && self.has_retriable_header(response))
            || self.wants_grpc(response)
    }

    fn has_retriable_header(&self, response: &ResponseHead) -> bool {
        self.headers.iter().any(|matcher| header::matches(matcher, response))
            || self.extra_headers.iter().any(|name| response.headers.get(name.as_bytes()).is_some())
    }

    fn wants_grpc(&self, response: &ResponseHead) -> bool {
        let on = &self.on;
        match response.headers.get_str("grpc-status").and_then(|text| text.parse::<u32>().ok()) {
            Some(1) => on.grpc_cancelled,
            Some(4) => on.grpc_deadline_exceeded,
            Some(8) => on.grpc_resource_exhausted,
            Some(13) => on.grpc_internal,
            Some(14) => on.grpc_unavailable,
            _ => false,
        }
    }

    fn wants_reset(&self, reset: Reset) -> bool {
        let on = &self.on;
        match reset {
            Reset::Overflow => false,
            _ if on.reset || on.server_error_5xx || on.gateway_error => true,
            Reset::RefusedStream => on.refused_stream || on.reset_before_request,
            Reset::ConnectFailure => on.connect_failure || on.reset_before_request,
            Reset::Other { started } => on.reset_before_request && !started,
            Reset::PerTryTimeout => false,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// Adds a word of `retry_on` or `x-envoy-retry-on`. Words that are not known are ignored, as in Envoy.
pub fn parse_on(on: &mut RetryOn, word: &str) {
    match word {
        "5xx" => on.server_error_5xx = true,
        "gateway-error" => on.gateway_error = true,
        "reset" => on.reset = true,
        "reset-before-request" => on.reset_before_request = true,
        "connect-failure" => on.connect_failure = true,
        "envoy-ratelimited" => on.envoy_ratelimited = true,
        "retriable-4xx" => on.retriable_4xx = true,
        "refused-stream" => on.refused_stream = true,
        "retriable-status-codes" => on.retriable_status_codes = true,
        "retriable-headers" => on.retriable_headers = true,
        _ => {}
    }
}

/// Adds a word of `retry_on` or `x-envoy-retry-grpc-on`.
pub fn parse_grpc_on(on: &mut RetryOn, word: &str) {
    match word {
        "cancelled" => on.grpc_cancelled = true,
        "deadline-exceeded" => on.grpc_deadline_exceeded = true,
        "internal" => on.grpc_internal = true,
        "resource-exhausted" => on.grpc_resource_exhausted = true,
        "unavailable" => on.grpc_unavailable = true,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
