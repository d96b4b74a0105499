//! What the dataplane should have: ports from the records, routes and services from the controller.

use crate::desired::Desired;
use crate::forwarding::Intent;
use crate::mesh::Mesh;
use crate::record::{Phase, Port, Record, Records};
use mesh_api::dataplane as wire;
use std::sync::Arc;
use tokio::sync::watch;

/// The daemon's intent.
#[derive(Clone, Debug)]
pub struct NodeIntent {
    pub node: String,
    pub records: Arc<Records>,
    pub mesh: watch::Receiver<Mesh>,
}

impl Intent for NodeIntent {
    fn desired(&self) -> Desired {
        let mesh = self.mesh.borrow();
        let live = self.records.list().into_iter().filter(|record| record.phase != Phase::Removing);
        Desired {
            ports: live.filter_map(|record| port(&record, &mesh)).collect(),
            routes: mesh.routes(&self.node),
            services: mesh.services(),
            complete: mesh.is_complete(),
        }
    }
}

/// The record's port, treated as the controller says now: labels of a pod may change in its life.
pub fn port(record: &Record, mesh: &Mesh) -> Option<wire::Port> {
    let port = record.port.clone()?;
    let pod = &record.pod;
    let current = mesh.treatment(&pod.namespace, &pod.name, &pod.uid).map(|treatment| Port {
        ungoverned: !treatment.governed,
        bypass_on_failure: treatment.bypass_on_failure,
        ..port.clone()
    });
    Some(current.unwrap_or(port).to_wire(pod))
}
