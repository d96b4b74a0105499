//! Type URLs of everything that travels over xDS here.

macro_rules! type_urls {
    ($($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = concat!("type.googleapis.com/", $path);)*
    };
}

type_urls! {
    /// CDS.
    CLUSTER = "envoy.config.cluster.v3.Cluster";
    /// EDS.
    CLUSTER_LOAD_ASSIGNMENT = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// LDS.
    LISTENER = "envoy.config.listener.v3.Listener";
    /// RDS.
    ROUTE_CONFIGURATION = "envoy.config.route.v3.RouteConfiguration";
    /// SDS.
    SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret";
    /// ECDS.
    EXTENSION_CONFIG = "envoy.config.core.v3.TypedExtensionConfig";
    /// Istio's name table.
    NAME_TABLE = "istio.networking.nds.v1.NameTable";
    /// Istio's proxy configuration.
    PROXY_CONFIG = "istio.mesh.v1alpha1.ProxyConfig";
    /// A pod, from the controller.
    WORKLOAD = "dpumesh.workload.v1.Workload";
    /// A server, from the controller.
    NODE = "dpumesh.workload.v1.Node";
    /// A service, from the controller.
    SERVICE = "dpumesh.workload.v1.Service";
    /// A network, from the controller.
    NETWORK = "dpumesh.workload.v1.Network";
    /// A pod that is attached, from the node daemon.
    ATTACHMENT = "dpumesh.attach.v1.Attachment";
    /// A pod of this DPU, from the adapter.
    PROXY_WORKLOAD = "dpumesh.proxy.v1.Workload";
    /// Resources that apply to a workload, from the adapter.
    SCOPE = "dpumesh.proxy.v1.Scope";
}

/// The order in which types are made (removal is the reverse): what is referred to comes first.
pub const MAKE_ORDER: &[&str] = &[
    NETWORK,
    NODE,
    SERVICE,
    ATTACHMENT,
    SECRET,
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
    WORKLOAD,
    SCOPE,
    PROXY_WORKLOAD,
];

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Name;

    #[test]
    fn messages_name_themselves_as_the_wire_does() {
        assert_eq!(crate::workload::Workload::type_url(), WORKLOAD);
        assert_eq!(crate::attach::Attachment::type_url(), ATTACHMENT);
        assert_eq!(crate::proxy::Workload::type_url(), PROXY_WORKLOAD);
        assert_eq!(crate::proxy::Scope::type_url(), SCOPE);
    }
}
