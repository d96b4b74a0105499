//! Protobuf of every wire between the programs.
//!
//! `envoy` is the one façade over Envoy's generated API (so that its slow crate is named in one
//! place); `workload`, `attach`, `proxy`, `ca`, `dataplane` and `steering` are ours, generated from
//! `proto/`; `istio_ca` is the wire of Istio's certificate service. `type_url` names every
//! resource type that travels over xDS. Conversions to `mesh-model` live in `convert`.

pub use envoy_types::pb as envoy_pb;
pub use envoy_types::pb::envoy;
pub use envoy_types::pb::google::protobuf::Any;

/// Packages that name one another: generated code looks for them where their names say.
mod dpumesh {
    pub mod workload {
        #[allow(missing_debug_implementations, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("dpumesh.workload.v1");
        }
    }
    pub mod proxy {
        #[allow(missing_debug_implementations, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("dpumesh.proxy.v1");
        }
    }
}

/// Aggregated configuration.
pub use dpumesh::proxy::v1 as proxy;
/// What the controller serves.
pub use dpumesh::workload::v1 as workload;

/// What the node daemon serves.
#[allow(missing_debug_implementations, clippy::all)]
pub mod attach {
    tonic::include_proto!("dpumesh.attach.v1");
}
/// Signing requests from the DPU.
#[allow(missing_debug_implementations, clippy::all)]
pub mod ca {
    tonic::include_proto!("dpumesh.ca.v1");
}
/// The dataplane's API.
#[allow(missing_debug_implementations, clippy::all)]
pub mod dataplane {
    tonic::include_proto!("dpumesh.dataplane.v1");
}
/// Socket steering on the DPU.
#[allow(missing_debug_implementations, clippy::all)]
pub mod steering {
    tonic::include_proto!("dpumesh.steering.v1");
}
/// Certificates of the programs themselves.
#[allow(missing_debug_implementations, clippy::all)]
pub mod enroll {
    tonic::include_proto!("dpumesh.enroll.v1");
}
/// What nodes report for people to see.
#[allow(missing_debug_implementations, clippy::all)]
pub mod report {
    tonic::include_proto!("dpumesh.report.v1");
}
/// Refusals by name.
#[allow(missing_debug_implementations, clippy::all)]
pub mod xds {
    tonic::include_proto!("dpumesh.xds.v1");
}
/// Istio's certificate service.
#[allow(missing_debug_implementations, clippy::all)]
pub mod istio_ca {
    tonic::include_proto!("istio.v1.auth");
}

pub mod type_url;
