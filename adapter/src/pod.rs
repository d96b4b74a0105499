//! A governed pod that is attached to this host: what the controller and the node daemon know of it
//! together, and how it presents itself to the control plane.

use mesh_api::attach::Attachment;
use mesh_api::type_url;
use mesh_api::workload::Workload;
use mesh_model::Identity;
use std::collections::BTreeMap;
use xds::Resource;

/// Everything about one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub identity: Identity,
    /// What the controller says.
    pub workload: Workload,
    /// Addresses that IPAM gave; at least one.
    pub addresses: Vec<String>,
    pub port_id: String,
    pub network: String,
}

/// Why an attached pod is not governed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ungoverned {
    #[error("the pod did not ask for the mesh")]
    NotAsked,
    #[error("the attachment is of pod {attached}, the controller knows {known}: waiting for the one that is behind")]
    AnotherPod { attached: String, known: String },
    #[error("the attachment has no address")]
    NoAddress,
    #[error(transparent)]
    Identity(#[from] mesh_model::IdentityError),
}

impl Pod {
    /// The pod of both views.
    pub fn new(workload: &Workload, attachment: &Attachment, trust_domain: &str) -> Result<Self, Ungoverned> {
        if !workload.governed {
            return Err(Ungoverned::NotAsked);
        }
        // Some runtimes do not pass the uid.
        if !attachment.pod_uid.is_empty() && attachment.pod_uid != workload.uid {
            let (attached, known) = (attachment.pod_uid.clone(), workload.uid.clone());
            return Err(Ungoverned::AnotherPod { attached, known });
        }
        if attachment.addresses.is_empty() {
            return Err(Ungoverned::NoAddress);
        }
        let account = match workload.service_account.as_str() {
            "" => "default",
            account => account,
        };
        Ok(Self {
            identity: Identity::new(trust_domain, &workload.namespace, account)?,
            workload: workload.clone(),
            addresses: attachment.addresses.clone(),
            port_id: attachment.port_id.clone(),
            network: attachment.network.clone(),
        })
    }

    /// Kubernetes pod UID.
    pub fn uid(&self) -> &str {
        &self.workload.uid
    }

    /// `NAMESPACE/POD`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.workload.namespace, self.workload.name)
    }

    /// For the stream to the proxy, with this scope.
    pub fn resource(&self, scope: &str) -> Resource {
        let workload = mesh_api::proxy::Workload {
            uid: self.workload.uid.clone(),
            namespace: self.workload.namespace.clone(),
            name: self.workload.name.clone(),
            identity: self.identity.to_string(),
            addresses: self.addresses.clone(),
            port_id: self.port_id.clone(),
            scope: scope.to_owned(),
            network: self.network.clone(),
            weight: 1,
            workload_name: self.workload.workload_name.clone(),
            labels: self.workload.labels.clone(),
            probes: self.workload.probes.clone(),
        };
        // Map entries are encoded in any order: the version is made of what does not vary.
        let labels: BTreeMap<&String, &String> = self.workload.labels.iter().collect();
        let unlabelled = mesh_api::proxy::Workload { labels: Default::default(), ..workload.clone() };
        let version = Resource::new("", &unlabelled).version;
        let labels = mesh_api::Any { type_url: format!("{labels:?}"), value: version.into_bytes() };
        let version = Resource::from_any("", labels).version;
        Resource { version, ..Resource::new(self.uid(), &workload) }
    }

    /// The type of `resource`.
    pub const TYPE_URL: &'static str = type_url::PROXY_WORKLOAD;
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::workload::{Probe, ProbeKind};

    #[test]
    fn probes_are_handed_on_and_a_change_of_them_is_a_new_version() {
        let with = |probes: Vec<Probe>| {
            let workload = Workload {
                uid: "u".to_owned(),
                namespace: "n".to_owned(),
                governed: true,
                probes,
                ..Workload::default()
            };
            let attachment = Attachment { addresses: vec!["10.0.0.1".to_owned()], ..Attachment::default() };
            Pod::new(&workload, &attachment, "td").expect("governed").resource("scope@1")
        };
        let probe = Probe { port: 8080, kind: ProbeKind::Http.into(), path: "/healthz".to_owned() };
        let resource = with(vec![probe.clone()]);
        assert_eq!(resource.decode::<mesh_api::proxy::Workload>().expect("own encoding").probes, [probe]);
        assert_ne!(resource.version, with(Vec::new()).version);
    }
}
