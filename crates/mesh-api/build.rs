//! Compiles the protos of `proto/` with protox (no protoc needed) and generates prost and tonic code.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = [
        "dpumesh/workload/v1/workload.proto",
        "dpumesh/attach/v1/attach.proto",
        "dpumesh/proxy/v1/proxy.proto",
        "dpumesh/ca/v1/relay.proto",
        "dpumesh/dataplane/v1/dataplane.proto",
        "dpumesh/steering/v1/steering.proto",
        "dpumesh/enroll/v1/enroll.proto",
        "dpumesh/report/v1/report.proto",
        "dpumesh/xds/v1/rejections.proto",
        "istio/ca/istio_ca.proto",
    ];
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(protos, [root])?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    config.type_name_domain(["."], "type.googleapis.com");
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
