//! What the adapter tells a person: `/workloads`, `/aggregation`, `/rejections`.

use super::{Shared, standing};
use crate::node;
use crate::translate::aggregate::Member;
use crate::translate::{Aggregate, Content};
use serde_json::{Map, Value, json};
use std::sync::{Arc, PoisonError};

/// Every attached pod: its stream, its configuration, its errors.
pub(super) fn workloads(shared: &Shared) -> String {
    let aggregate = shared.aggregate();
    let governed: Vec<Value> = aggregate.members.values().map(|member| workload(shared, member, &aggregate)).collect();
    drop(aggregate);
    let ungoverned = shared.ungoverned.lock().unwrap_or_else(PoisonError::into_inner).clone();
    pretty(&json!({ "workloads": governed, "ungoverned": ungoverned }))
}

fn workload(shared: &Shared, member: &Member, aggregate: &Aggregate) -> Value {
    let obstacle = standing::obstacle(shared, member);
    let counts = member.sidecar.counts();
    let counts: Map<String, Value> =
        counts.into_iter().map(|(kind, count)| (kind.label().to_owned(), json!(count))).collect();
    let unfit: Map<String, Value> =
        member.unfit.iter().map(|((kind, name), reason)| (format!("{} {name}", kind.label()), json!(reason))).collect();
    json!({
        "uid": member.pod.uid(),
        "namespace": member.pod.workload.namespace,
        "name": member.pod.workload.name,
        "identity": member.pod.identity.to_string(),
        "addresses": member.pod.addresses,
        "port_id": member.pod.port_id,
        "node_id": node::id(&member.pod),
        "stream": if member.stream.is_connected { "connected" } else { "disconnected" },
        "connections": member.stream.connections,
        "error": obstacle.as_ref().map(|trouble| &trouble.reason),
        "denied": obstacle.as_ref().is_some_and(|trouble| trouble.is_denied),
        "version": member.stream.version,
        "scope": member.served.as_ref().map(|(served, _)| served.name()),
        "accepted_scope": member.accepted.as_ref().map(|accepted| accepted.name()),
        "desired_scope": member.desired.as_ref().map(|desired| desired.name()),
        "missing": member.sidecar.missing(),
        "counts": counts,
        "received_resources": member.received.resources,
        "received_bytes": member.received.bytes,
        "unfit": unfit,
        "refused_by_proxy": refused(member, aggregate),
    })
}

fn refused(member: &Member, aggregate: &Aggregate) -> Vec<String> {
    let own = aggregate.rejections.iter().filter(|((type_url, name), _)| member.names(type_url, name));
    own.map(|((_, name), reason)| format!("{name}: {reason}")).collect()
}

/// What was received for all workloads against what is stored.
pub(super) fn aggregation(aggregate: &Aggregate) -> String {
    let held = aggregate.members.values().map(|member| (member.pod.name(), member.sidecar.held()));
    let workloads: Map<String, Value> =
        held.clone().map(|(name, held)| (name, json!({"resources": held.resources, "bytes": held.bytes}))).collect();
    let (resources, bytes) = held.fold((0, 0), |sum, (_, held)| (sum.0 + held.resources, sum.1 + held.bytes));
    let stored: Vec<&Arc<Content>> = aggregate.store.resources().collect();
    let stored_bytes: usize = stored.iter().map(|content| content.size()).sum();
    let scopes: Map<String, Value> =
        aggregate.store.scopes().map(|(name, users)| (name.to_owned(), json!(users))).collect();
    pretty(&json!({
        "workloads": workloads,
        "received": {"resources": resources, "bytes": bytes},
        "stored": {"resources": stored.len(), "bytes": stored_bytes},
        "ratio": {"resources": ratio(resources, stored.len() as u64), "bytes": ratio(bytes, stored_bytes as u64)},
        "scopes": scopes,
    }))
}

/// How many times what is stored was received; 0 when nothing is stored.
fn ratio(received: u64, stored: u64) -> f64 {
    if stored == 0 { 0.0 } else { (received as f64 / stored as f64 * 100.0).round() / 100.0 }
}

/// What the proxy refuses now, and for whom.
pub(super) fn rejections(aggregate: &Aggregate) -> String {
    let one = |((type_url, name), reason): (&(String, String), &String)| {
        let using = aggregate.members.values().filter(|member| member.names(type_url, name));
        let workloads: Vec<String> = using.map(|member| member.pod.name()).collect();
        json!({"type": type_url, "resource": name, "reason": reason, "workloads": workloads})
    };
    pretty(&Value::Array(aggregate.rejections.iter().map(one).collect()))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
