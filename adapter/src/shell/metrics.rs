//! Counters, and gauges that are read from the core when they are scraped.

use super::Shared;
use crate::translate::Kind;
use crate::translate::sidecar::Received;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tonic::Code;

type Labels = [(&'static str, String); 1];

/// Handles of the counters; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    resources: Family<Labels, Counter>,
    bytes: Family<Labels, Counter>,
    rejections: Family<Labels, Counter>,
    signatures: Family<Labels, Counter>,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry, shared: Shared) -> Self {
        let metrics = Self::default();
        let mut add =
            |name: &str, help: &str, family: &Family<Labels, Counter>| registry.register(name, help, family.clone());
        add("adapter_resources_received", "Resources from the control plane, over all streams", &metrics.resources);
        add("adapter_received_bytes", "Bytes of those resources", &metrics.bytes);
        add("adapter_rejections", "Resources that dpu-proxy refused", &metrics.rejections);
        add("adapter_sign_requests", "Signing requests by result", &metrics.signatures);
        registry.register_collector(Box::new(Gauges { shared }));
        metrics
    }

    pub(super) fn received(&self, type_url: &str, received: Received) {
        let labels = [("type", label(type_url))];
        self.resources.get_or_create(&labels).inc_by(received.resources);
        self.bytes.get_or_create(&labels).inc_by(received.bytes);
    }

    pub(super) fn rejected(&self, type_url: &str, count: usize) {
        self.rejections.get_or_create(&[("type", label(type_url))]).inc_by(count as u64);
    }

    pub(super) fn signed(&self, result: Result<(), Code>) {
        let result = result.map_or_else(|code| format!("{code:?}"), |()| "Ok".to_owned());
        self.signatures.get_or_create(&[("result", result)]).inc();
    }
}

fn label(type_url: &str) -> String {
    let last = || type_url.rsplit(['.', '/']).next().unwrap_or_default().to_owned();
    Kind::of(type_url).map_or_else(last, |kind| kind.label().to_owned())
}

/// State of the core.
#[derive(Debug)]
struct Gauges {
    shared: Shared,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let aggregate = self.shared.aggregate();
        let bytes: usize = aggregate.store.resources().map(|content| content.size()).sum();
        let gauges = [
            ("adapter_resources_stored", "Distinct resources that are served", aggregate.store.resources().count()),
            ("adapter_stored_bytes", "Bytes of those resources", bytes),
            ("adapter_scopes", "Distinct scopes that are served", aggregate.store.scopes().count()),
            ("adapter_workloads", "Attached, governed workloads", aggregate.members()),
            ("adapter_workloads_synced", "Workloads whose configuration was complete once", aggregate.synced()),
            ("adapter_workload_streams", "Open streams to the control plane", aggregate.connected()),
            ("adapter_rejected_resources", "Resources that dpu-proxy refuses now", aggregate.rejections.len()),
        ];
        drop(aggregate);
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
