//! Finds every field that is set and that no module here reads, so that nothing is dropped silently.
//!
//! `READ` names, for each message of Envoy's API that is converted, the fields that are carried out, that are refused or
//! reported by their converter, or that mean nothing here. A field that is set and not named there is reported with its path.
//! A message that is not in the list is read as a whole by whoever reads the field that holds it.

use super::descriptors::converted;
use super::report::At;
use prost_reflect::{DynamicMessage, MapKey, MessageDescriptor, ReflectMessage, Value};

/// Message without the prefix `envoy.`, and fields, separated by spaces.
const READ: &[(&str, &str)] = &[
    (
        "config.bootstrap.v3.Bootstrap",
        "node static_resources dynamic_resources admin stats_flush_interval stats_flush_on_admin",
    ),
    ("config.bootstrap.v3.Bootstrap.StaticResources", "listeners clusters secrets"),
    ("config.bootstrap.v3.Bootstrap.DynamicResources", "lds_config cds_config ads_config"),
    ("config.bootstrap.v3.Admin", "address access_log access_log_path profile_path"),
    (
        "config.listener.v3.Listener",
        "name address stat_prefix filter_chains fcds_config filter_chain_matcher use_original_dst default_filter_chain \
         per_connection_buffer_limit_bytes metadata deprecated_v1 listener_filters listener_filters_timeout \
         continue_on_listener_filters_timeout transparent traffic_direction udp_listener_config api_listener reuse_port \
         enable_reuse_port access_log tcp_backlog_size bind_to_port internal_listener \
         max_connections_to_accept_per_socket_event",
    ),
    (
        "config.listener.v3.FilterChain",
        "filter_chain_match filters use_proxy_proto metadata transport_socket transport_socket_connect_timeout name",
    ),
    (
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type stat_prefix rds route_config scoped_routes http_filters common_http_protocol_options \
         http_protocol_options http2_protocol_options server_name server_header_transformation max_request_headers_kb \
         stream_idle_timeout request_timeout request_headers_timeout delayed_close_timeout access_log \
         use_remote_address xff_num_trusted_hops original_ip_detection_extensions early_header_mutation_extensions \
         skip_xff_append via generate_request_id preserve_external_request_id always_set_request_id_in_response \
         forward_client_cert_details set_current_client_cert_details forward_client_cert_matcher proxy_100_continue \
         upgrade_configs normalize_path merge_slashes path_with_escaped_slashes_action request_id_extension \
         strip_matching_host_port strip_any_host_port path_normalization_options typed_header_validation_config",
    ),
    (
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails",
        "subject cert chain dns uri",
    ),
    (
        "config.core.v3.HttpProtocolOptions",
        "idle_timeout max_connection_duration max_headers_count headers_with_underscores_action max_requests_per_connection",
    ),
    (
        "config.core.v3.Http1ProtocolOptions",
        "allow_absolute_url accept_http_10 default_host_for_http_10 header_key_format enable_trailers allow_chunked_length",
    ),
    (
        "config.core.v3.Http2ProtocolOptions",
        "max_concurrent_streams initial_stream_window_size initial_connection_window_size allow_connect allow_metadata \
         use_oghttp2_codec",
    ),
    (
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts tunneling_config \
         max_downstream_connection_duration",
    ),
    (
        "extensions.filters.http.router.v3.Router",
        "dynamic_stats suppress_envoy_headers strict_check_headers respect_expected_rq_timeout \
         suppress_grpc_request_failure_code_stats upstream_http_filters",
    ),
    (
        "extensions.filters.http.fault.v3.HTTPFault",
        "delay abort upstream_cluster headers downstream_nodes max_active_faults disable_downstream_cluster_stats",
    ),
    ("extensions.filters.http.fault.v3.FaultAbort", "http_status grpc_status header_abort percentage"),
    (
        "extensions.filters.http.rbac.v3.RBAC",
        "rules rules_stat_prefix matcher shadow_rules shadow_matcher shadow_rules_stat_prefix",
    ),
    (
        "extensions.filters.network.rbac.v3.RBAC",
        "rules matcher shadow_rules shadow_matcher shadow_rules_stat_prefix stat_prefix enforcement_type",
    ),
    ("config.rbac.v3.RBAC", "action policies"),
    (
        "extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials filter_enabled \
         forward_not_matching_preflights",
    ),
    (
        "config.route.v3.CorsPolicy",
        "allow_origin_string_match allow_methods allow_headers expose_headers max_age allow_credentials filter_enabled \
         forward_not_matching_preflights",
    ),
    (
        "config.route.v3.RouteConfiguration",
        "name virtual_hosts vhds internal_only_headers response_headers_to_add response_headers_to_remove \
         request_headers_to_add request_headers_to_remove most_specific_header_mutations_wins validate_clusters \
         max_direct_response_body_size_bytes request_mirror_policies ignore_port_in_host_matching vhost_header \
         ignore_path_parameters_in_path_matching typed_per_filter_config metadata",
    ),
    (
        "config.route.v3.VirtualHost",
        "name domains routes matcher require_tls request_headers_to_add request_headers_to_remove response_headers_to_add \
         response_headers_to_remove cors typed_per_filter_config include_request_attempt_count \
         include_attempt_count_in_response retry_policy request_mirror_policies metadata",
    ),
    (
        "config.route.v3.Route",
        "name match route redirect direct_response filter_action non_forwarding_action metadata decorator \
         typed_per_filter_config request_headers_to_add request_headers_to_remove response_headers_to_add \
         response_headers_to_remove stat_prefix",
    ),
    (
        "config.route.v3.RouteAction",
        "cluster cluster_header weighted_clusters cluster_specifier_plugin inline_cluster_specifier_plugin \
         cluster_not_found_response_code prefix_rewrite regex_rewrite path_rewrite_policy path_rewrite \
         host_rewrite_literal auto_host_rewrite host_rewrite_header host_rewrite_path_regex host_rewrite \
         append_x_forwarded_host timeout idle_timeout retry_policy request_mirror_policies hash_policy cors \
         max_grpc_timeout grpc_timeout_offset upgrade_configs max_stream_duration",
    ),
    ("config.route.v3.RouteAction.RequestMirrorPolicy", "cluster cluster_header runtime_fraction trace_sampled"),
    ("config.route.v3.WeightedCluster", "clusters total_weight"),
    (
        "config.route.v3.WeightedCluster.ClusterWeight",
        "name cluster_header weight request_headers_to_add request_headers_to_remove response_headers_to_add \
         response_headers_to_remove typed_per_filter_config host_rewrite_literal",
    ),
    (
        "config.route.v3.RetryPolicy",
        "retry_on num_retries per_try_timeout per_try_idle_timeout retry_host_predicate \
         host_selection_retry_max_attempts retriable_status_codes retry_back_off retriable_headers retriable_request_headers",
    ),
    ("config.route.v3.DirectResponseAction", "status body"),
    ("config.route.v3.Decorator", "operation"),
    (
        "config.cluster.v3.Cluster",
        "transport_socket_matches transport_socket_matcher name alt_stat_name type cluster_type eds_cluster_config \
         connect_timeout per_connection_buffer_limit_bytes lb_policy load_assignment max_requests_per_connection \
         circuit_breakers upstream_http_protocol_options common_http_protocol_options http_protocol_options \
         http2_protocol_options typed_extension_protocol_options dns_refresh_rate respect_dns_ttl dns_lookup_family \
         outlier_detection cleanup_interval upstream_bind_config lb_subset_config ring_hash_lb_config maglev_lb_config \
         original_dst_lb_config least_request_lb_config round_robin_lb_config common_lb_config transport_socket metadata \
         protocol_selection filters upstream_connection_options load_balancing_policy",
    ),
    (
        "config.cluster.v3.Cluster.CommonLbConfig",
        "healthy_panic_threshold zone_aware_lb_config locality_weighted_lb_config update_merge_window",
    ),
    (
        "config.cluster.v3.CircuitBreakers.Thresholds",
        "priority max_connections max_pending_requests max_requests max_retries track_remaining",
    ),
    ("config.cluster.v3.CircuitBreakers", "thresholds"),
    (
        "config.cluster.v3.OutlierDetection",
        "consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx \
         enforcing_success_rate \
         consecutive_gateway_failure enforcing_consecutive_gateway_failure max_ejection_time",
    ),
    ("config.cluster.v3.UpstreamConnectionOptions", "tcp_keepalive"),
    ("config.core.v3.BindConfig", "source_address"),
    (
        "extensions.clusters.dns.v3.DnsCluster",
        "dns_refresh_rate respect_dns_ttl dns_lookup_family all_addresses_in_single_endpoint",
    ),
    (
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options upstream_http_protocol_options explicit_http_config \
         use_downstream_protocol_config auto_config http_filters",
    ),
    ("extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig", "http_protocol_options http2_protocol_options"),
    ("config.endpoint.v3.ClusterLoadAssignment", "cluster_name endpoints policy"),
    ("config.endpoint.v3.ClusterLoadAssignment.Policy", "drop_overloads overprovisioning_factor"),
    (
        "config.endpoint.v3.LocalityLbEndpoints",
        "locality metadata lb_endpoints load_balancer_endpoints leds_cluster_locality_config load_balancing_weight priority",
    ),
    ("config.endpoint.v3.LbEndpoint", "endpoint endpoint_name health_status metadata load_balancing_weight"),
    ("config.endpoint.v3.Endpoint", "address hostname observability_name health_check_config"),
    (
        "extensions.transport_sockets.tls.v3.CommonTlsContext",
        "tls_params tls_certificates tls_certificate_sds_secret_configs tls_certificate_provider_instance \
         custom_tls_certificate_selector validation_context validation_context_sds_secret_config \
         combined_validation_context validation_context_certificate_provider \
         validation_context_certificate_provider_instance alpn_protocols custom_handshaker",
    ),
    (
        "extensions.transport_sockets.tls.v3.TlsParameters",
        "tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites",
    ),
    (
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context require_client_certificate require_sni disable_stateless_session_resumption \
         disable_stateful_session_resumption ocsp_staple_policy",
    ),
    (
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context sni auto_host_sni auto_sni_san_validation max_session_keys enforce_rsa_key_usage",
    ),
    (
        "extensions.transport_sockets.tls.v3.TlsCertificate",
        "certificate_chain private_key pkcs12 private_key_provider password",
    ),
    (
        "extensions.transport_sockets.tls.v3.CertificateValidationContext",
        "trusted_ca ca_certificate_provider_instance system_root_certs verify_certificate_spki verify_certificate_hash \
         match_typed_subject_alt_names match_subject_alt_names require_signed_certificate_timestamp crl \
         trust_chain_verification custom_validator_config",
    ),
    ("config.core.v3.SubstitutionFormatString", "text_format json_format text_format_source content_type"),
];

/// Packages of the messages in the list.
pub(super) fn packages() -> impl Iterator<Item = String> {
    // Messages begin with an upper-case letter, packages do not.
    let package = |(message, _): &(&str, &str)| {
        let parts = message.split('.').take_while(|part| !part.starts_with(|c: char| c.is_ascii_uppercase()));
        format!("envoy.{}", parts.collect::<Vec<_>>().join("."))
    };
    READ.iter().map(package)
}

/// Reports what is set in a message of that type and not read.
pub fn census(at: At<'_>, type_name: &str, bytes: &[u8]) {
    if let Some(message) = decode(type_name, bytes) {
        Census { at, path: String::new(), nested: 0 }.fields(&message);
    }
}

/// `Any`s in `Any`s that are looked into: more than a configuration that means something has.
const MAX_NESTED: usize = 16;

fn decode(type_name: &str, bytes: &[u8]) -> Option<DynamicMessage> {
    DynamicMessage::decode(converted().get_message_by_name(type_name)?, bytes).ok()
}

fn read_fields(descriptor: &MessageDescriptor) -> Option<&'static str> {
    let name = descriptor.full_name().strip_prefix("envoy.")?;
    READ.iter().find(|(message, _)| *message == name).map(|(_, fields)| *fields)
}

/// A walk through a message.
struct Census<'a> {
    at: At<'a>,
    path: String,
    /// `Any`s around.
    nested: usize,
}

impl Census<'_> {
    fn fields(&mut self, message: &DynamicMessage) {
        let read = read_fields(&message.descriptor());
        if let (Some(_), Some(field)) = (read, message.unknown_fields().next()) {
            let number = field.number().to_string();
            self.within(&number, |census| census.report("a field that is newer than this version; it has no effect"));
        }
        for (field, value) in message.fields() {
            let is_read = read.is_none_or(|fields| fields.split_whitespace().any(|name| name == field.name()));
            self.within(field.name(), |census| match is_read {
                true => census.value(value),
                false => census.report("this field has no effect; leave it out"),
            });
        }
    }

    fn report(&self, reason: &str) {
        self.at.report(self.path.clone(), reason.to_owned());
    }

    /// Goes on at `step`, and comes back.
    fn within(&mut self, step: &str, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if !self.path.is_empty() && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        visit(self);
        self.path.truncate(length);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Message(message) if message.descriptor().full_name() == "google.protobuf.Any" => self.any(message),
            Value::Message(message) => self.fields(message),
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.within(&format!("[{index}]"), |census| census.value(item));
                }
            }
            Value::Map(entries) => {
                for (key, value) in entries {
                    if let MapKey::String(key) = key {
                        self.within(&format!("[\"{key}\"]"), |census| census.value(value));
                    }
                }
            }
            _ => {}
        }
    }

    fn any(&mut self, message: &DynamicMessage) {
        let part = |name: &str| message.get_field_by_name(name).map(|value| value.into_owned());
        if let (Some(Value::String(type_url)), Some(Value::Bytes(bytes))) = (part("type_url"), part("value"))
            && self.nested < MAX_NESTED
            && let Some(inner) = decode(type_url.rsplit('/').next().unwrap_or_default(), &bytes)
        {
            self.nested += 1;
            self.fields(&inner);
            self.nested -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_list_is_one_of_the_api() {
        for (message, fields) in READ {
            let descriptor = converted().get_message_by_name(&format!("envoy.{message}"));
            let descriptor = descriptor.unwrap_or_else(|| panic!("no message {message}"));
            for field in fields.split_whitespace() {
                assert!(descriptor.get_field_by_name(field).is_some(), "{message} has no field {field}");
            }
        }
    }
}
