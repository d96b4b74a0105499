//! What is told of a finished request or connection: access logs, the hop log, Istio's metrics.

use crate::connection::Connection;
use crate::shared::Shared;
use crate::stats::Gauge;
use crate::stream_info::StreamInfo;
use crate::worker::Worker;
use dpu_proxy_core::head::{RequestHead, ResponseHead};
use dpu_proxy_core::model::{AccessLog, Listener};
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
pub struct Telemetry {}

impl Telemetry {
    /// For the settings of the process.
    pub fn new(_shared: &Shared) -> Self {
        Self {}
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
    pub fn finish(&self, _worker: &Worker, _finished: &Finished<'_>) {}
}
