//! Which pods are governed and attached: the join of the controller's view and the node daemon's.
//!
//! In: updates of both. Out: the pods. What is known is kept while either is away; a pod that the
//! controller no longer names stays as long as it is attached, since its traffic still flows.

use crate::pod::{Pod, Ungoverned};
use mesh_api::attach::Attachment;
use mesh_api::type_url;
use mesh_api::workload::{Node, Workload};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use xds::{Rejected, Resource};

/// Both views.
#[derive(Debug, Default)]
pub struct Membership {
    workloads: BTreeMap<String, Workload>,
    /// Workloads that the controller no longer names.
    withdrawn: BTreeSet<String>,
    attachments: BTreeMap<String, Attachment>,
    nodes: BTreeMap<String, Node>,
    answered: BTreeSet<String>,
}

/// Pods by uid, and attached pods that are left alone, with the reason.
#[derive(Debug, Default)]
pub struct Members {
    pub pods: BTreeMap<String, Pod>,
    pub ungoverned: BTreeMap<String, String>,
}

impl Membership {
    /// Takes an update of either view over.
    pub fn apply(&mut self, kind: &str, changed: &[Resource], removed: &[String]) -> Result<(), Vec<Rejected>> {
        self.answered.insert(kind.to_owned());
        match kind {
            type_url::WORKLOAD => self.apply_workloads(changed, removed),
            type_url::ATTACHMENT => merge(&mut self.attachments, changed, removed),
            type_url::NODE => merge(&mut self.nodes, changed, removed),
            _ => Ok(()),
        }
    }

    /// Whether both views have been told once: before that, absence means nothing.
    pub fn is_complete(&self) -> bool {
        self.answered.contains(type_url::WORKLOAD) && self.answered.contains(type_url::ATTACHMENT)
    }

    /// The server of that name.
    pub fn server(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Everything that is attached. Forgets what is neither named nor attached.
    pub fn members(&mut self, trust_domain: &str) -> Members {
        self.forget_departed();
        let mut members = Members::default();
        for (name, attachment) in &self.attachments {
            match self.member(name, attachment, trust_domain) {
                Ok(pod) => drop(members.pods.insert(pod.uid().to_owned(), pod)),
                Err(reason) => drop(members.ungoverned.insert(name.clone(), reason)),
            }
        }
        members
    }

    fn member(&self, name: &str, attachment: &Attachment, trust_domain: &str) -> Result<Pod, String> {
        let workload = self.workloads.get(name).ok_or("the controller has not told of this pod")?;
        Pod::new(workload, attachment, trust_domain).map_err(|reason: Ungoverned| reason.to_string())
    }

    /// A workload that the controller withdrew goes with its attachment.
    fn forget_departed(&mut self) {
        let (departed, withdrawn) =
            std::mem::take(&mut self.withdrawn).into_iter().partition(|name| !self.attachments.contains_key(name));
        self.withdrawn = withdrawn;
        let departed: BTreeSet<String> = departed;
        self.workloads.retain(|name, _| !departed.contains(name));
    }

    fn apply_workloads(&mut self, changed: &[Resource], removed: &[String]) -> Result<(), Vec<Rejected>> {
        for resource in changed {
            self.withdrawn.remove(&resource.name);
        }
        for name in removed {
            if self.attachments.contains_key(name) {
                self.withdrawn.insert(name.clone());
            } else {
                self.workloads.remove(name);
            }
        }
        merge(&mut self.workloads, changed, &[])
    }
}

fn merge<M: Message + Default>(
    table: &mut BTreeMap<String, M>,
    changed: &[Resource],
    removed: &[String],
) -> Result<(), Vec<Rejected>> {
    let mut rejected = Vec::new();
    for resource in changed {
        match resource.decode::<M>() {
            Ok(message) => drop(table.insert(resource.name.clone(), message)),
            Err(error) => rejected.push(Rejected { name: resource.name.clone(), reason: error.to_string() }),
        }
    }
    removed.iter().for_each(|name| drop(table.remove(name)));
    if rejected.is_empty() { Ok(()) } else { Err(rejected) }
}
