//! Which outcomes get another attempt, and after what pause.

use super::*;

fn policy(words: &str, num_retries: u32) -> RetryPolicy {
    let mut on = RetryOn::default();
    for word in list(words) {
        parse_on(&mut on, word);
        parse_grpc_on(&mut on, word);
    }
    RetryPolicy {
        on,
        num_retries,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        retriable_status_codes: vec![429],
        retriable_headers: Vec::new(),
        retriable_request_headers: Vec::new(),
        avoid_previous_hosts: false,
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
    }
}

fn response(status: u16, headers: &[(&str, &str)]) -> ResponseHead {
    let mut head = ResponseHead { status, ..ResponseHead::default() };
    for (name, value) in headers {
        head.headers.append(name.as_bytes(), value.as_bytes());
    }
    head
}

fn verdict(words: &str, response: &ResponseHead) -> RetryVerdict {
    let policy = policy(words, 1);
    let mut head = RequestHead::default();
    Retry::begin(Some(&policy), &mut head).map_or(RetryVerdict::No, |mut retry| retry.after_response(response))
}

#[test]
fn each_condition_covers_its_responses() {
    for (words, status, expected) in [
        ("5xx", 503, true),
        ("5xx", 404, false),
        ("gateway-error", 500, false),
        ("gateway-error", 502, true),
        ("retriable-4xx", 409, true),
        ("retriable-status-codes", 429, true),
        ("connect-failure", 503, false),
        ("nonsense", 503, false),
    ] {
        assert_eq!(verdict(words, &response(status, &[])) == RetryVerdict::Retry, expected, "{words} {status}");
    }
    assert_eq!(verdict("unavailable", &response(200, &[("grpc-status", "14")])), RetryVerdict::Retry);
    assert_eq!(verdict("unavailable", &response(200, &[("grpc-status", "13")])), RetryVerdict::No);
    assert_eq!(verdict("5xx", &response(503, &[("x-envoy-ratelimited", "true")])), RetryVerdict::No);
}

#[test]
fn each_condition_covers_its_resets() {
    let other = |started| Reset::Other { started };
    for (words, reset, expected) in [
        ("5xx", other(true), true),
        ("5xx", Reset::PerTryTimeout, true),
        ("reset", other(true), true),
        ("connect-failure", Reset::ConnectFailure, true),
        ("connect-failure", other(false), false),
        ("refused-stream", Reset::RefusedStream, true),
        ("reset-before-request", other(false), true),
        ("reset-before-request", other(true), false),
        ("5xx", Reset::Overflow, false),
        ("retriable-4xx", Reset::PerTryTimeout, false),
    ] {
        let policy = policy(words, 1);
        let mut retry = Retry::begin(Some(&policy), &mut RequestHead::default()).expect("retries");
        assert_eq!(retry.after_reset(reset) == RetryVerdict::Retry, expected, "{words} {reset:?}");
    }
}

#[test]
fn retries_end_and_say_so() {
    let policy = policy("5xx", 2);
    let mut retry = Retry::begin(Some(&policy), &mut RequestHead::default()).expect("retries");
    let failed = response(503, &[]);
    let verdicts: Vec<_> = (0..3).map(|_| retry.after_response(&failed)).collect();
    assert_eq!(verdicts, [RetryVerdict::Retry, RetryVerdict::Retry, RetryVerdict::LimitExceeded]);
}

#[test]
fn the_caller_may_ask_for_retries_and_its_headers_go_no_further() {
    let mut head = RequestHead::default();
    head.headers.append(b"x-envoy-retry-on", b"gateway-error, retriable-status-codes");
    head.headers.append(b"x-envoy-max-retries", b"3");
    head.headers.append(b"x-envoy-retriable-status-codes", b"418,x");
    let mut retry = Retry::begin(None, &mut head).expect("retries");
    assert_eq!(retry.after_response(&response(418, &[])), RetryVerdict::Retry);
    assert_eq!(retry.after_response(&response(503, &[])), RetryVerdict::Retry);
    assert_eq!(retry.after_response(&response(500, &[])), RetryVerdict::No);
    assert_eq!(retry.remaining, 1);
    assert_eq!(head.headers.get(b"x-envoy-retry-on"), None);
    assert!(Retry::begin(None, &mut RequestHead::default()).is_none());
}

#[test]
fn the_pause_doubles_up_to_its_maximum() {
    let policy = policy("5xx", 9);
    let mut retry = Retry::begin(Some(&policy), &mut RequestHead::default()).expect("retries");
    let longest: Vec<_> = (0..6)
        .map(|_| {
            retry.after_response(&response(503, &[]));
            (0..1000).map(|random| retry.backoff(random)).max().expect("some").as_millis()
        })
        .collect();
    assert_eq!(longest, [24, 49, 99, 199, 249, 249]);
}
