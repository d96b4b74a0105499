//! The attachments of this host as xDS resources, for the adapter.

use crate::record::{Phase, Record, Records};
use mesh_api::attach::Attachment;
use mesh_api::type_url;
use std::net::IpAddr;
use std::sync::Arc;
use xds::Resource;
use xds::server::{Store, Transaction};

/// The one view: the socket is this host's own.
pub const VIEW: &str = "host";

/// Keeps the store as the records say.
#[derive(Clone, Debug)]
pub struct Publisher {
    records: Arc<Records>,
    store: Store,
}

impl Publisher {
    /// Publishes nothing yet.
    pub fn new(records: Arc<Records>, store: Store) -> Self {
        Self { records, store }
    }

    /// Makes the published set what the records say. A port is attached once the dataplane was
    /// asked for it; one that is being removed is gone.
    pub fn refresh(&self) {
        let mut transaction = Transaction::new();
        transaction.replace(type_url::ATTACHMENT, resources(&self.records.list()));
        self.store.commit(VIEW, transaction);
    }
}

fn resources(records: &[Record]) -> Vec<Resource> {
    let live = records.iter().filter(|record| record.phase != Phase::Removing);
    live.filter_map(|record| {
        let port = record.port.as_ref()?;
        let attachment = Attachment {
            pod_uid: record.pod.uid.clone(),
            namespace: record.pod.namespace.clone(),
            name: record.pod.name.clone(),
            container_id: record.key.container_id.clone(),
            addresses: port.addresses.iter().map(IpAddr::to_string).collect(),
            port_id: port.id.clone(),
            mac: port.mac.to_string(),
            network: port.network.clone(),
        };
        Some(Resource::new(format!("{}/{}", record.pod.namespace, record.pod.name), &attachment))
    })
    .collect()
}
