//! Which of Istio's `PeerAuthentication` objects shape a pod. Pure.
//!
//! istiod leaves no trace of them in what it sends, so that the adapter cannot name them. Here they are found as istiod
//! finds them: the oldest that selects the pod, the oldest of the pod's namespace, the oldest of the mesh's root namespace;
//! the first of these that has a mode decides. It is in force once the pod takes connections as it says, which the
//! adapter tells.

use crate::crd::{DpuWorkloadStatus, MutualTls};
use crate::object::Labels;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;
use std::collections::BTreeMap;

/// As in a manifest.
pub const KIND: &str = "PeerAuthentication";

/// Where objects for the whole mesh are, unless Istio's `rootNamespace` says otherwise.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// Namespace and name.
pub type Name = (String, String);

/// What matters of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Empty: all pods of its namespace.
    pub selector: Labels,
    /// Absent: the next wider object decides.
    pub mode: Option<MutualTls>,
    /// Whether it says something of single ports, which takes a selector.
    pub has_ports: bool,
    pub created: Option<Timestamp>,
}

impl PeerAuthentication {
    /// Of an object of the API server.
    pub fn of(object: &DynamicObject) -> (Name, Self) {
        let spec = &object.data["spec"];
        let selector = strings(&spec["selector"]["matchLabels"]);
        let one = Self {
            mode: mode(&spec["mtls"]["mode"]),
            has_ports: !selector.is_empty() && spec["portLevelMtls"].as_object().is_some_and(|ports| !ports.is_empty()),
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
            selector,
        };
        ((object.namespace().unwrap_or_default(), object.name_any()), one)
    }

    fn selects(&self, labels: &Labels) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

fn mode(value: &Value) -> Option<MutualTls> {
    match value.as_str()? {
        "DISABLE" => Some(MutualTls::Disabled),
        "PERMISSIVE" => Some(MutualTls::Permissive),
        "STRICT" => Some(MutualTls::Strict),
        _ => None,
    }
}

fn strings(value: &Value) -> Labels {
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// All of a cluster.
#[derive(Clone, Debug)]
pub struct PeerAuthentications {
    root_namespace: String,
    objects: BTreeMap<Name, PeerAuthentication>,
    /// A list under way.
    list: BTreeMap<Name, PeerAuthentication>,
    /// They were listed once, or cannot be seen.
    is_known: bool,
}

impl Default for PeerAuthentications {
    fn default() -> Self {
        Self::of_mesh(ROOT_NAMESPACE)
    }
}

impl PeerAuthentications {
    /// Of a mesh with that root namespace.
    pub fn of_mesh(root_namespace: &str) -> Self {
        let root_namespace = root_namespace.to_owned();
        Self { root_namespace, objects: BTreeMap::new(), list: BTreeMap::new(), is_known: false }
    }

    /// A list begins.
    pub fn list_begins(&mut self) {
        self.list.clear();
    }

    /// The list has this one.
    pub fn listed(&mut self, (name, one): (Name, PeerAuthentication)) {
        self.list.insert(name, one);
    }

    /// The list is complete: it is what there is.
    pub fn list_ends(&mut self) {
        (self.objects, self.is_known) = (std::mem::take(&mut self.list), true);
    }

    /// The kind is not served, or may not be read: none can be named. Whether that is news.
    pub fn withheld(&mut self) -> bool {
        let is_news = !self.is_known || !self.objects.is_empty();
        self.list.clear();
        self.list_ends();
        is_news
    }

    /// One is there.
    pub fn put(&mut self, (name, one): (Name, PeerAuthentication)) {
        self.objects.insert(name, one);
    }

    /// One is gone.
    pub fn remove(&mut self, name: &Name) {
        self.objects.remove(name);
    }

    /// Adds those in force to what is told of a pod. Before they are known, those that were told before stay.
    pub fn add_to(&self, now: &mut DpuWorkloadStatus, before: &DpuWorkloadStatus, namespace: &str, labels: &Labels) {
        let added = match self.is_known {
            true => self.in_force(namespace, labels, now.mutual_tls),
            false => before.istio_objects.iter().filter(|object| object.starts_with(KIND)).cloned().collect(),
        };
        now.istio_objects.extend(added);
        now.istio_objects.sort();
    }

    /// Texts `KIND NAMESPACE/NAME` of those that shape a pod which takes connections so.
    fn in_force(&self, namespace: &str, labels: &Labels, told: Option<MutualTls>) -> Vec<String> {
        let shaping = self.shaping(namespace, labels);
        let decided = shaping.iter().find_map(|(_, one)| one.mode);
        let has_ports = shaping.iter().any(|(_, one)| one.has_ports);
        // With ports of their own, what is told of all ports is neither the one nor the other.
        match told.is_some() && (has_ports || decided == told) {
            true => shaping.into_iter().map(|((namespace, name), _)| format!("{KIND} {namespace}/{name}")).collect(),
            false => Vec::new(),
        }
    }

    /// From the narrowest to the one that decides.
    fn shaping(&self, namespace: &str, labels: &Labels) -> Vec<(&Name, &PeerAuthentication)> {
        let is_root = namespace == self.root_namespace;
        // Istio ignores selectors in the root namespace.
        let own = self.oldest(namespace, |one| !is_root && one.selects(labels));
        let of_namespace = self.oldest(namespace, |one| !is_root && one.selector.is_empty());
        let of_mesh = self.oldest(&self.root_namespace, |one| one.selector.is_empty());
        let mut shaping = Vec::new();
        for found in [own, of_namespace, of_mesh].into_iter().flatten() {
            if found.1.mode.is_some() || found.1.has_ports {
                shaping.push(found);
            }
            if found.1.mode.is_some() {
                break;
            }
        }
        shaping
    }

    fn oldest(
        &self,
        namespace: &str,
        is_meant: impl Fn(&PeerAuthentication) -> bool,
    ) -> Option<(&Name, &PeerAuthentication)> {
        let within = self.objects.iter().filter(|(name, one)| name.0 == namespace && is_meant(one));
        within.min_by_key(|(name, one)| (one.created, *name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(namespace: &str, name: &str, second: u8, spec: Value) -> (Name, PeerAuthentication) {
        let time = format!("2026-01-01T00:00:{second:02}Z");
        let metadata = json!({"namespace": namespace, "name": name, "creationTimestamp": time});
        let object = json!({"apiVersion": "security.istio.io/v1", "kind": KIND, "metadata": metadata, "spec": spec});
        PeerAuthentication::of(&serde_json::from_value(object).expect("an object"))
    }

    fn all(objects: Vec<(Name, PeerAuthentication)>) -> PeerAuthentications {
        let mut all = PeerAuthentications::default();
        all.list_begins();
        objects.into_iter().for_each(|one| all.listed(one));
        all.list_ends();
        all
    }

    fn names(all: &PeerAuthentications, app: &str, told: MutualTls) -> Vec<String> {
        all.in_force("n", &Labels::from([("app".to_owned(), app.to_owned())]), Some(told))
    }

    fn of(app: &str, mode: &str) -> Value {
        json!({"selector": {"matchLabels": {"app": app}}, "mtls": {"mode": mode}})
    }

    #[test]
    fn the_narrowest_with_a_mode_decides_and_the_oldest_of_its_kind() {
        let strict = || json!({"mtls": {"mode": "STRICT"}});
        let all = all(vec![
            object("istio-system", "mesh", 1, strict()),
            object("istio-system", "selects", 0, of("a", "DISABLE")),
            object("n", "younger", 3, strict()),
            object("n", "older", 2, json!({"mtls": {"mode": "PERMISSIVE"}})),
            object("n", "own", 4, of("a", "DISABLE")),
            object("other", "default", 1, strict()),
        ]);
        assert_eq!(names(&all, "a", MutualTls::Disabled), ["PeerAuthentication n/own"]);
        assert_eq!(names(&all, "b", MutualTls::Permissive), ["PeerAuthentication n/older"]);
        let of_mesh = all.in_force("elsewhere", &Labels::new(), Some(MutualTls::Strict));
        assert_eq!(of_mesh, ["PeerAuthentication istio-system/mesh"]);
    }

    #[test]
    fn one_that_is_not_in_force_yet_is_not_named() {
        let all = all(vec![object("n", "default", 1, json!({"mtls": {"mode": "STRICT"}}))]);
        assert_eq!(names(&all, "a", MutualTls::Permissive), [""; 0]);
        assert_eq!(all.in_force("n", &Labels::new(), None), [""; 0], "nothing is in force");
        assert_eq!(names(&all, "a", MutualTls::Strict), ["PeerAuthentication n/default"]);
    }

    #[test]
    fn one_that_speaks_of_ports_only_leaves_the_others_to_the_next_wider() {
        let ports =
            json!({"selector": {"matchLabels": {"app": "a"}}, "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}});
        let all = all(vec![
            object("n", "ports", 1, ports),
            object("n", "default", 1, json!({"mtls": {"mode": "STRICT"}})),
            object("istio-system", "mesh", 1, json!({"mtls": {"mode": "UNSET"}})),
        ]);
        let both = ["PeerAuthentication n/ports", "PeerAuthentication n/default"];
        assert_eq!(names(&all, "a", MutualTls::Permissive), both);
        assert_eq!(names(&all, "b", MutualTls::Strict), ["PeerAuthentication n/default"]);
    }

    #[test]
    fn until_they_are_known_those_that_were_told_stay() {
        let told = |objects: &[&str]| DpuWorkloadStatus {
            istio_objects: objects.iter().map(|object| (*object).to_owned()).collect(),
            mutual_tls: Some(MutualTls::Strict),
            ..DpuWorkloadStatus::default()
        };
        let before = told(&["DestinationRule n/gone", "PeerAuthentication n/default"]);
        let mut now = told(&["VirtualService n/r"]);
        PeerAuthentications::default().add_to(&mut now, &before, "n", &Labels::new());
        assert_eq!(now.istio_objects, ["PeerAuthentication n/default", "VirtualService n/r"]);
        let mut now = told(&["VirtualService n/r"]);
        all(Vec::new()).add_to(&mut now, &before, "n", &Labels::new());
        assert_eq!(now.istio_objects, ["VirtualService n/r"]);
    }
}
