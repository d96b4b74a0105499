//! Answers that the proxy gives itself: status, body and details as Envoy has them; for gRPC requests a
//! response without body whose headers carry the gRPC status.
//!
//! The response edits of the chosen route apply to these answers too (`headers::EditLevels`), before
//! `content-length` and `content-type`; only an answered CORS preflight goes without.

use super::grpc;
use crate::head::{ResponseHead, Version};
use std::borrow::Cow;

/// An answer of the proxy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReply {
    pub status: u16,
    pub body: Cow<'static, str>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// In place of the one that the HTTP status stands for.
    pub grpc_status: Option<u32>,
}

/// Why an upstream stream ended before its response began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    LocalReset,
    LocalRefusedStream,
    RemoteReset,
    RemoteRefusedStream,
    /// Refused or unreachable.
    RemoteConnectionFailure,
    LocalConnectionFailure,
    ConnectionTimeout,
    /// The connection closed.
    ConnectionTermination,
    /// A circuit breaker.
    Overflow,
    ProtocolError,
    OverloadManager,
}

impl ResetReason {
    /// As Envoy words it.
    pub fn text(self) -> &'static str {
        match self {
            Self::LocalReset => "local reset",
            Self::LocalRefusedStream => "local refused stream reset",
            Self::RemoteReset => "remote reset",
            Self::RemoteRefusedStream => "remote refused stream reset",
            Self::RemoteConnectionFailure => "remote connection failure",
            Self::LocalConnectionFailure => "local connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::ConnectionTermination => "connection termination",
            Self::Overflow => "overflow",
            Self::ProtocolError => "protocol error",
            Self::OverloadManager => "overload manager reset",
        }
    }
}

impl LocalReply {
    /// With a fixed body and details.
    pub const fn of(status: u16, body: &'static str, details: &'static str) -> Self {
        Self { status, body: Cow::Borrowed(body), details: Cow::Borrowed(details), grpc_status: None }
    }

    /// No virtual host or route (flag `NR`).
    pub const fn route_not_found() -> Self {
        Self::of(404, "", "route_not_found")
    }

    /// The route's cluster is not known (flag `NC`); the route may say another status.
    pub const fn cluster_not_found(status: u16) -> Self {
        Self::of(status, "", "cluster_not_found")
    }

    /// No endpoint (flag `UH`).
    pub const fn no_healthy_upstream() -> Self {
        Self::of(503, "no healthy upstream", "no_healthy_upstream")
    }

    /// The whole request took too long (flag `UT`).
    pub const fn timeout() -> Self {
        Self::of(504, "upstream request timeout", "response_timeout")
    }

    /// The last attempt took too long (flag `UT`).
    pub const fn per_try_timeout() -> Self {
        Self::of(504, "upstream request timeout", "upstream_per_try_timeout")
    }

    /// The request did not arrive in time (`request_timeout`).
    pub const fn request_timeout() -> Self {
        Self::of(408, "request timeout", "request_overall_timeout")
    }

    /// Nothing moved for the stream's idle timeout (flag `SI`): 408 before the request ended, else 504.
    pub const fn stream_idle_timeout(is_request_complete: bool) -> Self {
        Self::of(if is_request_complete { 504 } else { 408 }, "stream timeout", "stream_idle_timeout")
    }

    /// The stream lasted longer than it may: 408 before the request ended, else 504.
    pub fn max_stream_duration(is_request_complete: bool) -> Self {
        let status = if is_request_complete { 504 } else { 408 };
        let reply = Self::of(status, "downstream duration timeout", "max_duration_timeout");
        Self { grpc_status: Some(grpc::DEADLINE_EXCEEDED), ..reply }
    }

    /// The path has what no path may have.
    pub const fn path_rejected() -> Self {
        Self::of(400, "", "path_normalization_failed")
    }

    /// An upgrade that is not allowed.
    pub const fn upgrade_refused() -> Self {
        Self::of(403, "", "upgrade_failed")
    }

    /// The upstream stream ended before its response began. `transport_failure` is the transport's
    /// reason, empty when it has none; it is told in the details, not to the client.
    pub fn upstream_reset(reason: ResetReason, transport_failure: &str, retried: bool) -> Self {
        let latest = if retried { "retried and the latest " } else { "" };
        let separator = if transport_failure.is_empty() { "" } else { "|" };
        let text = reason.text();
        let body = format!("upstream connect error or disconnect/reset before headers. {latest}reset reason: {text}");
        let details = format!("upstream_reset_before_response_started{{{text}{separator}{transport_failure}}}");
        Self {
            status: if reason == ResetReason::ProtocolError { 502 } else { 503 },
            body: body.into(),
            details: details.replace(char::is_whitespace, "_").into(),
            grpc_status: None,
        }
    }

    /// The head of the answer and the body to send after it. A HEAD request gets the head only: the
    /// caller leaves the body out.
    pub fn response(&self, version: Version, is_grpc: bool) -> (ResponseHead, &[u8]) {
        let mut head = ResponseHead { version, status: self.status, ..ResponseHead::default() };
        if is_grpc {
            self.write_grpc(&mut head);
            return (head, b"");
        }
        if !self.body.is_empty() {
            let mut digits = itoa::Buffer::new();
            head.headers.append(b"content-length", digits.format(self.body.len()).as_bytes());
            head.headers.append(b"content-type", b"text/plain");
        }
        (head, self.body.as_bytes())
    }

    fn write_grpc(&self, head: &mut ResponseHead) {
        head.status = 200;
        let status = self.grpc_status.unwrap_or_else(|| grpc::of_http(self.status));
        head.headers.append(b"content-type", b"application/grpc");
        head.headers.append(b"grpc-status", itoa::Buffer::new().format(status).as_bytes());
        if !self.body.is_empty() {
            head.headers.append(b"grpc-message", &percent_encoded(self.body.as_bytes()));
        }
    }
}

/// `grpc-message`: bytes outside printable ASCII, and `%`, are escaped.
fn percent_encoded(text: &[u8]) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut output = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'~' if *byte != b'%' => output.push(*byte),
            _ => output.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_says_why_in_body_and_details() {
        let reason = ResetReason::RemoteConnectionFailure;
        let reply = LocalReply::upstream_reset(reason, "delayed connect error: Connection refused", false);
        assert_eq!(
            reply.body,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
        );
        assert_eq!(
            reply.details,
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
        let retried = LocalReply::upstream_reset(ResetReason::ConnectionTermination, "", true);
        assert!(retried.body.ends_with("headers. retried and the latest reset reason: connection termination"));
        assert_eq!(LocalReply::upstream_reset(ResetReason::ProtocolError, "", false).status, 502);
    }

    #[test]
    fn a_body_has_a_length_and_a_type_and_no_body_has_neither() {
        let reply = LocalReply::no_healthy_upstream();
        let (head, body) = reply.response(Version::Http11, false);
        assert_eq!((head.status, body), (503, &b"no healthy upstream"[..]));
        assert_eq!(head.headers.get_str("content-length"), Some("19"));
        assert_eq!(head.headers.get_str("content-type"), Some("text/plain"));
        let not_found = LocalReply::route_not_found();
        assert!(not_found.response(Version::Http11, false).0.headers.is_empty());
    }

    #[test]
    fn a_grpc_request_gets_its_status_in_the_headers() {
        let denied = LocalReply::of(403, "RBAC: 100% denied\n", "d");
        let (head, body) = denied.response(Version::Http2, true);
        assert_eq!((head.status, body), (200, &b""[..]));
        assert_eq!(head.headers.get_str("grpc-status"), Some("7"));
        assert_eq!(head.headers.get_str("grpc-message"), Some("RBAC: 100%25 denied%0A"));
        let own = LocalReply { grpc_status: Some(8), ..LocalReply::route_not_found() };
        assert_eq!(own.response(Version::Http2, true).0.headers.get_str("grpc-status"), Some("8"));
    }
}
