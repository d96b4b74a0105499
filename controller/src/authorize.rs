//! Who may see which node's view.

use service::grpc::program_identity;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use tonic::Status;
use xds::server::{Authorize, Peer};

/// Programs that follow their node's view.
const PROGRAMS: [&str; 2] = ["adapter", "cni-node"];

/// Nodes that have a view; `None` until everything is known. Shared.
#[derive(Clone, Debug, Default)]
pub struct Nodes(Arc<RwLock<Option<BTreeSet<String>>>>);

impl Nodes {
    /// They are these now.
    pub fn set(&self, nodes: Option<BTreeSet<String>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    // The error is tonic's own and as large as it is.
    #[allow(clippy::result_large_err)]
    fn require(&self, node: &str) -> Result<(), Status> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            None => Err(Status::unavailable("the controller does not know everything yet; try again")),
            Some(nodes) if nodes.contains(node) => Ok(()),
            Some(_) => Err(Status::not_found(format!(
                "there is no Node {node:?}: add its object to the cluster or the manifests"
            ))),
        }
    }
}

/// A peer sees the node that it names, if its certificate names that node too.
#[derive(Clone, Debug)]
pub struct NodeAuthorize {
    pub nodes: Nodes,
    /// False on loopback without TLS: then there are no certificates.
    pub tls: bool,
}

impl Authorize for NodeAuthorize {
    fn view(&self, peer: &Peer) -> Result<String, Status> {
        let node = &peer.node.id;
        if self.tls {
            certified(node, &peer.identities)?;
        }
        self.nodes.require(node).map(|()| node.clone())
    }
}

// The error is tonic's own and as large as it is.
#[allow(clippy::result_large_err)]
fn certified(node: &str, identities: &[String]) -> Result<(), Status> {
    let accepted = PROGRAMS.map(|program| program_identity(program, node));
    match identities.iter().any(|identity| accepted.contains(identity)) {
        true => Ok(()),
        false => Err(Status::permission_denied(format!(
            "node id {node:?} needs a certificate for {}; this one is for {identities:?}",
            accepted.join(" or ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &str, identity: &str) -> Peer {
        let node = mesh_api::envoy::config::core::v3::Node { id: node.to_owned(), ..Default::default() };
        Peer { node, identities: vec![identity.to_owned()], metadata: tonic::metadata::MetadataMap::new() }
    }

    #[test]
    fn a_node_sees_its_own_view_and_no_other() {
        let nodes = Nodes::default();
        let authorize = NodeAuthorize { nodes: nodes.clone(), tls: true };
        let early = authorize.view(&peer("host1", "spiffe://dpumesh/cni-node/host1")).expect_err("not complete");
        assert_eq!(early.code(), tonic::Code::Unavailable);
        nodes.set(Some(["host1".to_owned(), "host2".to_owned()].into()));
        let own = authorize.view(&peer("host1", "spiffe://dpumesh/cni-node/host1"));
        assert_eq!(own.expect("own"), "host1");
        for identity in ["spiffe://dpumesh/adapter/host2", "spiffe://dpumesh/dpu-proxy/host1", ""] {
            let refused = authorize.view(&peer("host1", identity)).expect_err(identity);
            assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        }
        let unknown = authorize.view(&peer("host9", "spiffe://dpumesh/adapter/host9")).expect_err("unknown");
        assert_eq!(unknown.code(), tonic::Code::NotFound);
    }
}
