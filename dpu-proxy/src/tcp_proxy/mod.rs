//! The TCP proxy: chooses a cluster and a host, connects, and passes bytes both ways.
//!
//! In: a downstream connection whose filter chain ends in `TcpProxy`. Out: an upstream connection
//! (or the callee's inbound rules, when it lives on this DPU), an access log, metrics.
//! `open` finds the upstream; `relay` moves the bytes.

mod open;
pub mod relay;

use crate::connection::Connection;
use crate::io::Stream;
use crate::stream_info::{ResponseFlags, StreamInfo};
use crate::telemetry::Finished;
use crate::worker::Worker;
use dpu_proxy_core::model::TcpProxy;
use open::Upstream;
pub(crate) use open::intended;
use relay::{Ended, Limits};
use std::rc::Rc;
use std::sync::Arc;

/// Serves one downstream connection until both ends have closed.
pub async fn serve(worker: Rc<Worker>, connection: Connection, proxy: Arc<TcpProxy>, stream: Stream) {
    let mut info = StreamInfo::since(connection.started, connection.started_wall);
    let counters = Counters::new(&worker, &proxy);
    let upstream = open::open(&worker, &connection, &proxy, &mut info).await;
    if let Some(upstream) = upstream {
        pass(&worker, &proxy, stream, upstream, &mut info).await;
    }
    info.end();
    counters.end(&info);
    tell(&worker, &connection, &proxy, &info);
}

/// Tells of a connection that has ended.
fn tell(worker: &Rc<Worker>, connection: &Connection, proxy: &TcpProxy, info: &StreamInfo) {
    let access_logs = &proxy.access_logs;
    worker.telemetry.finish(worker, &Finished { connection, info, request: None, response: None, access_logs });
}

async fn pass(worker: &Rc<Worker>, proxy: &TcpProxy, stream: Stream, upstream: Upstream, info: &mut StreamInfo) {
    let limits = Limits { idle: proxy.idle_timeout, total: remaining(proxy, info) };
    let Upstream { stream: other, callee, guards } = upstream;
    let passed = relay::relay(stream, other, limits).await;
    (info.bytes_received, info.bytes_sent) = (passed.forward, passed.backward);
    match passed.ended {
        Ended::TotalTimeout => info.flags.insert(ResponseFlags::DURATION_TIMEOUT),
        Ended::Closed | Ended::IdleTimeout | Ended::Failed => {}
    }
    guards.count(&passed);
    if let Some(callee) = callee {
        callee.tell(worker, &passed);
    }
}

fn remaining(proxy: &TcpProxy, info: &StreamInfo) -> Option<std::time::Duration> {
    proxy.max_downstream_connection_duration.map(|limit| limit.saturating_sub(info.elapsed()))
}

/// What is counted of the downstream side.
struct Counters {
    active: Rc<crate::stats::Gauge>,
    received: Rc<crate::stats::Counter>,
    sent: Rc<crate::stats::Counter>,
}

impl Counters {
    fn new(worker: &Worker, proxy: &TcpProxy) -> Self {
        let label = [("envoy_tcp_prefix", proxy.stat_prefix.as_str())];
        worker.stats.counter("envoy_tcp_downstream_cx_total", &label).inc();
        let active = worker.stats.gauge("envoy_tcp_downstream_cx_active", &label);
        active.add(1);
        Self {
            active,
            received: worker.stats.counter("envoy_tcp_downstream_cx_rx_bytes_total", &label),
            sent: worker.stats.counter("envoy_tcp_downstream_cx_tx_bytes_total", &label),
        }
    }

    fn end(&self, info: &StreamInfo) {
        self.received.add(info.bytes_received);
        self.sent.add(info.bytes_sent);
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        self.active.add(-1);
    }
}
