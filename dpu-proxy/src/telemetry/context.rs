//! What is known of a request or connection, for `%COMMAND%`s in access logs and header edits.

use crate::connection::Connection;
use crate::stream_info::StreamInfo;
use dpu_proxy_core::format::FormatContext;
use dpu_proxy_core::head::{RequestHead, ResponseHead, Version};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// The facts of one request or connection.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub connection: &'a Connection,
    pub info: &'a StreamInfo,
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    pub hostname: &'a str,
}

fn known(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// As Envoy names it.
pub fn protocol_name(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
        Version::Http2 => "HTTP/2",
    }
}

impl FormatContext for Context<'_> {
    fn start_time(&self) -> SystemTime {
        self.info.started_wall
    }
    fn request(&self) -> Option<&RequestHead> {
        self.request
    }
    fn response(&self) -> Option<&ResponseHead> {
        self.response
    }
    fn protocol(&self) -> Option<&str> {
        self.request.map(|head| protocol_name(head.version))
    }
    fn response_code(&self) -> Option<u16> {
        Some(self.info.status).filter(|status| *status != 0)
    }
    fn response_code_details(&self) -> Option<&str> {
        known(&self.info.details)
    }
    fn connection_termination_details(&self) -> Option<&str> {
        known(&self.info.connection_termination_details)
    }
    fn response_flags(&self, each: &mut dyn FnMut(&str)) {
        self.info.flags.names().for_each(each);
    }
    fn bytes_received(&self) -> u64 {
        self.info.bytes_received
    }
    fn bytes_sent(&self) -> u64 {
        self.info.bytes_sent
    }
    fn duration(&self) -> Option<Duration> {
        Some(self.info.duration.unwrap_or_else(|| self.info.elapsed()))
    }
    fn request_duration(&self) -> Option<Duration> {
        self.info.request_ended
    }
    fn response_duration(&self) -> Option<Duration> {
        self.info.response_started
    }
    fn upstream_host(&self) -> Option<SocketAddr> {
        self.info.upstream.as_ref()?.endpoint.as_ref().map(|endpoint| endpoint.address)
    }
    fn upstream_cluster(&self) -> Option<&str> {
        self.info.upstream.as_ref().map(|upstream| upstream.cluster.cluster.name.as_str())
    }
    fn upstream_local_address(&self) -> Option<SocketAddr> {
        self.info.upstream.as_ref()?.local_address
    }
    fn upstream_transport_failure_reason(&self) -> Option<&str> {
        self.info.upstream.as_ref().and_then(|upstream| known(&upstream.transport_failure))
    }
    fn downstream_local_address(&self) -> Option<SocketAddr> {
        Some(self.connection.original_destination)
    }
    fn downstream_remote_address(&self) -> Option<SocketAddr> {
        Some(self.info.remote.unwrap_or(self.connection.remote))
    }
    fn downstream_direct_remote_address(&self) -> Option<SocketAddr> {
        Some(self.connection.direct_remote)
    }
    fn downstream_peer_uri_sans(&self) -> &[String] {
        self.connection.peer().map_or(&[], |peer| &peer.uri_sans)
    }
    fn downstream_peer_subject(&self) -> Option<&str> {
        self.connection.peer().and_then(|peer| known(&peer.subject))
    }
    fn downstream_local_uri_sans(&self) -> &[String] {
        self.connection.tls.as_ref().map_or(&[], |tls| &tls.local_uri_sans)
    }
    fn downstream_tls_version(&self) -> Option<&str> {
        self.connection.tls.as_ref().and_then(|tls| known(tls.version))
    }
    fn downstream_tls_cipher(&self) -> Option<&str> {
        self.connection.tls.as_ref().and_then(|tls| known(&tls.cipher))
    }
    fn requested_server_name(&self) -> Option<&str> {
        known(&self.connection.sni)
    }
    fn route_name(&self) -> Option<&str> {
        known(&self.info.route)
    }
    fn connection_id(&self) -> Option<u64> {
        Some(self.connection.id)
    }
    fn stream_id(&self) -> Option<&str> {
        known(&self.info.stream_id)
    }
    fn hostname(&self) -> Option<&str> {
        known(self.hostname)
    }
    fn grpc_status(&self) -> Option<u32> {
        self.info.grpc_status
    }
    fn attempt_count(&self) -> Option<u32> {
        Some(self.info.attempts)
    }
    fn filter_chain_name(&self) -> Option<&str> {
        known(&self.connection.chain.name)
    }
}
