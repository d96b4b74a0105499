//! What access-log templates and filters make of known facts.

use super::*;
use crate::model::{Command, CompareOp, FormatPart, FormatTemplate, JsonValue, LogFilter, LogSink};

struct Facts {
    request: RequestHead,
    response: ResponseHead,
    flags: Vec<&'static str>,
    uri_sans: Vec<String>,
}

impl Facts {
    fn new() -> Self {
        let mut request = RequestHead::default();
        request.set_path(b"/a?b=c");
        request.headers.append(b"user-agent", b"curl/8 \"quoted\"");
        let response = ResponseHead { status: 503, ..ResponseHead::default() };
        Self { request, response, flags: vec!["UF", "URX"], uri_sans: vec!["spiffe://a".into(), "spiffe://b".into()] }
    }
}

impl FormatContext for Facts {
    fn start_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    fn request(&self) -> Option<&RequestHead> {
        Some(&self.request)
    }
    fn response(&self) -> Option<&ResponseHead> {
        Some(&self.response)
    }
    fn response_code(&self) -> Option<u16> {
        Some(self.response.status)
    }
    fn response_flags(&self, each: &mut dyn FnMut(&str)) {
        self.flags.iter().for_each(|flag| each(flag));
    }
    fn duration(&self) -> Option<Duration> {
        Some(Duration::from_micros(12_900))
    }
    fn upstream_host(&self) -> Option<SocketAddr> {
        "[fd00::1]:80".parse().ok()
    }
    fn downstream_remote_address(&self) -> Option<SocketAddr> {
        "10.0.0.1:4000".parse().ok()
    }
    fn downstream_peer_uri_sans(&self) -> &[String] {
        &self.uri_sans
    }
    fn grpc_status(&self) -> Option<u32> {
        Some(14)
    }
}

fn command(command: Command) -> FormatPart {
    FormatPart::Command { command, max_length: None }
}

fn literal(text: &str) -> FormatPart {
    FormatPart::Literal(text.into())
}

fn text(parts: Vec<FormatPart>, missing: Missing) -> String {
    let mut output = Vec::new();
    render(&FormatTemplate { parts }, &Facts::new(), missing, &mut output);
    String::from_utf8(output).expect("text")
}

#[test]
fn commands_and_literals_print_in_order_and_what_is_missing_is_a_dash() {
    let parts = vec![
        literal("["),
        command(Command::StartTime(String::new())),
        literal("] "),
        command(Command::Request("x-none".into(), Some(":path".into()))),
        literal(" "),
        command(Command::ResponseCode),
        literal(" "),
        command(Command::ResponseFlags),
        literal(" "),
        command(Command::Protocol),
        literal(" "),
        command(Command::Duration),
        literal(" "),
        command(Command::BytesSent),
        literal("\n"),
    ];
    assert_eq!(text(parts, Missing::Dash), "[1970-01-01T00:00:00.000Z] /a?b=c 503 UF,URX - 12 0\n");
}

#[test]
fn header_templates_print_nothing_for_what_is_missing() {
    assert_eq!(text(vec![literal("x"), command(Command::UpstreamCluster)], Missing::Empty), "x");
}

#[test]
fn a_length_cuts_the_value() {
    let path = Command::Request(":path".into(), None);
    assert_eq!(text(vec![FormatPart::Command { command: path, max_length: Some(2) }], Missing::Dash), "/a");
}

#[test]
fn addresses_print_with_and_without_port() {
    let parts = vec![
        command(Command::UpstreamHost),
        literal(" "),
        command(Command::DownstreamRemoteAddressWithoutPort),
        literal(" "),
        command(Command::DownstreamPeerUriSan),
        literal(" "),
        command(Command::GrpcStatus),
    ];
    assert_eq!(text(parts, Missing::Dash), "[fd00::1]:80 10.0.0.1 spiffe://a,spiffe://b Unavailable");
}

#[test]
fn json_keeps_numbers_and_nulls_and_escapes_text() {
    let template = |parts| JsonValue::Template(FormatTemplate { parts });
    let fields = vec![
        ("code".to_owned(), template(vec![command(Command::ResponseCode)])),
        ("cluster".to_owned(), template(vec![command(Command::UpstreamCluster)])),
        ("agent".to_owned(), template(vec![command(Command::Request("user-agent".into(), None))])),
        (
            "mixed".to_owned(),
            template(vec![literal("c="), command(Command::ResponseCode), command(Command::RouteName)]),
        ),
        ("list".to_owned(), JsonValue::List(vec![JsonValue::Bool(true), JsonValue::Null])),
    ];
    let mut output = Vec::new();
    json::render(&fields, &Facts::new(), &mut output);
    let expected = r#"{"code":503,"cluster":null,"agent":"curl/8 \"quoted\"","mixed":"c=503-","list":[true,null]}"#;
    assert_eq!(String::from_utf8(output).expect("text"), expected);
}

#[test]
fn a_filter_decides_whether_the_line_is_written() {
    let log = |filter| AccessLog {
        sink: LogSink::Stdout,
        format: LogFormat::Text(FormatTemplate { parts: vec![literal("line\n")] }),
        filter: Some(filter),
    };
    let status = |op, value| LogFilter::StatusCode { op, value };
    let long = LogFilter::Duration { op: CompareOp::Ge, value: Duration::from_secs(1) };
    for (filter, expected) in [
        (status(CompareOp::Ge, 500), true),
        (status(CompareOp::Eq, 200), false),
        (LogFilter::ResponseFlags(vec!["URX".into()]), true),
        (LogFilter::ResponseFlags(vec!["NR".into()]), false),
        (LogFilter::ResponseFlags(Vec::new()), true),
        (LogFilter::And(vec![status(CompareOp::Ge, 500), long.clone()]), false),
        (LogFilter::Or(vec![status(CompareOp::Ge, 500), long]), true),
    ] {
        let mut output = Vec::new();
        assert_eq!(log_line(&log(filter.clone()), &Facts::new(), &mut output), expected, "{filter:?}");
        assert_eq!(output.is_empty(), !expected);
    }
}

#[test]
fn no_flag_is_a_dash_everywhere() {
    let facts = Facts { flags: Vec::new(), ..Facts::new() };
    let template = FormatTemplate { parts: vec![command(Command::ResponseFlags)] };
    let mut output = Vec::new();
    render(&template, &facts, Missing::Empty, &mut output);
    json::render(&[("f".to_owned(), JsonValue::Template(template))], &facts, &mut output);
    assert_eq!(output, br#"-{"f":"-"}"#);
}
