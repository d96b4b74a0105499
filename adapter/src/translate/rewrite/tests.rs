//! What each kind of resource becomes.

use super::*;
use mesh_api::envoy::config::core::v3::{BindConfig, Pipe, SocketAddress};
use mesh_api::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};

fn socket_address(address: &str, port: u32) -> SocketAddress {
    let port = socket_address::PortSpecifier::PortValue(port);
    SocketAddress { address: address.to_owned(), port_specifier: Some(port), ..SocketAddress::default() }
}

fn at(address: &str, port: u32) -> Address {
    Address { address: Some(address::Address::SocketAddress(socket_address(address, port))) }
}

fn any(kind: Kind, message: &impl Message) -> Any {
    Any { type_url: kind.type_url().to_owned(), value: message.encode_to_vec() }
}

fn rewritten(message: &Cluster) -> Result<Option<Cluster>, Unfit> {
    match cluster(any(Kind::Cluster, message), message)? {
        Rewritten::Kept(body) => decode(Kind::Cluster, &body).map(Some),
        Rewritten::Dropped => Ok(None),
    }
}

fn bound(name: &str, source: &str) -> Cluster {
    let bind = BindConfig { source_address: Some(socket_address(source, 0)), ..BindConfig::default() };
    Cluster { name: name.to_owned(), upstream_bind_config: Some(bind), ..Cluster::default() }
}

fn delivering_to(endpoint: Address) -> Cluster {
    let endpoint = Endpoint { address: Some(endpoint), ..Endpoint::default() };
    let host_identifier = Some(lb_endpoint::HostIdentifier::Endpoint(endpoint));
    let locality = LocalityLbEndpoints {
        lb_endpoints: vec![LbEndpoint { host_identifier, ..LbEndpoint::default() }],
        ..LocalityLbEndpoints::default()
    };
    let assignment = ClusterLoadAssignment { endpoints: vec![locality], ..ClusterLoadAssignment::default() };
    Cluster { load_assignment: Some(assignment), ..bound("inbound|9080||", "127.0.0.6") }
}

#[test]
fn clusters_of_the_workload_itself_lose_the_loopback_source() {
    for name in ["inbound|9080||", "InboundPassthroughCluster", "InboundPassthroughClusterIpv4"] {
        let kept = rewritten(&bound(name, "127.0.0.6")).expect("fit").expect("kept");
        assert_eq!(kept, Cluster { name: name.to_owned(), ..Cluster::default() });
    }
}

#[test]
fn another_cluster_keeps_a_source_address_that_is_not_loopback() {
    assert_eq!(rewritten(&bound("x", "10.0.0.1")).expect("fit"), Some(bound("x", "10.0.0.1")));
    let kept = rewritten(&bound("x", "::6")).expect("fit").expect("kept");
    assert_eq!(kept.upstream_bind_config, None);
}

#[test]
fn a_loopback_endpoint_becomes_the_pods_own_address_at_that_port() {
    let kept = rewritten(&delivering_to(at("127.0.0.1", 8080))).expect("fit").expect("kept");
    assert_eq!(kept.load_assignment, None);
    assert_eq!(kept.upstream_bind_config, None);
    let original = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::OriginalDst.into());
    assert_eq!(kept.cluster_discovery_type, Some(original));
    let Some(cluster::LbConfig::OriginalDstLbConfig(config)) = kept.lb_config else { panic!("port override") };
    assert_eq!(config.upstream_port_override, Some(UInt32Value { value: 8080 }));
}

#[test]
fn an_endpoint_that_only_the_pod_reaches_is_refused_with_what_to_do() {
    let pipe = Pipe { path: "/run/app.sock".to_owned(), ..Pipe::default() };
    let error = rewritten(&delivering_to(Address { address: Some(address::Address::Pipe(pipe)) })).expect_err("pipe");
    assert!(error.to_string().contains("Sidecar ingress"), "{error}");
    assert!(rewritten(&delivering_to(at("10.9.9.9", 80))).is_err());
}

#[test]
fn what_serves_the_agent_is_dropped() {
    for name in AGENT_CLUSTERS {
        assert_eq!(rewritten(&Cluster { name: name.to_owned(), ..Cluster::default() }).expect("fit"), None);
    }
    let of = |address: Address| Listener { address: Some(address), ..Listener::default() };
    for address in [at("0.0.0.0", 15021), at("0.0.0.0", 15090), at("127.0.0.1", 9080)] {
        assert_eq!(listener(Any::default(), &of(address)), Rewritten::Dropped);
    }
    assert_eq!(listener(Any::default(), &of(at("0.0.0.0", 15006))), Rewritten::Kept(Any::default()));
}

#[test]
fn a_body_of_another_type_or_garbage_is_undecodable() {
    let body = any(Kind::Route, &Cluster::default());
    assert!(matches!(decode::<Cluster>(Kind::Cluster, &body), Err(Unfit::Undecodable(_))));
    let body = Any { type_url: type_url_of_cluster(), value: vec![0xff] };
    assert!(matches!(decode::<Cluster>(Kind::Cluster, &body), Err(Unfit::Undecodable(_))));
}

fn type_url_of_cluster() -> String {
    Kind::Cluster.type_url().to_owned()
}
