//! Access-log lines and header templates: a compiled template and the facts in, text out.
//!
//! `FormatContext` says what is known of a request or connection; the shell implements it. What is
//! not known prints as `-` (or nothing, in header templates).

pub mod filter;
pub mod json;
pub mod text;
pub mod time;

use crate::head::{HeaderBlock, RequestHead, ResponseHead};
use crate::model::{AccessLog, LogFormat};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

pub use text::{Missing, render};

/// The facts that templates name; `None` or empty is "not known".
pub trait FormatContext {
    /// When the request or connection began.
    fn start_time(&self) -> SystemTime;

    fn request(&self) -> Option<&RequestHead> {
        None
    }
    fn response(&self) -> Option<&ResponseHead> {
        None
    }
    fn response_trailers(&self) -> Option<&HeaderBlock> {
        None
    }
    /// "HTTP/1.1".
    fn protocol(&self) -> Option<&str> {
        None
    }
    /// `None` prints as 0.
    fn response_code(&self) -> Option<u16> {
        None
    }
    fn response_code_details(&self) -> Option<&str> {
        None
    }
    fn connection_termination_details(&self) -> Option<&str> {
        None
    }
    /// Calls back with the short name of each flag, in Envoy's order.
    fn response_flags(&self, _each: &mut dyn FnMut(&str)) {}
    fn bytes_received(&self) -> u64 {
        0
    }
    fn bytes_sent(&self) -> u64 {
        0
    }
    fn duration(&self) -> Option<Duration> {
        None
    }
    fn request_duration(&self) -> Option<Duration> {
        None
    }
    fn response_duration(&self) -> Option<Duration> {
        None
    }
    fn upstream_host(&self) -> Option<SocketAddr> {
        None
    }
    fn upstream_cluster(&self) -> Option<&str> {
        None
    }
    fn upstream_local_address(&self) -> Option<SocketAddr> {
        None
    }
    fn upstream_transport_failure_reason(&self) -> Option<&str> {
        None
    }
    fn downstream_local_address(&self) -> Option<SocketAddr> {
        None
    }
    /// After `x-forwarded-for` was taken into account.
    fn downstream_remote_address(&self) -> Option<SocketAddr> {
        None
    }
    fn downstream_direct_remote_address(&self) -> Option<SocketAddr> {
        None
    }
    fn downstream_peer_uri_sans(&self) -> &[String] {
        &[]
    }
    fn downstream_peer_subject(&self) -> Option<&str> {
        None
    }
    fn downstream_local_uri_sans(&self) -> &[String] {
        &[]
    }
    fn downstream_tls_version(&self) -> Option<&str> {
        None
    }
    fn downstream_tls_cipher(&self) -> Option<&str> {
        None
    }
    fn requested_server_name(&self) -> Option<&str> {
        None
    }
    fn route_name(&self) -> Option<&str> {
        None
    }
    fn virtual_cluster_name(&self) -> Option<&str> {
        None
    }
    fn connection_id(&self) -> Option<u64> {
        None
    }
    fn stream_id(&self) -> Option<&str> {
        None
    }
    fn hostname(&self) -> Option<&str> {
        None
    }
    fn grpc_status(&self) -> Option<u32> {
        None
    }
    fn attempt_count(&self) -> Option<u32> {
        None
    }
    fn filter_chain_name(&self) -> Option<&str> {
        None
    }
}

/// Appends the line of an access log, with its end, unless its filter leaves it out. False: left out.
pub fn log_line(log: &AccessLog, context: &dyn FormatContext, output: &mut Vec<u8>) -> bool {
    if log.filter.as_ref().is_some_and(|filter| !filter::keeps(filter, context)) {
        return false;
    }
    match &log.format {
        LogFormat::Text(template) => render(template, context, Missing::Dash, output),
        LogFormat::Json(fields) => {
            json::render(fields, context, output);
            output.push(b'\n');
        }
    }
    true
}

#[cfg(test)]
mod tests;
