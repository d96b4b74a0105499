//! The calls to the API server, and what becomes of their errors.

use super::Part;
use super::node::ready;
use super::workload::part_of;
use crate::crd::mesh::TLS_MODE;
use crate::crd::{DpuNode, DpuNodeStatus, DpuWorkload, DpuWorkloadStatus, GROUP};
use crate::watchers::explain;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use mesh_api::report::WorkloadReport;
use serde::Serialize;
use serde_json::{Value, json};

/// Owner of what the controller itself says.
pub(crate) const CONTROLLER: &str = "dpumesh-controller";

/// Why something is not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The object that it belongs to is not known (yet, or any more).
    Unknown,
    /// Trying again helps.
    Retry(String),
    /// It helps when somebody gives the right; an API server that has just started also refuses for a while.
    Forbidden(String),
    /// It does not.
    Final(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else { return Self::Retry(explain(&error)) };
        let message = status.message.clone();
        match status.code {
            404 => Self::Unknown,
            403 if message.contains("being terminated") => Self::Unknown,
            403 => Self::Forbidden(format!("{message}; give the controller its role (the chart has it)")),
            409 | 429 | 500.. => Self::Retry(message),
            _ => Self::Final(message),
        }
    }
}

/// Writes parts of statuses.
#[derive(Clone)]
pub(crate) struct Writes {
    pub(crate) client: Client,
}

impl Writes {
    fn workloads(&self, namespace: &str) -> Api<DpuWorkload> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn nodes(&self) -> Api<DpuNode> {
        Api::all(self.client.clone())
    }

    /// A part of what is written of a pod now; nothing when the object is of an older pod of that name.
    pub(super) async fn workload(&self, part: Part, report: &WorkloadReport) -> Result<DpuWorkloadStatus, Failure> {
        let workloads = self.workloads(&report.namespace);
        let Some(object) = workloads.get_opt(&report.name).await? else { return Ok(DpuWorkloadStatus::default()) };
        if is_of(&object, &report.uid) {
            return Ok(part_of(&object.status.unwrap_or_default(), part));
        }
        self.delete_workload(&object).await?;
        Ok(DpuWorkloadStatus::default())
    }

    /// The same, by name.
    pub(super) async fn workload_named(
        &self,
        part: Part,
        namespace: &str,
        name: &str,
    ) -> Result<DpuWorkloadStatus, Failure> {
        let object = self.workloads(namespace).get_opt(name).await?;
        Ok(part_of(&object.and_then(|object| object.status).unwrap_or_default(), part))
    }

    /// Writes a part; makes the object if need be.
    pub(super) async fn put_workload(
        &self,
        part: Part,
        report: &WorkloadReport,
        status: &DpuWorkloadStatus,
    ) -> Result<(), Failure> {
        let (namespace, name) = (report.namespace.as_str(), report.name.as_str());
        let written = match self.apply_workload(part, namespace, name, status).await {
            Err(Failure::Unknown) => {
                self.make_workload(report).await?;
                self.apply_workload(part, namespace, name, status).await?
            }
            written => written?,
        };
        if is_of(&written, &report.uid) {
            return Ok(());
        }
        self.delete_workload(&written).await?;
        Err(Failure::Retry("it was of an older pod of that name".to_owned()))
    }

    /// Takes a part back; removes the object when nothing else is told.
    pub(super) async fn clear_workload(&self, part: Part, namespace: &str, name: &str) -> Result<(), Failure> {
        let left = match self.apply_workload(part, namespace, name, &DpuWorkloadStatus::default()).await {
            Err(Failure::Unknown) => return Ok(()),
            left => left?,
        };
        match left.status.as_ref() {
            Some(status) if *status != DpuWorkloadStatus::default() => Ok(()),
            _ => self.delete_workload(&left).await,
        }
    }

    async fn apply_workload(
        &self,
        part: Part,
        namespace: &str,
        name: &str,
        status: &DpuWorkloadStatus,
    ) -> Result<DpuWorkload, Failure> {
        let body = body("DpuWorkload", json!({"name": name, "namespace": namespace}), Some(status));
        let workloads = self.workloads(namespace);
        Ok(workloads.patch_status(name, &owned_by(part.manager()), &Patch::Apply(body)).await?)
    }

    async fn make_workload(&self, report: &WorkloadReport) -> Result<(), Failure> {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": report.name, "uid": report.uid});
        let metadata = json!({"name": report.name, "namespace": report.namespace, "ownerReferences": [owner]});
        let body = body("DpuWorkload", metadata, None::<&()>);
        let workloads = self.workloads(&report.namespace);
        workloads.patch(&report.name, &owned_by(CONTROLLER), &Patch::Apply(body)).await?;
        Ok(())
    }

    /// Says by the pod's label, as Istio's injector does, that the pod takes mutual TLS: istiod tells clients to use it
    /// with pods that have this label only.
    pub(super) async fn tell_mutual_tls(&self, report: &WorkloadReport) -> Result<(), Failure> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &report.namespace);
        // With the uid, so that a new pod of the name is not meant.
        let body = json!({"metadata": {"uid": report.uid, "labels": {TLS_MODE: "istio"}}});
        pods.patch_metadata(&report.name, &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    async fn delete_workload(&self, object: &DpuWorkload) -> Result<(), Failure> {
        let preconditions = Preconditions { uid: object.uid(), resource_version: None };
        let exactly = DeleteParams::default().preconditions(preconditions);
        let workloads = self.workloads(&object.namespace().unwrap_or_default());
        match workloads.delete(&object.name_any(), &exactly).await.map_err(Failure::from) {
            // It is gone, or another took its place.
            Ok(_) | Err(Failure::Unknown | Failure::Retry(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// What is written of a node now.
    pub(crate) async fn node(&self, node: &str) -> Result<DpuNodeStatus, Failure> {
        Ok(self.nodes().get(node).await?.status.unwrap_or_default())
    }

    /// Writes a part, and whether the node is ready, which depends on both parts.
    pub(crate) async fn put_node_part(&self, part: Part, node: &str, status: &DpuNodeStatus) -> Result<(), Failure> {
        let whole = self.put_node(part.manager(), node, status).await?;
        let ready = ready(&whole, Timestamp::now());
        if whole.conditions.contains(&ready) {
            return Ok(());
        }
        let status = DpuNodeStatus { conditions: vec![ready], ..DpuNodeStatus::default() };
        self.put_node(CONTROLLER, node, &status).await.map(drop)
    }

    async fn put_node(&self, manager: &str, node: &str, status: &DpuNodeStatus) -> Result<DpuNodeStatus, Failure> {
        let body = body("DpuNode", json!({"name": node}), Some(status));
        let written = self.nodes().patch_status(node, &owned_by(manager), &Patch::Apply(body)).await?;
        Ok(written.status.unwrap_or_default())
    }
}

fn is_of(object: &DpuWorkload, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.uid == uid)
}

fn owned_by(manager: &str) -> PatchParams {
    PatchParams::apply(manager).force()
}

/// An object of ours, as it is applied.
pub(crate) fn body<S: Serialize>(kind: &str, metadata: Value, status: Option<&S>) -> Value {
    let mut body = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata});
    if let Some(status) = status {
        body["status"] = json!(status);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str) -> Failure {
        let status = kube::core::Status { code, message: message.to_owned(), ..kube::core::Status::default() };
        kube::Error::Api(Box::new(status)).into()
    }

    #[test]
    fn an_error_is_tried_again_only_where_that_helps() {
        assert_eq!(api(404, "not found"), Failure::Unknown);
        assert_eq!(api(403, "namespace n is being terminated"), Failure::Unknown);
        assert!(matches!(api(403, "may not patch"), Failure::Forbidden(reason) if reason.contains("role")));
        assert!(matches!(api(422, "invalid"), Failure::Final(_)));
        for code in [409, 429, 500, 503] {
            assert!(matches!(api(code, "later"), Failure::Retry(_)), "{code}");
        }
    }
}
