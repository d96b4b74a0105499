//! What is told of a finished request or connection: access logs, the hop log, Istio's metrics.

use crate::connection::Connection;
use crate::shared::Shared;
use crate::stream_info::StreamInfo;
use crate::worker::Worker;
use dpu_proxy_core::head::{RequestHead, ResponseHead};
use dpu_proxy_core::model::AccessLog;
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

/// What a worker keeps to tell.
#[derive(Debug)]
pub struct Telemetry {}

impl Telemetry {
    /// For the settings of the process.
    pub fn new(_shared: &Shared) -> Self {
        Self {}
    }

    /// Tells of a finished request or connection. Call once for each.
    pub fn finish(&self, _worker: &Worker, _finished: &Finished<'_>) {}
}
