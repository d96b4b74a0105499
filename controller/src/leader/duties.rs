//! What the leader does: objects of nodes, conditions of networks, statuses that nobody keeps any more.
//!
//! Each round compares the tables with what should be and writes the difference; what is written comes
//! back through the watches.

use crate::Controller;
use crate::crd::{Condition, Network, NetworkStatus};
use crate::keeper::Keeper;
use crate::metrics::Metrics;
use crate::object::{Key, Kind, Object};
use crate::reports::event::Event;
use crate::reports::recorder::{Recorder, Regarding};
use crate::reports::write::{CONTROLLER, Failure, Writes, body};
use crate::reports::{Part, node};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;

/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(500);
/// Looked at again at least this often.
const INTERVAL: Duration = Duration::from_secs(30);

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// The node has no DpuNode, or one that does not go with it.
    MakeDpuNode { node: String, uid: String },
    /// What is said of the network; `None`: it is in force.
    JudgeNetwork { network: String, refusal: Option<String> },
    /// The pod is not in force as it is written; its events say so.
    TellPod { namespace: String, pod: String, refusal: String },
    /// A program of the node reported to a replica that is no more, and to no other since.
    LeaveNode { node: String, part: Part, replica: String },
}

/// What is to be done, by the tables. `namespace` holds the replicas, of which `name` is this one.
pub fn duties(controller: &Controller, namespace: &str, name: &str) -> BTreeSet<Duty> {
    let (tables, mut all) = (controller.tables(), BTreeSet::new());
    for (key, object) in tables.within(Kind::Node, "") {
        let Object::Node(node) = object else { continue };
        if !node.uid.is_empty() && tables.dpu_node(&key.name).is_none_or(|dpu| dpu.owner_uid != node.uid) {
            all.insert(Duty::MakeDpuNode { node: key.name.clone(), uid: node.uid.clone() });
        }
    }
    let networks = tables.within(Kind::Network, "").map(|(key, _)| key.clone());
    for network in networks.chain(controller.refused(Kind::Network)) {
        let refusal = controller.refusal(&network).map(|refusal| refusal.reason.clone());
        all.insert(Duty::JudgeNetwork { network: network.name, refusal });
    }
    for pod in controller.refused(Kind::Pod) {
        let refusal = controller.refusal(&pod).map(|refusal| refusal.reason.clone()).unwrap_or_default();
        all.insert(Duty::TellPod { namespace: pod.namespace, pod: pod.name, refusal });
    }
    let is_replica = |name: &str| tables.get(&Key::new(Kind::Pod, namespace, name)).is_some();
    // Outside a cluster there are no pods to judge replicas by.
    if is_replica(name) {
        all.extend(left(controller, is_replica));
    }
    all
}

fn left(controller: &Controller, is_replica: impl Fn(&str) -> bool) -> Vec<Duty> {
    let mut all = Vec::new();
    for (key, object) in controller.tables().within(Kind::DpuNode, "") {
        let Object::DpuNode(dpu) = object else { continue };
        for (part, replica) in dpu.told_to.iter().filter(|(_, replica)| !is_replica(replica)) {
            all.push(Duty::LeaveNode { node: key.name.clone(), part: *part, replica: replica.clone() });
        }
    }
    all
}

/// Does them while it leads.
#[allow(missing_debug_implementations)]
pub struct Leader {
    pub client: Client,
    pub keeper: Keeper,
    pub namespace: String,
    pub name: String,
    pub metrics: Metrics,
    pub recorder: Recorder,
}

impl Leader {
    /// As often as `leads` says so, until the process ends.
    pub async fn run(self, mut leads: watch::Receiver<bool>) {
        while leads.wait_for(|leads| *leads).await.is_ok() {
            self.metrics.leads(true);
            tokio::select! {
                // The lease is lost: whatever is under way is dropped.
                _ = leads.wait_for(|leads| !*leads) => {}
                () = self.lead() => {}
            }
            self.metrics.leads(false);
        }
    }

    async fn lead(&self) {
        let mut tables = self.keeper.version();
        let mut done = Done::default();
        loop {
            if self.keeper.controller().nodes().is_some() {
                self.round(&mut done).await;
            }
            tokio::select! {
                // The keeper lives as long as `self`.
                _ = tables.changed() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn round(&self, done: &mut Done) {
        let due = duties(&self.keeper.controller(), &self.namespace, &self.name);
        for duty in done.due(due, tokio::time::Instant::now()) {
            match self.perform(&duty).await {
                Ok(()) => done.performed(duty),
                // Its object went away meanwhile.
                Err(Failure::Unknown) => {}
                Err(Failure::Retry(reason) | Failure::Forbidden(reason) | Failure::Final(reason)) => {
                    tracing::error!(?duty, reason, "the leader could not do its duty; it tries again");
                }
            }
        }
    }

    async fn perform(&self, duty: &Duty) -> Result<(), Failure> {
        match duty {
            Duty::MakeDpuNode { node, uid } => self.make_dpu_node(node, uid).await,
            Duty::JudgeNetwork { network, refusal } => self.judge(network, refusal.as_deref()).await,
            Duty::TellPod { namespace, pod, refusal } => self.tell(namespace, pod, refusal).await,
            Duty::LeaveNode { node, part, replica } => self.leave(node, *part, replica).await,
        }
    }

    async fn make_dpu_node(&self, node: &str, uid: &str) -> Result<(), Failure> {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid});
        let mut body = body("DpuNode", json!({"name": node, "ownerReferences": [owner]}), None::<&()>);
        body["spec"] = json!({});
        let nodes = Api::<crate::crd::DpuNode>::all(self.client.clone());
        nodes.patch(node, &PatchParams::apply(CONTROLLER).force(), &Patch::Apply(body)).await?;
        tracing::info!(node, "the node has its DpuNode");
        Ok(())
    }

    async fn judge(&self, network: &str, refusal: Option<&str>) -> Result<(), Failure> {
        let networks = Api::<Network>::all(self.client.clone());
        let before = networks.get(network).await?.status.unwrap_or_default().conditions;
        let now = Timestamp::now();
        let accepted = match refusal {
            None => Condition::new("Accepted", Some(true), "Accepted", "", now),
            Some(reason) => Condition::new("Accepted", Some(false), "Invalid", reason, now),
        };
        let accepted = accepted.since(&before);
        if before.contains(&accepted) {
            return Ok(());
        }
        let body = body("Network", json!({"name": network}), Some(&NetworkStatus { conditions: vec![accepted] }));
        networks.patch_status(network, &PatchParams::apply(CONTROLLER).force(), &Patch::Apply(body)).await?;
        Ok(())
    }

    async fn tell(&self, namespace: &str, name: &str, refusal: &str) -> Result<(), Failure> {
        let pod = Api::<Pod>::namespaced(self.client.clone(), namespace).get(name).await?;
        let regarding = Regarding {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: pod.metadata.uid.unwrap_or_default(),
        };
        let note = format!("{refusal}; the mesh keeps to what was right before, if there was anything");
        self.recorder.publish(&regarding, &Event::warning("Refused", "Read", &note)).await;
        Ok(())
    }

    async fn leave(&self, name: &str, part: Part, replica: &str) -> Result<(), Failure> {
        let writes = Writes { client: self.client.clone() };
        let whole = writes.node(name).await?;
        let Some(away) = node::away(&whole, part, replica, Timestamp::now()) else { return Ok(()) };
        tracing::warn!(node = name, ?part, replica, "a program reports no more since its replica is gone");
        writes.put_node_part(part, name, &away).await
    }
}

/// What was done, so that it is not done at every change of the tables.
#[derive(Debug, Default)]
struct Done {
    performed: BTreeSet<Duty>,
    /// Since when it is due to leave a node: its programs have a while to find another replica.
    leaving: BTreeMap<Duty, tokio::time::Instant>,
}

impl Done {
    fn due(&mut self, due: BTreeSet<Duty>, now: tokio::time::Instant) -> Vec<Duty> {
        // What is not due any more may become due again.
        self.performed.retain(|duty| due.contains(duty));
        self.leaving.retain(|duty, _| due.contains(duty));
        let is_ripe = |duty: &Duty, leaving: &mut BTreeMap<Duty, tokio::time::Instant>| match duty {
            Duty::LeaveNode { .. } => now - *leaving.entry(duty.clone()).or_insert(now) >= INTERVAL,
            _ => true,
        };
        let fresh = due.into_iter().filter(|duty| !self.performed.contains(duty));
        fresh.filter(|duty| is_ripe(duty, &mut self.leaving)).collect()
    }

    fn performed(&mut self, duty: Duty) {
        // Networks and pods are told once for each verdict; objects of nodes are looked for in the tables.
        if matches!(duty, Duty::JudgeNetwork { .. } | Duty::TellPod { .. }) {
            self.performed.insert(duty);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Seen;
    use crate::kubernetes::FieldError;
    use crate::object::{DpuNode, Node};
    use xds::server::Store;

    fn controller(objects: Vec<(Key, Object)>) -> Controller {
        let mut controller = Controller::of_cluster(Store::new());
        let mut seen: Vec<Seen> = Kind::ALL.map(Seen::ListEnds).into();
        seen.extend(objects.into_iter().map(|(key, object)| Seen::Put(key, Ok(object))));
        controller.see(seen);
        controller
    }

    fn node(uid: &str) -> (Key, Object) {
        (Key::new(Kind::Node, "", "host1"), Object::Node(Node { uid: uid.to_owned(), ..Node::default() }))
    }

    fn dpu(owner_uid: &str, replica: &str) -> (Key, Object) {
        let told_to = vec![(Part::Host, replica.to_owned())];
        let dpu = DpuNode { owner_uid: owner_uid.to_owned(), told_to, ..DpuNode::default() };
        (Key::new(Kind::DpuNode, "", "host1"), Object::DpuNode(dpu))
    }

    fn pod(name: &str) -> (Key, Object) {
        (Key::new(Kind::Pod, "system", name), Object::Pod(Box::default()))
    }

    #[test]
    fn every_node_has_a_dpu_node_that_goes_with_it() {
        let make = Duty::MakeDpuNode { node: "host1".to_owned(), uid: "u".to_owned() };
        let of = |objects| duties(&controller(objects), "system", "c1");
        assert_eq!(of(vec![node("u")]), BTreeSet::from([make.clone()]));
        assert_eq!(of(vec![node("u"), dpu("older", "c1")]), BTreeSet::from([make]));
        assert_eq!(of(vec![node("u"), dpu("u", "c1")]), BTreeSet::new());
        assert_eq!(of(vec![dpu("u", "c1")]), BTreeSet::new(), "a person may make it before");
    }

    #[test]
    fn a_network_is_judged_once_for_each_verdict() {
        let mut controller = controller(Vec::new());
        let key = Key::new(Kind::Network, "", "blue");
        let error = FieldError { field: "spec.vni".to_owned(), reason: "is wrong".to_owned() };
        controller.see(vec![Seen::Put(key.clone(), Err(error))]);
        let (mut done, now) = (Done::default(), tokio::time::Instant::now());
        let due = done.due(duties(&controller, "system", "c1"), now);
        let refused = Duty::JudgeNetwork { network: "blue".to_owned(), refusal: Some("spec.vni: is wrong".to_owned()) };
        assert_eq!(due, std::slice::from_ref(&refused));
        done.performed(refused);
        assert_eq!(done.due(duties(&controller, "system", "c1"), now), []);
        controller.see(vec![Seen::Put(key, Ok(Object::Network(crate::object::Network::default())))]);
        let accepted = Duty::JudgeNetwork { network: "blue".to_owned(), refusal: None };
        assert_eq!(done.due(duties(&controller, "system", "c1"), now), [accepted]);
    }

    #[test]
    fn a_refused_pod_is_told_once_for_each_reason() {
        let mut controller = controller(vec![pod("p")]);
        let (mut done, now) = (Done::default(), tokio::time::Instant::now());
        let mut told = |reason: &str| {
            let error = FieldError { field: "metadata".to_owned(), reason: reason.to_owned() };
            controller.see(vec![Seen::Put(Key::new(Kind::Pod, "system", "p"), Err(error))]);
            let due = done.due(duties(&controller, "system", "c1"), now);
            due.iter().for_each(|duty| done.performed(duty.clone()));
            due.len()
        };
        assert_eq!((told("one"), told("one"), told("two")), (1, 0, 1));
    }

    #[test]
    fn a_node_is_left_when_its_replica_is_gone_for_a_while() {
        let of = |replica: &str| duties(&controller(vec![node("u"), dpu("u", replica), pod("c1")]), "system", "c1");
        assert_eq!(of("c1"), BTreeSet::new());
        let (mut done, now) = (Done::default(), tokio::time::Instant::now());
        assert_eq!(done.due(of("c2"), now), []);
        let leave = Duty::LeaveNode { node: "host1".to_owned(), part: Part::Host, replica: "c2".to_owned() };
        assert_eq!(done.due(of("c2"), now + INTERVAL), [leave]);
        assert_eq!(done.due(of("c1"), now + INTERVAL), [], "it found another");
        assert_eq!(duties(&controller(vec![dpu("u", "c2")]), "system", "c1"), BTreeSet::new(), "outside a cluster");
    }
}
