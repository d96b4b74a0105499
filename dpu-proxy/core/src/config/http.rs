//! The HTTP connection manager.

use super::access_log;
use super::any;
use super::cluster::config_source;
use super::convert::{duration_or, flag, number, timeout, unknown_enum};
use super::http_filter;
use super::report::{At, ConfigError};
use super::route::route_configuration;
use crate::model::{
    ClientCertDetails, CodecType, EscapedSlashes, ForwardClientCert, Http1Options, Http2Options, HttpConnectionManager,
    RouteSource, ServerHeader, UnderscoresInHeaders,
};
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_api::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use mesh_api::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use prost::Name;
use std::sync::Arc;
use std::time::Duration;

/// `HttpConnectionManager`, with Envoy's defaults.
pub fn connection_manager(
    at: At<'_>,
    proto: &hcm::HttpConnectionManager,
) -> Result<HttpConnectionManager, ConfigError> {
    refuse_unknown(at, proto)?;
    let (filters, router) = http_filter::filters(at, &proto.http_filters)?;
    let common = proto.common_http_protocol_options.unwrap_or_default();
    let at_common = at.field("common_http_protocol_options");
    let http1 = Http1::of(at.field("http_protocol_options"), proto.http_protocol_options.as_ref())?;
    if http1.preserve_case {
        at.field("http_protocol_options").unsupported("header names are sent in lower case to clients");
    }
    let (forward_client_cert, set_client_cert_details) = client_cert(at, proto)?;
    let seconds = Duration::from_secs;
    Ok(HttpConnectionManager {
        stat_prefix: proto.stat_prefix.clone(),
        codec: codec(at, proto.codec_type)?,
        routes: routes(at, proto)?,
        filters,
        router,
        server_name: Some(proto.server_name.clone())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "envoy".to_owned()),
        server_header: server_header(at, proto.server_header_transformation)?,
        use_remote_address: flag(proto.use_remote_address, false),
        xff_num_trusted_hops: proto.xff_num_trusted_hops,
        skip_xff_append: proto.skip_xff_append,
        via: proto.via.clone(),
        generate_request_id: flag(proto.generate_request_id, true),
        preserve_external_request_id: proto.preserve_external_request_id,
        always_set_request_id_in_response: proto.always_set_request_id_in_response,
        forward_client_cert,
        set_client_cert_details,
        proxy_100_continue: proto.proxy_100_continue,
        normalize_path: flag(proto.normalize_path, false),
        merge_slashes: proto.merge_slashes,
        escaped_slashes: escaped_slashes(at, proto.path_with_escaped_slashes_action)?,
        strip_matching_host_port: proto.strip_matching_host_port,
        strip_any_host_port: strips_any_port(proto),
        upgrades: upgrades(at, &proto.upgrade_configs),
        access_logs: access_log::logs(at, "access_log", &proto.access_log)?,
        stream_idle_timeout: timeout(
            at.field("stream_idle_timeout"),
            proto.stream_idle_timeout.as_ref(),
            Some(seconds(300)),
        )?,
        request_timeout: timeout(at.field("request_timeout"), proto.request_timeout.as_ref(), None)?,
        request_headers_timeout: timeout(
            at.field("request_headers_timeout"),
            proto.request_headers_timeout.as_ref(),
            None,
        )?,
        idle_timeout: timeout(at_common.field("idle_timeout"), common.idle_timeout.as_ref(), Some(seconds(3600)))?,
        max_connection_duration: timeout(
            at_common.field("max_connection_duration"),
            common.max_connection_duration.as_ref(),
            None,
        )?,
        max_requests_per_connection: number(common.max_requests_per_connection).filter(|count| *count > 0),
        delayed_close_timeout: duration_or(
            at.field("delayed_close_timeout"),
            proto.delayed_close_timeout.as_ref(),
            seconds(1),
        )?,
        max_request_headers_kb: limit(at.field("max_request_headers_kb"), number(proto.max_request_headers_kb), 60)?,
        max_headers_count: limit(at_common.field("max_headers_count"), number(common.max_headers_count), 100)?,
        underscores_in_headers: underscores(at_common, common.headers_with_underscores_action)?,
        http1: http1.options,
        http2: http2_options(at.field("http2_protocol_options"), proto.http2_protocol_options.as_ref()),
    })
}

/// What would change who is let in, or how requests are read, if it were left out.
fn refuse_unknown(at: At<'_>, proto: &hcm::HttpConnectionManager) -> Result<(), ConfigError> {
    let asked = [
        ("forward_client_cert_matcher", proto.forward_client_cert_matcher.is_some()),
        ("original_ip_detection_extensions", !proto.original_ip_detection_extensions.is_empty()),
        ("early_header_mutation_extensions", !proto.early_header_mutation_extensions.is_empty()),
        ("typed_header_validation_config", proto.typed_header_validation_config.is_some()),
        ("path_normalization_options", proto.path_normalization_options.is_some()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(at.field(field).refuse("not supported; leave it out")),
        None => request_id(at, proto),
    }
}

fn request_id(at: At<'_>, proto: &hcm::HttpConnectionManager) -> Result<(), ConfigError> {
    let at = at.field("request_id_extension");
    let config = proto.request_id_extension.as_ref().and_then(|extension| extension.typed_config.as_ref());
    match config {
        Some(config) if any::type_name(config) != UuidRequestIdConfig::full_name() => {
            Err(at.refuse(format!("{} is not supported; UuidRequestIdConfig is", any::shown(any::type_name(config)))))
        }
        _ => Ok(()),
    }
}

fn routes(at: At<'_>, proto: &hcm::HttpConnectionManager) -> Result<RouteSource, ConfigError> {
    use hcm::http_connection_manager::RouteSpecifier;
    match &proto.route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => {
            Ok(RouteSource::Inline(Arc::new(route_configuration(at.field("route_config"), config, true)?)))
        }
        Some(RouteSpecifier::Rds(rds)) => {
            let at = at.field("rds");
            config_source(at.field("config_source"), rds.config_source.as_ref())?;
            match rds.route_config_name.is_empty() {
                true => Err(at.field("route_config_name").refuse("required")),
                false => Ok(RouteSource::Rds(rds.route_config_name.clone())),
            }
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            Err(at.field("scoped_routes").refuse("not supported; use rds or route_config"))
        }
        None => Err(at.refuse("give rds or route_config")),
    }
}

fn codec(at: At<'_>, value: i32) -> Result<CodecType, ConfigError> {
    use hcm::http_connection_manager::CodecType as Codec;
    match Codec::try_from(value) {
        Ok(Codec::Auto) => Ok(CodecType::Auto),
        Ok(Codec::Http1) => Ok(CodecType::Http1),
        Ok(Codec::Http2) => Ok(CodecType::Http2),
        Ok(Codec::Http3) => Err(at.field("codec_type").refuse("HTTP/3 is not supported; use AUTO")),
        Err(_) => Err(at.field("codec_type").refuse(unknown_enum(value))),
    }
}

fn server_header(at: At<'_>, value: i32) -> Result<ServerHeader, ConfigError> {
    use hcm::http_connection_manager::ServerHeaderTransformation as Transformation;
    match Transformation::try_from(value) {
        Ok(Transformation::Overwrite) => Ok(ServerHeader::Overwrite),
        Ok(Transformation::AppendIfAbsent) => Ok(ServerHeader::AppendIfAbsent),
        Ok(Transformation::PassThrough) => Ok(ServerHeader::PassThrough),
        Err(_) => Err(at.field("server_header_transformation").refuse(unknown_enum(value))),
    }
}

fn client_cert(
    at: At<'_>,
    proto: &hcm::HttpConnectionManager,
) -> Result<(ForwardClientCert, ClientCertDetails), ConfigError> {
    use hcm::http_connection_manager::ForwardClientCertDetails as Forward;
    let forward = match Forward::try_from(proto.forward_client_cert_details) {
        Ok(Forward::Sanitize) => ForwardClientCert::Sanitize,
        Ok(Forward::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Ok(Forward::AppendForward) => ForwardClientCert::AppendForward,
        Ok(Forward::SanitizeSet) => ForwardClientCert::SanitizeSet,
        Ok(Forward::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
        Err(_) => {
            return Err(at
                .field("forward_client_cert_details")
                .refuse(unknown_enum(proto.forward_client_cert_details)));
        }
    };
    let details = proto.set_current_client_cert_details.as_ref();
    let details = details.map_or_else(ClientCertDetails::default, |set| ClientCertDetails {
        subject: flag(set.subject, false),
        cert: set.cert,
        chain: set.chain,
        dns: set.dns,
        uri: set.uri,
    });
    Ok((forward, details))
}

fn escaped_slashes(at: At<'_>, value: i32) -> Result<EscapedSlashes, ConfigError> {
    use hcm::http_connection_manager::PathWithEscapedSlashesAction as Action;
    match Action::try_from(value) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => Ok(EscapedSlashes::KeepUnchanged),
        Ok(Action::RejectRequest) => Ok(EscapedSlashes::RejectRequest),
        Ok(Action::UnescapeAndRedirect) => Ok(EscapedSlashes::UnescapeAndRedirect),
        Ok(Action::UnescapeAndForward) => Ok(EscapedSlashes::UnescapeAndForward),
        Err(_) => Err(at.field("path_with_escaped_slashes_action").refuse(unknown_enum(value))),
    }
}

fn strips_any_port(proto: &hcm::HttpConnectionManager) -> bool {
    use hcm::http_connection_manager::StripPortMode;
    matches!(proto.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)))
}

fn upgrades(at: At<'_>, protos: &[hcm::http_connection_manager::UpgradeConfig]) -> Vec<String> {
    for (index, proto) in protos.iter().enumerate() {
        if !proto.filters.is_empty() {
            at.item("upgrade_configs", index).field("filters").unsupported("the connection manager's own filters run");
        }
    }
    let enabled = protos.iter().filter(|proto| flag(proto.enabled, true));
    enabled.map(|proto| proto.upgrade_type.to_ascii_lowercase()).collect()
}

fn limit(at: At<'_>, value: Option<u32>, default: u32) -> Result<u32, ConfigError> {
    match value.unwrap_or(default) {
        0 => Err(at.refuse(format!("must be more than 0; the default is {default}"))),
        // Envoy's limit.
        value if value > 8192 => Err(at.refuse("must be at most 8192")),
        value => Ok(value),
    }
}

fn underscores(at: At<'_>, value: i32) -> Result<UnderscoresInHeaders, ConfigError> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    match Action::try_from(value) {
        Ok(Action::Allow) => Ok(UnderscoresInHeaders::Allow),
        Ok(Action::RejectRequest) => Ok(UnderscoresInHeaders::RejectRequest),
        Ok(Action::DropHeader) => Ok(UnderscoresInHeaders::DropHeader),
        Err(_) => Err(at.field("headers_with_underscores_action").refuse(unknown_enum(value))),
    }
}

/// HTTP/1 options of either side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http1 {
    pub options: Http1Options,
    pub preserve_case: bool,
}

impl Http1 {
    /// Unset options are Envoy's defaults.
    pub fn of(at: At<'_>, proto: Option<&core::Http1ProtocolOptions>) -> Result<Self, ConfigError> {
        use core::http1_protocol_options::header_key_format::HeaderFormat;
        let Some(proto) = proto else {
            let options = Http1Options { allow_absolute_url: true, ..Http1Options::default() };
            return Ok(Self { options, preserve_case: false });
        };
        let format = proto.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
        let at = at.field("header_key_format");
        let preserve_case = match format {
            Some(HeaderFormat::StatefulFormatter(extension)) => {
                let config = extension.typed_config.clone().unwrap_or_default();
                any::expect::<PreserveCaseFormatterConfig>(at.field("stateful_formatter"), &config)?;
                true
            }
            _ => false,
        };
        let options = Http1Options {
            accept_http_10: proto.accept_http_10,
            default_host_for_http_10: proto.default_host_for_http_10.clone(),
            allow_absolute_url: flag(proto.allow_absolute_url, true),
            allow_chunked_length: proto.allow_chunked_length,
            enable_trailers: proto.enable_trailers,
            proper_case_headers: matches!(format, Some(HeaderFormat::ProperCaseWords(_))),
        };
        Ok(Self { options, preserve_case })
    }
}

/// HTTP/2 options of either side.
pub fn http2_options(at: At<'_>, proto: Option<&core::Http2ProtocolOptions>) -> Http2Options {
    let Some(proto) = proto else { return Http2Options::default() };
    if proto.allow_metadata {
        at.field("allow_metadata").unsupported("METADATA frames are ignored");
    }
    if proto.allow_connect {
        at.field("allow_connect").unsupported("no extended CONNECT over HTTP/2; upgrades work over HTTP/1.1");
    }
    Http2Options {
        max_concurrent_streams: number(proto.max_concurrent_streams),
        initial_stream_window_size: number(proto.initial_stream_window_size),
        initial_connection_window_size: number(proto.initial_connection_window_size),
    }
}
