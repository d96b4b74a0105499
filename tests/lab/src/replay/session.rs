//! What istiod says on one incremental stream; pure.
//!
//! CDS and LDS go to everyone who asks (wildcard), EDS and RDS by name. No resource carries a version of its
//! own, only the response does. A request with an old nonce is ignored unless it subscribes to more; what
//! was refused is not sent again until it changes.

use super::recordings::{PUSH_ORDER, Table, Tables};
use mesh_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_api::type_url;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A refusal, for the log and `/nacks`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Nack {
    pub type_url: String,
    pub message: String,
}

/// The state of a stream.
#[derive(Debug)]
pub struct Session {
    tables: Arc<Tables>,
    version: u64,
    nonce: u64,
    subscriptions: BTreeMap<String, Subscription>,
}

#[derive(Debug, Default)]
struct Subscription {
    names: BTreeSet<String>,
    nonce: String,
}

impl Session {
    /// A stream that has asked for nothing yet.
    pub fn new(tables: Arc<Tables>, version: u64) -> Self {
        Self { tables, version, nonce: 0, subscriptions: BTreeMap::new() }
    }

    /// Takes a request; at most one response.
    pub fn handle(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<DeltaDiscoveryResponse>, Nack> {
        let kind = request.type_url.clone();
        let is_first = !self.subscriptions.contains_key(&kind);
        let subscription = self.subscriptions.entry(kind.clone()).or_default();
        request.resource_names_unsubscribe.iter().for_each(|name| {
            subscription.names.remove(name);
        });
        let asked: Vec<String> = request.resource_names_subscribe;
        subscription.names.extend(asked.iter().cloned());
        if is_first {
            // After a reconnection the client names what it holds.
            subscription.names.extend(request.initial_resource_versions.keys().cloned());
            return Ok(Some(self.first(&kind, &request.initial_resource_versions)));
        }
        if let Some(error) = request.error_detail.filter(|_| request.response_nonce == subscription.nonce) {
            return Err(Nack { type_url: kind, message: error.message });
        }
        let named: Vec<String> = asked.into_iter().filter(|name| name != "*").collect();
        Ok((!named.is_empty()).then(|| self.named(&kind, named)))
    }

    /// Another configuration is in force: what changed, in istiod's order.
    pub fn push(&mut self, tables: Arc<Tables>, version: u64) -> Vec<DeltaDiscoveryResponse> {
        let before = std::mem::replace(&mut self.tables, tables);
        self.version = version;
        let kinds = PUSH_ORDER.into_iter().filter(|kind| self.subscriptions.contains_key(*kind));
        let changed: Vec<&str> = kinds.filter(|kind| before.get(kind) != self.tables.get(kind)).collect();
        changed.into_iter().map(|kind| self.difference(kind, before.get(kind))).collect()
    }

    fn first(&mut self, kind: &str, held: &std::collections::HashMap<String, String>) -> DeltaDiscoveryResponse {
        let table = self.table(kind);
        let names: Vec<String> = match is_wildcard(kind) {
            true => table.keys().cloned().collect(),
            false => self.subscriptions[kind].names.iter().cloned().collect(),
        };
        let gone = held.keys().filter(|name| !table.contains_key(*name)).cloned().collect();
        self.respond(kind, &names, gone)
    }

    fn named(&mut self, kind: &str, names: Vec<String>) -> DeltaDiscoveryResponse {
        let table = self.table(kind);
        let absent = names.iter().filter(|name| !table.contains_key(*name)).cloned().collect();
        self.respond(kind, &names, absent)
    }

    fn difference(&mut self, kind: &str, before: Option<&Table>) -> DeltaDiscoveryResponse {
        let empty = Table::new();
        let (before, now) = (before.unwrap_or(&empty), self.table(kind));
        let wanted = |name: &String| is_wildcard(kind) || self.subscriptions[kind].names.contains(name);
        let changed = now.iter().filter(|(name, body)| before.get(*name) != Some(*body));
        let changed: Vec<String> = changed.map(|(name, _)| name.clone()).filter(wanted).collect();
        let gone: Vec<String> =
            before.keys().filter(|name| !now.contains_key(*name)).filter(|name| wanted(name)).cloned().collect();
        self.respond(kind, &changed, gone)
    }

    fn table(&self, kind: &str) -> Table {
        self.tables.get(kind).cloned().unwrap_or_default()
    }

    fn respond(&mut self, kind: &str, names: &[String], removed: Vec<String>) -> DeltaDiscoveryResponse {
        let table = self.table(kind);
        let found = names.iter().filter_map(|name| table.get(name).map(|body| (name, body)));
        let resources = found.map(|(name, body)| Resource {
            name: name.clone(),
            resource: Some(body.clone()),
            ..Resource::default()
        });
        self.nonce += 1;
        let nonce = format!("replay-{}", self.nonce);
        if let Some(subscription) = self.subscriptions.get_mut(kind) {
            subscription.nonce.clone_from(&nonce);
        }
        DeltaDiscoveryResponse {
            system_version_info: format!("2026-01-01T00:00:00Z/{}", self.version),
            resources: resources.collect(),
            type_url: kind.to_owned(),
            removed_resources: removed,
            nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

fn is_wildcard(kind: &str) -> bool {
    matches!(kind, type_url::CLUSTER | type_url::LISTENER | type_url::NAME_TABLE | type_url::PROXY_CONFIG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::fixtures;
    use crate::replay::{Recordings, Scenario};

    fn request(kind: &str, names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn session() -> (Recordings, Session) {
        let recordings = Recordings::load(&fixtures()).expect("fixtures");
        let tables = recordings.tables("curl", Scenario::Demo).expect("recorded");
        (recordings, Session::new(tables, 1))
    }

    #[test]
    fn clusters_come_unasked_and_routes_by_name() {
        let (_, mut session) = session();
        let clusters = session.handle(request(type_url::CLUSTER, &[])).expect("no refusal").expect("response");
        assert!(clusters.resources.len() > 10 && clusters.resources.iter().all(|one| one.version.is_empty()));
        let routes = session.handle(request(type_url::ROUTE_CONFIGURATION, &["9080", "no-such"])).expect("no refusal");
        let routes = routes.expect("response");
        let names: Vec<&str> = routes.resources.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["9080"]);
        let ack = DeltaDiscoveryRequest { response_nonce: routes.nonce, ..request(type_url::ROUTE_CONFIGURATION, &[]) };
        assert_eq!(session.handle(ack), Ok(None));
    }

    #[test]
    fn a_shift_sends_the_changed_routes_to_those_who_asked_for_them() {
        let (recordings, mut session) = session();
        let shift = recordings.tables("curl", Scenario::Shift).expect("recorded");
        let first =
            session.handle(request(type_url::ROUTE_CONFIGURATION, &["9080"])).expect("no refusal").expect("response");
        let pushed = session.push(shift, 2);
        assert_eq!(pushed.len(), 1);
        assert_ne!(pushed[0].resources[0].resource, first.resources[0].resource);
        assert!(pushed[0].system_version_info.ends_with("/2"));
    }

    #[test]
    fn a_refusal_is_told_and_an_old_one_is_not() {
        let (_, mut session) = session();
        let first = session.handle(request(type_url::CLUSTER, &[])).expect("no refusal").expect("response");
        let error = mesh_api::envoy_pb::google::rpc::Status { message: "bad".to_owned(), ..Default::default() };
        let nack = |nonce: &str| DeltaDiscoveryRequest {
            response_nonce: nonce.to_owned(),
            error_detail: Some(error.clone()),
            ..request(type_url::CLUSTER, &[])
        };
        assert_eq!(session.handle(nack("old")), Ok(None));
        assert_eq!(session.handle(nack(&first.nonce)).expect_err("refused").message, "bad");
    }
}
