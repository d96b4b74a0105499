//! The `%COMMAND(arguments):length%` template language: text → `FormatTemplate`.

use crate::model::{Command, FormatPart, FormatTemplate};

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("a '%' at byte {0} starts no %COMMAND%; write %% for a percent sign")]
    Malformed(usize),
    #[error("%{0}% is not supported; leave it out")]
    Unsupported(String),
    #[error("%{0}% is not a command that Envoy has; correct its name")]
    Unknown(String),
    #[error("%{command}% needs {needs}")]
    Arguments { command: String, needs: &'static str },
}

/// Compiles a template; every command must be carried out.
pub fn parse(text: &str) -> Result<FormatTemplate, FormatError> {
    parse_with(text, &mut |error| Err(error))
}

/// Compiles a template in which Envoy's commands that are not carried out stand for `-`; they are
/// given to `report`.
pub fn parse_lenient(text: &str, report: &mut dyn FnMut(&FormatError)) -> Result<FormatTemplate, FormatError> {
    parse_with(text, &mut |error| match error {
        FormatError::Unsupported(_) => {
            report(&error);
            Ok(FormatPart::Literal("-".to_owned()))
        }
        other => Err(other),
    })
}

type Rescue<'a> = &'a mut dyn FnMut(FormatError) -> Result<FormatPart, FormatError>;

fn parse_with(text: &str, rescue: Rescue<'_>) -> Result<FormatTemplate, FormatError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal(&mut parts, &rest[..at]);
        let tail = &rest[at..];
        if let Some(after) = tail.strip_prefix("%%") {
            literal(&mut parts, "%");
            rest = after;
            continue;
        }
        let offset = text.len() - tail.len();
        let operator = Operator::split(tail).ok_or(FormatError::Malformed(offset))?;
        match operator.part() {
            Ok(part) => parts.push(part),
            Err(error) => match rescue(error)? {
                FormatPart::Literal(stand_in) => literal(&mut parts, &stand_in),
                part => parts.push(part),
            },
        }
        rest = operator.rest;
    }
    literal(&mut parts, rest);
    Ok(FormatTemplate { parts })
}

fn literal(parts: &mut Vec<FormatPart>, text: &str) {
    if text.is_empty() {
        return;
    }
    match parts.last_mut() {
        Some(FormatPart::Literal(last)) => last.push_str(text),
        _ => parts.push(FormatPart::Literal(text.to_owned())),
    }
}

/// One `%NAME(arguments):length%`.
struct Operator<'a> {
    name: &'a str,
    arguments: Option<&'a str>,
    max_length: Option<usize>,
    rest: &'a str,
}

impl<'a> Operator<'a> {
    /// Of a text that begins with '%'.
    fn split(text: &'a str) -> Option<Self> {
        let text = &text[1..];
        let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let end = text.find(|c| !is_name(c))?;
        let (name, tail) = text.split_at(end);
        if name.is_empty() {
            return None;
        }
        let Some(inner) = tail.strip_prefix('(') else {
            let (max_length, rest) = length_and_end(tail)?;
            return Some(Self { name, arguments: None, max_length, rest });
        };
        // The first parenthesis after which the operator can end: strftime formats hold '%' themselves.
        inner.match_indices(')').find_map(|(close, _)| {
            let (max_length, rest) = length_and_end(&inner[close + 1..])?;
            Some(Self { name, arguments: Some(&inner[..close]), max_length, rest })
        })
    }

    fn part(&self) -> Result<FormatPart, FormatError> {
        Ok(FormatPart::Command { command: self.command()?, max_length: self.max_length })
    }

    fn command(&self) -> Result<Command, FormatError> {
        if let Some(command) = plain_command(self.name) {
            return match self.arguments {
                None => Ok(command),
                Some(_) => Err(self.arguments_error("no arguments")),
            };
        }
        match self.name {
            "START_TIME" => Ok(Command::StartTime(self.arguments.unwrap_or_default().to_owned())),
            "REQ" => self.header().map(|(name, other)| Command::Request(name, other)),
            "RESP" => self.header().map(|(name, other)| Command::Response(name, other)),
            "TRAILER" => self.header().map(|(name, other)| Command::Trailer(name, other)),
            "GRPC_STATUS" if matches!(self.arguments, None | Some("CAMEL_STRING")) => Ok(Command::GrpcStatus),
            name if is_envoys(name) => Err(FormatError::Unsupported(self.shown())),
            _ => Err(FormatError::Unknown(self.shown())),
        }
    }

    fn header(&self) -> Result<(String, Option<String>), FormatError> {
        let arguments = self.arguments.unwrap_or_default();
        let (first, other) = match arguments.split_once('?') {
            Some((first, other)) => (first, Some(other)),
            None => (arguments, None),
        };
        let name = |text: &str| {
            let bare = text.strip_prefix(':').unwrap_or(text);
            let valid = http::HeaderName::from_bytes(bare.as_bytes()).is_ok();
            valid
                .then(|| text.to_ascii_lowercase())
                .ok_or_else(|| self.arguments_error("a header name, e.g. %REQ(USER-AGENT)%"))
        };
        Ok((name(first)?, other.map(name).transpose()?))
    }

    fn shown(&self) -> String {
        self.arguments.map_or_else(|| self.name.to_owned(), |arguments| format!("{}({arguments})", self.name))
    }

    fn arguments_error(&self, needs: &'static str) -> FormatError {
        FormatError::Arguments { command: self.shown(), needs }
    }
}

/// `:digits` if it is there, then '%'.
fn length_and_end(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(rest) = text.strip_prefix('%') {
        return Some((None, rest));
    }
    let (digits, rest) = text.strip_prefix(':')?.split_once('%')?;
    Some((Some(digits.parse().ok()?), rest))
}

fn plain_command(name: &str) -> Option<Command> {
    Some(match name {
        "PROTOCOL" => Command::Protocol,
        "RESPONSE_CODE" => Command::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Command::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Command::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => Command::ResponseFlags,
        "BYTES_RECEIVED" => Command::BytesReceived,
        "BYTES_SENT" => Command::BytesSent,
        "DURATION" => Command::Duration,
        "REQUEST_DURATION" => Command::RequestDuration,
        "RESPONSE_DURATION" => Command::ResponseDuration,
        "UPSTREAM_HOST" => Command::UpstreamHost,
        "UPSTREAM_CLUSTER" => Command::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => Command::UpstreamClusterRaw,
        "UPSTREAM_LOCAL_ADDRESS" => Command::UpstreamLocalAddress,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Command::UpstreamTransportFailureReason,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Command::AttemptCount,
        "DOWNSTREAM_LOCAL_ADDRESS" => Command::DownstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Command::DownstreamLocalAddressWithoutPort,
        "DOWNSTREAM_LOCAL_PORT" => Command::DownstreamLocalPort,
        "DOWNSTREAM_REMOTE_ADDRESS" => Command::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Command::DownstreamRemoteAddressWithoutPort,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Command::DownstreamDirectRemoteAddress,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Command::DownstreamDirectRemoteAddressWithoutPort,
        "DOWNSTREAM_PEER_URI_SAN" => Command::DownstreamPeerUriSan,
        "DOWNSTREAM_PEER_SUBJECT" => Command::DownstreamPeerSubject,
        "DOWNSTREAM_LOCAL_URI_SAN" => Command::DownstreamLocalUriSan,
        "DOWNSTREAM_TLS_VERSION" => Command::DownstreamTlsVersion,
        "DOWNSTREAM_TLS_CIPHER" => Command::DownstreamTlsCipher,
        "REQUESTED_SERVER_NAME" => Command::RequestedServerName,
        "ROUTE_NAME" => Command::RouteName,
        "VIRTUAL_CLUSTER_NAME" => Command::VirtualClusterName,
        "CONNECTION_ID" => Command::ConnectionId,
        "STREAM_ID" => Command::StreamId,
        "HOSTNAME" => Command::Hostname,
        "FILTER_CHAIN_NAME" => Command::FilterChainName,
        _ => return None,
    })
}

/// Whether Envoy has a command of that name.
fn is_envoys(name: &str) -> bool {
    const FAMILIES: &[&str] = &["DOWNSTREAM_", "UPSTREAM_", "REQUEST_", "RESPONSE_", "BYTES_", "GRPC_STATUS"];
    const NAMES: &[&str] = &[
        "ACCESS_LOG_TYPE",
        "CEL",
        "CLUSTER_METADATA",
        "COMMON_DURATION",
        "CUSTOM_FLAGS",
        "DYNAMIC_METADATA",
        "EMIT_TIME",
        "ENVIRONMENT",
        "FILE_CONTENT",
        "FILTER_STATE",
        "LISTENER_METADATA",
        "LOCAL_REPLY_BODY",
        "METADATA",
        "PATH",
        "PER_REQUEST_STATE",
        "QUERY_PARAM",
        "QUERY_PARAMS",
        "REQ_WITHOUT_QUERY",
        "ROUNDTRIP_DURATION",
        "SECRET",
        "START_TIME_LOCAL",
        "TLS_JA3_FINGERPRINT",
        "TLS_JA4_FINGERPRINT",
        "TRACE_ID",
        "UNIQUE_ID",
        "VIRTUAL_HOST_METADATA",
        "VIRTUAL_HOST_NAME",
    ];
    FAMILIES.iter().any(|family| name.starts_with(family)) || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(command: Command, max_length: Option<usize>) -> FormatPart {
        FormatPart::Command { command, max_length }
    }

    fn text(text: &str) -> FormatPart {
        FormatPart::Literal(text.to_owned())
    }

    #[test]
    fn literals_commands_alternatives_and_lengths_are_told_apart() {
        let parsed = parse("[%START_TIME(%Y/%m %s)%] 100%% %REQ(X-A?:PATH):12% %PROTOCOL%\n").expect("valid");
        let expected = vec![
            text("["),
            command(Command::StartTime("%Y/%m %s".into()), None),
            text("] 100% "),
            command(Command::Request("x-a".into(), Some(":path".into())), Some(12)),
            text(" "),
            command(Command::Protocol, None),
            text("\n"),
        ];
        assert_eq!(parsed.parts, expected);
        assert_eq!(parse("").expect("empty").parts, vec![]);
    }

    #[test]
    fn a_stray_percent_sign_is_refused_with_its_place() {
        assert_eq!(parse("ab % c"), Err(FormatError::Malformed(3)));
        assert_eq!(parse("%PROTOCOL"), Err(FormatError::Malformed(0)));
        assert_eq!(parse("%REQ(a"), Err(FormatError::Malformed(0)));
        assert_eq!(parse("%PROTOCOL:x%"), Err(FormatError::Malformed(0)));
    }

    #[test]
    fn unknown_commands_are_refused_and_missing_ones_are_reported() {
        assert_eq!(parse("%NO_SUCH%"), Err(FormatError::Unknown("NO_SUCH".into())));
        assert_eq!(parse("%TRACE_ID%"), Err(FormatError::Unsupported("TRACE_ID".into())));
        let mut reported = Vec::new();
        let parsed = parse_lenient("a %TRACE_ID% b", &mut |error| reported.push(error.to_string())).expect("lenient");
        assert_eq!(parsed.parts, vec![text("a - b")]);
        assert_eq!(reported, vec!["%TRACE_ID% is not supported; leave it out"]);
        assert!(parse_lenient("%NO_SUCH%", &mut |_| ()).is_err());
    }

    #[test]
    fn arguments_are_checked() {
        assert!(matches!(parse("%REQ()%"), Err(FormatError::Arguments { .. })));
        assert!(matches!(parse("%PROTOCOL(x)%"), Err(FormatError::Arguments { .. })));
    }
}
