//! A template and its facts → text.

use super::{FormatContext, time};
use crate::head::{HeaderBlock, RequestHead, ResponseHead};
use crate::matching::header::HeaderSource;
use crate::model::{Command, FormatPart, FormatTemplate};
use crate::policy::grpc;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What stands for a fact that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// `-`, in access logs.
    Dash,
    /// Nothing, in header templates.
    Empty,
}

/// The heads that a template reads. They take the place of the context's where a head is being edited.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heads<'a> {
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    pub trailers: Option<&'a HeaderBlock>,
}

impl<'a> Heads<'a> {
    /// Those of the context.
    pub fn of(context: &'a dyn FormatContext) -> Self {
        Self { request: context.request(), response: context.response(), trailers: context.response_trailers() }
    }
}

/// Appends the text of a template.
pub fn render(template: &FormatTemplate, context: &dyn FormatContext, missing: Missing, output: &mut Vec<u8>) {
    render_with(template, &Heads::of(context), context, missing, output);
}

/// Appends the text of a template that reads these heads.
pub fn render_with(
    template: &FormatTemplate,
    heads: &Heads<'_>,
    context: &dyn FormatContext,
    missing: Missing,
    output: &mut Vec<u8>,
) {
    for part in &template.parts {
        match part {
            FormatPart::Literal(text) => output.extend_from_slice(text.as_bytes()),
            FormatPart::Command { command, max_length } => {
                if !command_text(command, *max_length, heads, context, output) && missing == Missing::Dash {
                    output.push(b'-');
                }
            }
        }
    }
}

/// Appends the text of a command, cut to its length; false and nothing when it is not known.
pub fn command_text(
    command: &Command,
    max_length: Option<usize>,
    heads: &Heads<'_>,
    context: &dyn FormatContext,
    output: &mut Vec<u8>,
) -> bool {
    let start = output.len();
    let known = write(command, heads, context, output).is_some();
    if let Some(limit) = max_length {
        output.truncate(start.saturating_add(limit));
    }
    known
}

fn write(command: &Command, heads: &Heads<'_>, context: &dyn FormatContext, output: &mut Vec<u8>) -> Option<()> {
    match command {
        Command::StartTime(format) => time::format(format, context.start_time(), output),
        Command::Request(name, other) => {
            let head = heads.request?;
            output.extend_from_slice(request(head, name).or_else(|| request(head, other.as_deref()?))?);
        }
        Command::Response(name, other) => {
            let head = heads.response?;
            match name.as_str() {
                ":status" => number(u64::from(head.status), output),
                _ => output.extend_from_slice(header(&head.headers, name, other.as_deref())?),
            }
        }
        Command::Trailer(name, other) => {
            output.extend_from_slice(header(heads.trailers?, name, other.as_deref())?);
        }
        Command::ResponseFlags => flags(context, output),
        Command::ResponseCode => number(u64::from(context.response_code().unwrap_or(0)), output),
        Command::BytesReceived => number(context.bytes_received(), output),
        Command::BytesSent => number(context.bytes_sent(), output),
        Command::Duration => milliseconds(context.duration()?, output),
        Command::RequestDuration => milliseconds(context.request_duration()?, output),
        Command::ResponseDuration => milliseconds(context.response_duration()?, output),
        Command::ConnectionId => number(context.connection_id()?, output),
        Command::AttemptCount => number(u64::from(context.attempt_count()?), output),
        Command::GrpcStatus => grpc_status(context.grpc_status()?, output),
        Command::DownstreamPeerUriSan => list(context.downstream_peer_uri_sans(), output)?,
        Command::DownstreamLocalUriSan => list(context.downstream_local_uri_sans(), output)?,
        _ => return address(command, context, output).or_else(|| named(command, context, output)),
    }
    Some(())
}

fn address(command: &Command, context: &dyn FormatContext, output: &mut Vec<u8>) -> Option<()> {
    match command {
        Command::UpstreamHost => whole(context.upstream_host()?, output),
        Command::UpstreamLocalAddress => whole(context.upstream_local_address()?, output),
        Command::DownstreamLocalAddress => whole(context.downstream_local_address()?, output),
        Command::DownstreamLocalAddressWithoutPort => ip(context.downstream_local_address()?, output),
        Command::DownstreamLocalPort => number(u64::from(context.downstream_local_address()?.port()), output),
        Command::DownstreamRemoteAddress => whole(context.downstream_remote_address()?, output),
        Command::DownstreamRemoteAddressWithoutPort => ip(context.downstream_remote_address()?, output),
        Command::DownstreamDirectRemoteAddress => whole(context.downstream_direct_remote_address()?, output),
        Command::DownstreamDirectRemoteAddressWithoutPort => ip(context.downstream_direct_remote_address()?, output),
        _ => return None,
    }
    Some(())
}

/// Facts that are text already.
fn named(command: &Command, context: &dyn FormatContext, output: &mut Vec<u8>) -> Option<()> {
    let text = match command {
        Command::Protocol => context.protocol(),
        Command::ResponseCodeDetails => context.response_code_details(),
        Command::ConnectionTerminationDetails => context.connection_termination_details(),
        Command::UpstreamCluster | Command::UpstreamClusterRaw => context.upstream_cluster(),
        Command::UpstreamTransportFailureReason => context.upstream_transport_failure_reason(),
        Command::DownstreamPeerSubject => context.downstream_peer_subject(),
        Command::DownstreamTlsVersion => context.downstream_tls_version(),
        Command::DownstreamTlsCipher => context.downstream_tls_cipher(),
        Command::RequestedServerName => context.requested_server_name(),
        Command::RouteName => context.route_name(),
        Command::VirtualClusterName => context.virtual_cluster_name(),
        Command::StreamId => context.stream_id(),
        Command::Hostname => context.hostname(),
        Command::FilterChainName => context.filter_chain_name(),
        _ => None,
    };
    let text = text.filter(|text| !text.is_empty())?;
    output.extend_from_slice(text.as_bytes());
    Some(())
}

fn request<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    match name.starts_with(':') || name == "host" {
        true => head.header(name).filter(|value| !value.is_empty()),
        false => head.block().get(name.as_bytes()),
    }
}

fn header<'a>(block: &'a HeaderBlock, name: &str, other: Option<&str>) -> Option<&'a [u8]> {
    block.get(name.as_bytes()).or_else(|| block.get(other?.as_bytes()))
}

/// No flag is a dash everywhere, also in JSON and header templates.
fn flags(context: &dyn FormatContext, output: &mut Vec<u8>) {
    let start = output.len();
    context.response_flags(&mut |flag| {
        if output.len() > start {
            output.push(b',');
        }
        output.extend_from_slice(flag.as_bytes());
    });
    if output.len() == start {
        output.push(b'-');
    }
}

fn list(items: &[String], output: &mut Vec<u8>) -> Option<()> {
    let (first, rest) = items.split_first()?;
    output.extend_from_slice(first.as_bytes());
    for item in rest {
        output.push(b',');
        output.extend_from_slice(item.as_bytes());
    }
    Some(())
}

fn grpc_status(status: u32, output: &mut Vec<u8>) {
    match grpc::name(status) {
        Some(name) => output.extend_from_slice(name.as_bytes()),
        None => number(u64::from(status), output),
    }
}

fn number(value: u64, output: &mut Vec<u8>) {
    output.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn milliseconds(duration: Duration, output: &mut Vec<u8>) {
    number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), output);
}

fn whole(address: SocketAddr, output: &mut Vec<u8>) {
    if address.is_ipv6() {
        return write!(output, "{address}").expect("a vector takes every byte");
    }
    ip(address, output);
    output.push(b':');
    number(u64::from(address.port()), output);
}

/// IPv4 by hand: access logs hold four addresses a line, and `Display` pads.
fn ip(address: SocketAddr, output: &mut Vec<u8>) {
    let IpAddr::V4(address) = address.ip() else {
        return write!(output, "{}", address.ip()).expect("a vector takes every byte");
    };
    for (index, octet) in address.octets().into_iter().enumerate() {
        if index > 0 {
            output.push(b'.');
        }
        number(u64::from(octet), output);
    }
}
