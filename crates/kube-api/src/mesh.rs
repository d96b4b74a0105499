//! Which pods ask for the mesh: the labels that Istio's injector reads, and ours.

use std::collections::BTreeMap;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// On a Namespace or a Pod: `true` or `false`, whatever Istio's labels say.
pub const GOVERNED: &str = "dpumesh.io/governed";

/// On a Pod, by Istio's injector or by our controller: `istio` says that it takes mutual TLS.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";

/// Whether a pod asked for the mesh, by its own labels and those of its namespace.
pub fn asks_for_mesh(pod: &Labels, namespace: &Labels, host_network: bool) -> bool {
    let of_pod = |name: &str| pod.get(name).map(String::as_str);
    let of_namespace = |name: &str| namespace.get(name).map(String::as_str);
    if host_network || of_pod(GOVERNED) == Some("false") || of_pod("sidecar.istio.io/inject") == Some("false") {
        return false;
    }
    if of_pod("sidecar.istio.io/inject").is_some() || of_pod(GOVERNED) == Some("true") {
        return true;
    }
    match (of_namespace(GOVERNED), of_namespace("istio-injection")) {
        (Some("true"), _) => true,
        (_, Some(injection)) => injection == "enabled",
        (_, None) => of_namespace("istio.io/rev").is_some() || of_pod("istio.io/rev").is_some(),
    }
}
