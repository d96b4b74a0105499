//! What is told of a finished request or connection: access logs, the hop log, Istio's metrics.
//!
//! `context`: the facts by the names that formats use. `hop`: the hop log. `istio`: metrics.

pub mod context;
mod hop;
mod istio;

pub use context::Context;

use crate::access_log::LogWriter;
use crate::connection::Connection;
use crate::shared::Shared;
use crate::stats::Gauge;
use crate::stream_info::StreamInfo;
use crate::worker::Worker;
use dpu_proxy_core::format;
use dpu_proxy_core::head::{RequestHead, ResponseHead};
use dpu_proxy_core::model::{AccessLog, Listener, LogSink};
use istio::IstioMetrics;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// A finished request, or a finished TCP connection (without heads).
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    pub connection: &'a Connection,
    pub info: &'a StreamInfo,
    /// As it was routed.
    pub request: Option<&'a RequestHead>,
    /// As it was sent downstream.
    pub response: Option<&'a ResponseHead>,
    /// Those of the connection manager or TCP proxy.
    pub access_logs: &'a [Arc<AccessLog>],
}

/// A downstream connection that is counted as active.
#[derive(Debug)]
pub struct Counted(Rc<Gauge>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// What a worker keeps to tell.
#[derive(Debug)]
pub struct Telemetry {
    hop_log: Option<LogWriter>,
    writers: RefCell<HashMap<LogSink, LogWriter>>,
    /// The line that is being made; its memory is kept.
    line: RefCell<Vec<u8>>,
    istio: IstioMetrics,
}

impl Telemetry {
    /// For the settings of the process.
    pub fn new(shared: &Shared) -> Self {
        let hop_log = shared.settings.hop_log.as_ref();
        let hop_log = hop_log.map(|path| shared.log_files.writer(&LogSink::File(path.display().to_string())));
        let istio = IstioMetrics::new(&shared.settings.cluster_id);
        Self { hop_log, writers: RefCell::default(), line: RefCell::default(), istio }
    }

    /// Counts a downstream connection of a listener while the guard lives.
    pub fn downstream(&self, worker: &Worker, listener: &Listener) -> Counted {
        let label = [("envoy_listener_address", listener.name.as_str())];
        worker.stats.counter("envoy_listener_downstream_cx_total", &label).inc();
        let active = worker.stats.gauge("envoy_listener_downstream_cx_active", &label);
        active.add(1);
        Counted(active)
    }

    /// Tells of a finished request or connection. Call once for each.
    pub fn finish(&self, worker: &Worker, finished: &Finished<'_>) {
        self.istio.count(&worker.stats, finished);
        if let Some(log) = &self.hop_log {
            log.write(&hop::line(worker, finished));
        }
        for log in finished.access_logs {
            let context = Context {
                connection: finished.connection,
                info: finished.info,
                request: finished.request,
                response: finished.response,
                hostname: &worker.shared.settings.hostname,
            };
            let mut line = self.line.borrow_mut();
            line.clear();
            if format::log_line(log, &context, &mut line) {
                self.write(worker, &log.sink, &line);
            }
        }
    }

    /// Tells of a probe of the kubelet. Istio's metrics and access logs are of calls between workloads: a sidecar
    /// tells nothing of probes in them either.
    pub fn probe(&self, worker: &Worker, connection: &Connection, info: &StreamInfo, kind: &'static str) {
        let result = if info.flags.is_empty() { "relayed" } else { "unreachable" };
        worker.stats.counter("dpu_proxy_probes_total", &[("kind", kind), ("result", result)]).inc();
        if let Some(log) = &self.hop_log {
            log.write(&hop::probe(worker, connection, info));
        }
    }

    fn write(&self, worker: &Worker, sink: &LogSink, line: &[u8]) {
        if let Some(writer) = self.writers.borrow().get(sink) {
            return writer.write(line);
        }
        let writer = worker.shared.log_files.writer(sink);
        writer.write(line);
        self.writers.borrow_mut().insert(sink.clone(), writer);
    }
}
