//! What the controller measures.

use crate::Controller;
use crate::object::Kind;
use crate::tables::Changes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use xds::server::Event;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabel {
    change: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    objects: Family<KindLabel, Gauge>,
    refused_files: Gauge,
    changes: Family<ChangeLabel, Counter>,
    version: Gauge,
    streams: Gauge,
    nacks: Counter,
    report_writes: Family<OutcomeLabel, Counter>,
    leads: Gauge,
}

impl Metrics {
    /// Registered under `controller_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("controller");
        registry.register("objects", "Objects in force, by kind", metrics.objects.clone());
        registry.register(
            "refused_manifests",
            "Manifests or objects refused as they are written",
            metrics.refused_files.clone(),
        );
        registry.register("changes", "Objects changed, by how", metrics.changes.clone());
        registry.register("tables_version", "Version of the tables", metrics.version.clone());
        registry.register("streams", "Discovery streams that are open", metrics.streams.clone());
        registry.register("nacks", "Updates that a client refused in part", metrics.nacks.clone());
        let help = "Writes of what nodes report, by outcome";
        registry.register("report_writes", help, metrics.report_writes.clone());
        registry.register("leads", "1 while this replica holds the lease", metrics.leads.clone());
        metrics
    }

    /// Whether this replica holds the lease.
    pub fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
    }

    /// After an attempt to write what a node reported.
    pub fn report_written(&self, outcome: &'static str) {
        self.report_writes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// After a load.
    pub fn loaded(&self, controller: &Controller, changes: Changes) {
        for kind in Kind::ALL {
            let label = KindLabel { kind: kind.as_str() };
            self.objects.get_or_create(&label).set(controller.count(kind) as i64);
        }
        self.refused_files.set(controller.refusals().len() as i64);
        self.version.set(controller.version() as i64);
        for (change, number) in [("put", changes.put), ("removed", changes.removed)] {
            self.changes.get_or_create(&ChangeLabel { change }).inc_by(number as u64);
        }
    }

    /// Of the discovery server.
    pub fn stream(&self, event: &Event) {
        match event {
            Event::Connected { view, .. } => {
                tracing::info!(node = view, "a program of the node follows its view");
                self.streams.inc();
            }
            Event::Disconnected { view, .. } => {
                tracing::info!(node = view, "a program of the node left");
                self.streams.dec();
            }
            Event::Acked { .. } => {}
            Event::Nacked { view, type_url, rejected, .. } => {
                tracing::error!(node = view, type_url, ?rejected, "resources were refused");
                self.nacks.inc();
            }
        }
    }
}
