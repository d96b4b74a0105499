//! An endpoint of a cluster on one worker: what it carries now, and whether it is ejected.

use crate::http;
use dpu_proxy_core::model::{Endpoint, OutlierDetection};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An endpoint of a cluster. Counters survive updates of the endpoint (`state` is kept by address).
#[derive(Debug)]
pub struct Host {
    pub endpoint: Arc<Endpoint>,
    pub state: Rc<HostState>,
}

/// What is known of an address beyond its configuration.
#[derive(Debug, Default)]
pub struct HostState {
    /// Requests (HTTP) or connections (TCP) in flight.
    active: Cell<u32>,
    /// What the HTTP path keeps per host (pools).
    pub http: http::HostState,
    consecutive_5xx: Cell<u32>,
    consecutive_gateway: Cell<u32>,
    ejected_until: Cell<Option<Instant>>,
    ejections: Cell<u32>,
    pub requests: Cell<u64>,
    pub successes: Cell<u64>,
    pub errors: Cell<u64>,
    pub connections: Cell<u64>,
    pub connect_failures: Cell<u64>,
}

/// How a request to a host ended, as outlier detection counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Status(u16),
    /// Could not connect, was reset, or timed out: counts as a gateway failure.
    LocalOrigin,
}

/// Counts a request of a host while it lives.
#[derive(Debug)]
pub struct ActiveRequest(Rc<HostState>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

impl Host {
    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Counts a request until the guard is dropped.
    pub fn begin(&self) -> ActiveRequest {
        self.state.active.set(self.state.active.get() + 1);
        self.state.requests.set(self.state.requests.get() + 1);
        ActiveRequest(Rc::clone(&self.state))
    }

    /// Requests in flight on this worker.
    pub fn active(&self) -> u32 {
        self.state.active.get()
    }

    /// True while outlier detection keeps it out.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.state.ejected_until.get().is_some_and(|until| now < until)
    }
}

impl Host {
    /// Until when it is kept out, if it is.
    pub(super) fn ejected_until(&self, now: Instant) -> Option<Instant> {
        self.state.ejected_until.get().filter(|until| now < *until)
    }
}

impl HostState {
    /// Counts an outcome. True when the host must be ejected by `detection`.
    pub(super) fn count(&self, outcome: Outcome, detection: Option<&OutlierDetection>) -> bool {
        let (is_5xx, is_gateway) = match outcome {
            Outcome::Status(status) => (status >= 500, matches!(status, 502..=504)),
            Outcome::LocalOrigin => (true, true),
        };
        let result = if is_5xx { &self.errors } else { &self.successes };
        result.set(result.get() + 1);
        let consecutive_5xx = bump(&self.consecutive_5xx, is_5xx);
        let consecutive_gateway = bump(&self.consecutive_gateway, is_gateway);
        detection.is_some_and(|detection| {
            reached(consecutive_5xx, detection.consecutive_5xx, detection.enforcing_consecutive_5xx_percent)
                || reached(
                    consecutive_gateway,
                    detection.consecutive_gateway_failure,
                    detection.enforcing_consecutive_gateway_failure_percent,
                )
        })
    }

    /// Keeps the host out: longer each time, as Envoy does.
    pub(super) fn eject(&self, detection: &OutlierDetection, now: Instant) {
        let times = self.ejections.get() + 1;
        self.ejections.set(times);
        let time: Duration = detection.base_ejection_time.saturating_mul(times).min(detection.max_ejection_time);
        self.ejected_until.set(Some(now + time));
        self.consecutive_5xx.set(0);
        self.consecutive_gateway.set(0);
    }
}

fn bump(counter: &Cell<u32>, failed: bool) -> u32 {
    counter.set(if failed { counter.get() + 1 } else { 0 });
    counter.get()
}

fn reached(count: u32, threshold: u32, enforcing_percent: u32) -> bool {
    threshold > 0 && count >= threshold && fastrand::u32(0..100) < enforcing_percent
}
