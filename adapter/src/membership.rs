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
    /// How many of those the controller has not told of.
    pub unknown: usize,
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
        let unknown = self.attachments.keys().filter(|name| !self.workloads.contains_key(*name)).count();
        let mut members = Members { unknown, ..Members::default() };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(uid: &str, governed: bool) -> Resource {
        let (namespace, name) = ("ns".to_owned(), "pod".to_owned());
        let workload = Workload { uid: uid.to_owned(), namespace, name, governed, ..Workload::default() };
        Resource::new("ns/pod", &workload)
    }

    fn attachment(uid: &str) -> Resource {
        let addresses = vec!["10.0.0.1".to_owned()];
        Resource::new("ns/pod", &Attachment { pod_uid: uid.to_owned(), addresses, ..Attachment::default() })
    }

    fn both(workload: Resource, attachment: Resource) -> Membership {
        let mut membership = Membership::default();
        membership.apply(type_url::WORKLOAD, &[workload], &[]).expect("valid");
        assert!(!membership.is_complete());
        membership.apply(type_url::ATTACHMENT, &[attachment], &[]).expect("valid");
        assert!(membership.is_complete());
        membership
    }

    #[test]
    fn a_pod_that_both_views_name_and_that_asked_for_the_mesh_is_a_member() {
        let members = both(workload("u", true), attachment("u")).members("td");
        assert_eq!(members.pods["u"].identity.to_string(), "spiffe://td/ns/ns/sa/default");
        for (membership, reason) in [
            (both(workload("u", false), attachment("u")), "did not ask"),
            (both(workload("u", true), attachment("earlier")), "earlier"),
        ] {
            let mut membership = membership;
            let members = membership.members("td");
            assert!(members.pods.is_empty());
            assert!(members.ungoverned["ns/pod"].contains(reason), "{:?}", members.ungoverned);
        }
    }

    #[test]
    fn a_pod_that_the_controller_no_longer_names_stays_until_it_is_detached() {
        let mut membership = both(workload("u", true), attachment("u"));
        let name = ["ns/pod".to_owned()];
        membership.apply(type_url::WORKLOAD, &[], &name).expect("valid");
        assert_eq!(membership.members("td").pods.len(), 1);
        membership.apply(type_url::ATTACHMENT, &[], &name).expect("valid");
        assert!(membership.members("td").pods.is_empty());
        membership.apply(type_url::ATTACHMENT, &[attachment("u")], &[]).expect("valid");
        let members = membership.members("td");
        assert!(members.pods.is_empty() && members.unknown == 1, "it is forgotten");
    }

    #[test]
    fn what_does_not_decode_is_refused_by_name_and_the_last_good_one_stays() {
        let mut membership = both(workload("u", true), attachment("u"));
        let garbage = Resource::from_any("ns/pod", mesh_api::Any { type_url: String::new(), value: vec![0xff] });
        let rejected = membership.apply(type_url::WORKLOAD, &[garbage], &[]).expect_err("garbage");
        assert_eq!(rejected[0].name, "ns/pod");
        assert_eq!(membership.members("td").pods.len(), 1);
    }
}
