//! The eight pods of the recorded scenario: where each runs, its address, its application.

use crate::topology::{HOSTS, Host, pod_namespace};

/// A pod of bookinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: &'static str,
    pub app: &'static str,
    pub version: &'static str,
    pub service_account: &'static str,
    pub host: Host,
    /// As recorded.
    pub address: &'static str,
    /// Fixed, so that the records of two runs compare.
    number: u8,
}

const fn pod(
    name: &'static str,
    app: &'static str,
    version: &'static str,
    host: Host,
    address: &'static str,
    number: u8,
) -> Pod {
    Pod { name, app, version, service_account: app, host, address, number }
}

/// All of them, in the order in which they are started: what is called comes first.
pub const PODS: [Pod; 8] = [
    pod("mongodb-v1", "mongodb", "v1", HOSTS[1], "10.244.2.13", 1),
    pod("ratings-v1", "ratings", "v1", HOSTS[0], "10.244.1.12", 2),
    pod("details-v1", "details", "v1", HOSTS[1], "10.244.2.10", 3),
    pod("reviews-v1", "reviews", "v1", HOSTS[0], "10.244.1.11", 4),
    pod("reviews-v2", "reviews", "v2", HOSTS[1], "10.244.2.11", 5),
    pod("reviews-v3", "reviews", "v3", HOSTS[1], "10.244.2.12", 6),
    pod("productpage-v1", "productpage", "v1", HOSTS[0], "10.244.1.10", 7),
    pod("curl", "curl", "v1", HOSTS[0], "10.244.1.13", 8),
];

/// Service addresses, as recorded.
pub mod vip {
    pub const PRODUCTPAGE: &str = "10.96.10.1:9080";
    pub const DETAILS: &str = "10.96.10.2:9080";
    pub const RATINGS: &str = "10.96.10.3:9080";
    pub const RATINGS_GRPC: &str = "10.96.10.3:9090";
    pub const REVIEWS: &str = "10.96.10.4:9080";
    pub const MONGODB: &str = "10.96.10.5:27017";
}

impl Pod {
    /// The pod of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PODS.iter().find(|pod| pod.name == name)
    }

    /// Kubernetes uid.
    pub fn uid(&self) -> String {
        format!("6f0e4c2a-0000-4000-8000-0000000000{:02x}", self.number)
    }

    /// Name of its network namespace.
    pub fn namespace(&self) -> String {
        pod_namespace(self.name)
    }

    /// Sandbox id, as a runtime would choose it.
    pub fn container_id(&self) -> String {
        format!("{:02x}{}", self.number, "c0ffee".repeat(10))
    }

    /// Its SPIFFE identity.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/bookinfo/sa/{}", self.service_account)
    }

    /// The pod with that address.
    pub fn at(address: &str) -> Option<&'static Self> {
        let ip = address.split(':').next().unwrap_or_default();
        PODS.iter().find(|pod| pod.address == ip)
    }
}
