//! The Envoy bootstrap file of a DPU's proxy: delta ADS at the host's adapter over mutual TLS.

use super::folder;
use crate::topology::Host;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Admin address, inside the DPU's namespace.
pub const ADMIN: &str = "127.0.0.1:15000";

/// Writes it and returns its path.
pub fn write(host: Host) -> Result<PathBuf> {
    let path = folder(host).join("bootstrap.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&bootstrap(host))?)?;
    Ok(path)
}

fn bootstrap(host: Host) -> Value {
    let service = json!({ "envoy_grpc": { "cluster_name": "adapter" } });
    json!({
        "node": { "id": host.node(), "cluster": "dpumesh", "metadata": { "DPUMESH": true } },
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 15000 } } },
        "dynamic_resources": {
            "ads_config": { "api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [service] },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [adapter(host)] },
    })
}

fn adapter(host: Host) -> Value {
    let endpoint = json!({ "address": { "socket_address": { "address": host.management(), "port_value": 15110 } } });
    json!({
        "name": "adapter", "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "adapter",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": endpoint }] }],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "adapter",
                "common_tls_context": tls(host),
            },
        },
    })
}

fn tls(host: Host) -> Value {
    let file = |name: &str| json!({ "filename": folder(host).join("tls").join(name) });
    json!({
        "alpn_protocols": ["h2"],
        "tls_certificates": [{ "certificate_chain": file("dpu-proxy.pem"), "private_key": file("dpu-proxy-key.pem") }],
        "validation_context": {
            "trusted_ca": file("ca.pem"),
            "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": "adapter" } }],
        },
    })
}
