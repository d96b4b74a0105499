//! What was seen of one case through one proxy, normalised so that two proxies can be compared.

use crate::case::Field;
use std::collections::BTreeMap;
use std::fmt::Write;

/// All that is compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    pub responses: Vec<Response>,
    /// The client saw the connection end after the last response.
    pub closed: bool,
    pub upstream: Vec<UpstreamRequest>,
    pub log: Vec<LogLine>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// 0: no HTTP response.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub trailers: Vec<(String, String)>,
    /// Informational responses before it.
    pub informational: Vec<u16>,
    /// How the exchange ended otherwise: "reset CODE", "tls error", "connection closed".
    pub failure: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpstreamRequest {
    pub backend: String,
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub trailers: Vec<(String, String)>,
}

/// From the access log: `FLAGS|CODE|DETAILS|ROUTE|CLUSTER|TERMINATION`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogLine {
    pub flags: String,
    pub code: String,
    pub details: String,
    pub route: String,
    pub cluster: String,
    pub termination: String,
}

/// Headers whose value changes from run to run: presence is compared.
const VOLATILE: &[&str] = &["date", "x-request-id", "x-envoy-upstream-service-time"];

/// Sorted, volatile values replaced, ports of this run replaced by their names.
pub fn normalise(headers: Vec<(String, String)>, names: &[(String, String)]) -> Vec<(String, String)> {
    let mut headers: Vec<_> = headers
        .into_iter()
        .map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let value = match name.as_str() {
                name if VOLATILE.contains(&name) => "<present>".to_owned(),
                "x-envoy-expected-rq-timeout-ms" | "grpc-timeout" => rounded_up(&value),
                _ => rename(value, names),
            };
            (name, value)
        })
        .collect();
    headers.sort();
    headers
}

/// The time that is left shrinks while a request is retried: to the next tenth of a second.
fn rounded_up(milliseconds: &str) -> String {
    let (digits, unit) = milliseconds.split_at(milliseconds.trim_end_matches('m').len());
    digits.parse::<u64>().map_or_else(|_| milliseconds.to_owned(), |time| format!("{}{unit}", time.div_ceil(100) * 100))
}

/// Replaces every port of this run by its name.
pub fn rename(mut text: String, names: &[(String, String)]) -> String {
    for (from, to) in names {
        text = text.replace(from, to);
    }
    text
}

impl LogLine {
    /// Parses one line of the log format that all cases use.
    pub fn parse(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.split('|').collect();
        let [flags, code, details, route, cluster, termination] = parts[..] else { return None };
        let own = |text: &str| text.to_owned();
        Some(Self {
            flags: own(flags),
            code: own(code),
            details: own(details),
            route: own(route),
            cluster: own(cluster),
            termination: own(termination),
        })
    }
}

/// What differs between Envoy and us, in words; empty when nothing does.
pub fn differences(envoy: &Observation, ours: &Observation, ignored: &BTreeMap<Field, String>) -> String {
    let mut text = String::new();
    if ignored.contains_key(&Field::Distribution) {
        return distribution(envoy, ours);
    }
    let (envoy, ours) = (strip(envoy.clone(), ignored), strip(ours.clone(), ignored));
    compare(&mut text, "response", &envoy.responses, &ours.responses);
    compare(&mut text, "upstream request", &envoy.upstream, &ours.upstream);
    compare(&mut text, "access log", &envoy.log, &ours.log);
    if envoy.closed != ours.closed {
        let _ = writeln!(text, "    connection closed: envoy {}, dpu-proxy {}", envoy.closed, ours.closed);
    }
    text
}

fn compare<T: std::fmt::Debug + PartialEq>(text: &mut String, what: &str, envoy: &[T], ours: &[T]) {
    for index in 0..envoy.len().max(ours.len()) {
        if envoy.get(index) != ours.get(index) {
            let _ = writeln!(text, "    {what} {index}:");
            let _ = writeln!(text, "      envoy     {}", show(envoy.get(index)));
            let _ = writeln!(text, "      dpu-proxy {}", show(ours.get(index)));
        }
    }
}

fn show<T: std::fmt::Debug>(value: Option<&T>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"))
}

fn strip(mut observation: Observation, ignored: &BTreeMap<Field, String>) -> Observation {
    let skip = |field| ignored.contains_key(&field);
    for response in &mut observation.responses {
        if skip(Field::ResponseHeaders) {
            response.headers.clear();
        }
        if skip(Field::ResponseBody) {
            response.body.clear();
        }
    }
    for request in &mut observation.upstream {
        if skip(Field::UpstreamHeaders) {
            request.headers.clear();
        }
    }
    for line in &mut observation.log {
        if skip(Field::CodeDetails) {
            line.details.clear();
        }
        if skip(Field::Termination) {
            line.termination.clear();
        }
    }
    if skip(Field::UpstreamOrder) {
        observation.upstream.sort_by(|a, b| a.backend.cmp(&b.backend));
    }
    observation.closed &= !skip(Field::ConnectionClosed);
    observation
}

/// Standard deviations by which a backend's share may differ between the two: by chance that is seen once in a million runs.
const TOLERANCE: f64 = 5.0;

/// Standard deviation, in points of 100, of the difference of two shares that are `share` in truth, each of `draws` draws.
fn deviation(share: f64, draws: usize) -> f64 {
    let share = (share / 100.0).clamp(0.0, 1.0);
    100.0 * (2.0 * share * (1.0 - share) / draws.max(1) as f64).sqrt()
}

fn distribution(envoy: &Observation, ours: &Observation) -> String {
    let draws = envoy.upstream.len().min(ours.upstream.len());
    let (envoy, ours) = (shares(envoy), shares(ours));
    let mut text = String::new();
    for backend in envoy.keys().chain(ours.keys()) {
        let share = |shares: &BTreeMap<String, f64>| shares.get(backend).copied().unwrap_or(0.0);
        let (expected, actual) = (share(&envoy), share(&ours));
        // One draw is the least that two shares can differ by.
        let limit = TOLERANCE * deviation((expected + actual) / 2.0, draws) + 100.0 / draws.max(1) as f64;
        if (expected - actual).abs() > limit {
            let _ = writeln!(text, "    {backend}: envoy {:.1} %, dpu-proxy {:.1} %", expected, actual);
        }
    }
    if envoy.is_empty() || ours.is_empty() {
        text.push_str("    nothing reached a backend\n");
    }
    text
}

fn shares(observation: &Observation) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    let one = 100.0 / observation.upstream.len().max(1) as f64;
    for request in &observation.upstream {
        *shares.entry(request.backend.clone()).or_insert(0.0) += one;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: u16, details: &str) -> Observation {
        Observation {
            responses: vec![Response { status, ..Response::default() }],
            log: vec![LogLine { details: details.to_owned(), ..LogLine::default() }],
            ..Observation::default()
        }
    }

    #[test]
    fn a_difference_is_named_and_an_ignored_field_is_not() {
        let ignored = BTreeMap::from([(Field::CodeDetails, "ours is clearer".to_owned())]);
        assert_eq!(differences(&seen(200, "a"), &seen(200, "b"), &ignored), "");
        assert!(differences(&seen(200, "a"), &seen(200, "b"), &BTreeMap::new()).contains("access log 0"));
        assert!(differences(&seen(200, "a"), &seen(503, "a"), &ignored).contains("response 0"));
    }
}
