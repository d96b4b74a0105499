//! What a failed attempt becomes: status, response flags and details, in Envoy's words.

use super::flight::Failure;
use super::leg::LegError;
use super::reply::Reply;
use super::session::Pass;
use crate::stream_info::ResponseFlags;
use crate::upstream::{ConnectError, ConnectErrorKind};
use dpu_proxy_core::policy::local_reply::{LocalReply, ResetReason};

/// The answer to a request whose last attempt failed before a response came.
pub fn reply(failure: &Failure, was_retried: bool, is_request_whole: bool) -> Reply {
    match failure {
        Failure::Overflow => overflow(was_retried),
        Failure::Connect(error) => connect(error, was_retried),
        Failure::Upstream(error) => upstream(*error, was_retried),
        Failure::Request(LegError::Malformed(details)) => {
            Reply::new(400, *details).text("Bad Request").flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR)
        }
        Failure::Timeout | Failure::CalleeTimeout => {
            Reply::from(LocalReply::timeout()).flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
        }
        Failure::PerTryTimeout | Failure::CalleePerTryTimeout => {
            Reply::from(LocalReply::per_try_timeout()).flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
        }
        Failure::StreamTimeout => Reply::from(LocalReply::max_stream_duration(is_request_whole)),
        Failure::PerTryIdle => Reply::from(LocalReply::timeout())
            .details("upstream_per_try_idle_timeout".to_owned())
            .flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        Failure::Idle => {
            Reply::from(LocalReply::stream_idle_timeout(is_request_whole)).flag(ResponseFlags::STREAM_IDLE_TIMEOUT)
        }
        Failure::RequestTimeout => Reply::from(LocalReply::request_timeout()),
        Failure::Request(_) | Failure::ClientGone => {
            Reply::new(400, "downstream_remote_disconnect").flag(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION)
        }
    }
}

/// A circuit breaker is open.
pub fn overflow(was_retried: bool) -> Reply {
    reset(ResetReason::Overflow, "", was_retried, ResponseFlags::UPSTREAM_OVERFLOW).header("x-envoy-overloaded", "true")
}

/// A callee on this host whose inbound chain does not speak HTTP.
pub fn no_http() -> Reply {
    let reason = "the callee's filter chain does not speak HTTP";
    reset(ResetReason::ProtocolError, reason, false, ResponseFlags::UPSTREAM_PROTOCOL_ERROR)
}

fn connect(error: &ConnectError, was_retried: bool) -> Reply {
    let (reason, transport) = match error.kind {
        ConnectErrorKind::Timeout => (ResetReason::ConnectionTimeout, String::new()),
        _ => (ResetReason::RemoteConnectionFailure, error.transport_failure_reason()),
    };
    reset(reason, &transport, was_retried, ResponseFlags::UPSTREAM_CONNECTION_FAILURE)
}

fn upstream(error: LegError, was_retried: bool) -> Reply {
    let (reason, transport, flags) = match error {
        LegError::Cut | LegError::Ended => {
            (ResetReason::ConnectionTermination, "", ResponseFlags::UPSTREAM_CONNECTION_TERMINATION)
        }
        LegError::Reset(h2::Reason::REFUSED_STREAM) => {
            (ResetReason::RemoteRefusedStream, "", ResponseFlags::UPSTREAM_REMOTE_RESET)
        }
        LegError::Reset(_) => (ResetReason::RemoteReset, "", ResponseFlags::UPSTREAM_REMOTE_RESET),
        LegError::Malformed(details) => (ResetReason::ProtocolError, details, ResponseFlags::UPSTREAM_PROTOCOL_ERROR),
    };
    reset(reason, transport, was_retried, flags)
}

fn reset(reason: ResetReason, transport: &str, was_retried: bool, flags: ResponseFlags) -> Reply {
    Reply::from(LocalReply::upstream_reset(reason, transport, was_retried)).flag(flags)
}

/// Notes a response that was cut short.
pub fn cut(failure: &Failure, pass: &mut Pass) {
    let (details, flags) = match failure {
        Failure::Upstream(LegError::Cut) => (
            "upstream_reset_after_response_started{connection_termination}",
            ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        ),
        Failure::Upstream(LegError::Reset(_)) | Failure::CalleeTimeout | Failure::CalleePerTryTimeout => {
            ("upstream_reset_after_response_started{remote_reset}", ResponseFlags::UPSTREAM_REMOTE_RESET)
        }
        Failure::Upstream(LegError::Malformed(_) | LegError::Ended) => {
            ("upstream_reset_after_response_started{protocol_error}", ResponseFlags::UPSTREAM_PROTOCOL_ERROR)
        }
        Failure::PerTryIdle => ("upstream_per_try_idle_timeout", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        Failure::Timeout | Failure::PerTryTimeout => ("response_timeout", ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
        Failure::StreamTimeout => ("max_duration_timeout", ResponseFlags::default()),
        Failure::Idle => ("stream_idle_timeout", ResponseFlags::STREAM_IDLE_TIMEOUT),
        Failure::RequestTimeout => ("request_overall_timeout", ResponseFlags::default()),
        Failure::Request(_) => ("http1.codec_error", ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR),
        Failure::ClientGone | Failure::Overflow | Failure::Connect(_) => {
            ("downstream_remote_disconnect", ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION)
        }
    };
    pass.details(details);
    pass.info.flags.insert(flags);
}
