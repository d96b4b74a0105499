//! Counters of the maps as metrics, and the ports as JSON.

use crate::DropReason;
use crate::engine::Ports;
use crate::sys::abi::Counters;
use crate::sys::programs::CounterReader;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// Reads the maps when it is asked.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct Metrics {
    pub ports: watch::Receiver<Ports>,
    pub counters: CounterReader,
    /// Proxies on the steering socket.
    pub proxies: Arc<AtomicUsize>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

type Field = fn(&Counters) -> u64;

const FIELDS: [(&str, &str, Field); 5] = [
    ("dataplane_port_rx_packets", "Packets that the pod sent", |counters| counters.rx_packets),
    ("dataplane_port_rx_bytes", "Bytes that the pod sent, with Ethernet headers", |counters| counters.rx_bytes),
    ("dataplane_port_tx_packets", "Packets that the pod got", |counters| counters.tx_packets),
    ("dataplane_port_tx_bytes", "Bytes that the pod got, with Ethernet headers", |counters| counters.tx_bytes),
    ("dataplane_steered_connections", "TCP connections handed to the proxy", |counters| counters.steered),
];

impl Metrics {
    /// Names and counters of the uplink and all ports. What cannot be read is left out.
    fn read(&self) -> Vec<(String, Counters)> {
        let ports = Arc::clone(&self.ports.borrow());
        let slots =
            std::iter::once(("uplink".to_owned(), 0)).chain(ports.iter().map(|(id, port)| (id.clone(), port.slot)));
        slots.filter_map(|(id, slot)| Some((id, self.counters.read(slot).ok()?))).collect()
    }

    /// Every port with its state and counters, for a person.
    pub fn json(&self) -> String {
        let ports = Arc::clone(&self.ports.borrow());
        let described = ports.values().map(|port| {
            let counters = self.counters.read(port.slot).unwrap_or_default();
            let drops = DropReason::ALL.iter().zip(counters.drops).filter(|(_, count)| *count > 0);
            serde_json::json!({
                "id": port.wire.id, "representor": port.wire.representor, "ifindex": port.device.ifindex,
                "pod": format!("{}/{}", port.wire.namespace, port.wire.name), "workload_uid": port.wire.workload_uid,
                "addresses": port.wire.addresses, "mac": port.mac, "gateway_mac": port.device.mac, "slot": port.slot,
                "governed": port.is_governed(), "on_failure": port.wire.on_failure().as_str_name(),
                "open": port.is_open(), "ready": port.ready, "reason": port.reason,
                "rx_packets": counters.rx_packets, "rx_bytes": counters.rx_bytes,
                "tx_packets": counters.tx_packets, "tx_bytes": counters.tx_bytes, "steered_connections": counters.steered,
                "drops": drops.map(|(reason, count)| (reason.name().to_owned(), count.into())).collect::<serde_json::Map<_, _>>(),
            })
        });
        serde_json::Value::Array(described.collect()).to_string()
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.read();
        for (name, help, field) in FIELDS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (port, counters) in
                all.iter().filter(|(_, counters)| name.contains("steered") || *counters != Counters::default())
            {
                ConstCounter::new(field(counters)).encode(family.encode_family(&[("port", port.as_str())])?)?;
            }
        }
        let mut family =
            encoder.encode_descriptor("dataplane_drops", "Packets that were dropped", None, MetricType::Counter)?;
        for (port, counters) in &all {
            for (reason, count) in DropReason::ALL.iter().zip(counters.drops).filter(|(_, count)| *count > 0) {
                let labels = [("port", port.as_str()), ("reason", reason.name())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let ports = Arc::clone(&self.ports.borrow());
        let mut family =
            encoder.encode_descriptor("dataplane_port_open", "Whether traffic passes", None, MetricType::Gauge)?;
        for (id, port) in ports.iter() {
            ConstGauge::new(i64::from(port.is_open())).encode(family.encode_family(&[("port", id.as_str())])?)?;
        }
        let help = "Proxies on the steering socket";
        let proxies = encoder.encode_descriptor("dataplane_proxies", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.proxies.load(Ordering::Relaxed) as i64).encode(proxies)
    }
}
