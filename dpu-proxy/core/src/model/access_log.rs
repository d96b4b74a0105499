//! Access logs and the `%COMMAND%` template language, compiled.

use std::time::Duration;

/// One access log of a listener, connection manager or TCP proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    pub sink: LogSink,
    pub format: LogFormat,
    pub filter: Option<LogFilter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogSink {
    /// `/dev/stdout` and `/dev/stderr` included.
    File(String),
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LogFormat {
    Text(FormatTemplate),
    /// Keys in order.
    Json(Vec<(String, JsonValue)>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum JsonValue {
    Template(FormatTemplate),
    Object(Vec<(String, JsonValue)>),
    List(Vec<JsonValue>),
    Number(f64),
    Bool(bool),
    Null,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LogFilter {
    StatusCode {
        op: CompareOp,
        value: u32,
    },
    Duration {
        op: CompareOp,
        value: Duration,
    },
    /// Empty: any flag.
    ResponseFlags(Vec<String>),
    NotHealthCheck,
    And(Vec<LogFilter>),
    Or(Vec<LogFilter>),
    Header(super::HeaderMatcher),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    Eq,
    Ge,
    Le,
    Ne,
}

/// A text with `%COMMAND%`s, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FormatTemplate {
    pub parts: Vec<FormatPart>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FormatPart {
    Literal(String),
    Command { command: Command, max_length: Option<usize> },
}

/// The operators that are known. `config` refuses others by name.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// strftime format; empty: ISO 8601 with milliseconds.
    StartTime(String),
    /// Header names: the first, else the alternative.
    Request(String, Option<String>),
    Response(String, Option<String>),
    Trailer(String, Option<String>),
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags,
    BytesReceived,
    BytesSent,
    /// Milliseconds.
    Duration,
    RequestDuration,
    ResponseDuration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamLocalAddress,
    UpstreamTransportFailureReason,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamDirectRemoteAddress,
    DownstreamDirectRemoteAddressWithoutPort,
    DownstreamPeerUriSan,
    DownstreamPeerSubject,
    DownstreamLocalUriSan,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    RequestedServerName,
    RouteName,
    VirtualClusterName,
    ConnectionId,
    StreamId,
    Hostname,
    GrpcStatus,
    AttemptCount,
    FilterChainName,
}
