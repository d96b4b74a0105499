//! `Plan`: how a request is forwarded, as its route says: which cluster, for how long, how often; and
//! what is counted of it.

use super::flight::Failure;
use super::leg::LegError;
use crate::stats::Gauge;
use crate::upstream::cluster::Permit;
use crate::upstream::{ActiveRequest, ClusterRuntime, Host, Outcome};
use dpu_proxy_core::head::ResponseHead;
use dpu_proxy_core::model::ScopedCluster;
use dpu_proxy_core::policy::retry::{Reset, Retry, RetryVerdict};
use dpu_proxy_core::policy::timeout::Timeouts;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a request is forwarded.
pub struct Plan<'a> {
    pub cluster: Rc<ClusterRuntime>,
    pub scoped: Arc<ScopedCluster>,
    pub timeout: Option<Duration>,
    /// Of the stream, from its beginning.
    pub stream_timeout: Option<Duration>,
    pub per_try_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// A retry goes to a host that was not tried, where there is one.
    pub avoids_tried: bool,
    pub retries: Retries<'a>,
    pub timeouts: Timeouts,
    /// Of the route's hash policy.
    pub hash: Option<u64>,
    /// Hosts that were tried.
    pub tried: SmallVec<[SocketAddr; 4]>,
    /// That of the attempt in progress.
    pub host: Option<Rc<Host>>,
    pub attempted_at: Instant,
    /// What a callee on this host did with it.
    pub beyond: Option<Beyond>,
    active: Option<ActiveRequest>,
    counted: Counted,
    permit: Permit,
}

/// A callee's plan whose attempt stands: what is counted until the response ended.
pub struct Beyond {
    pub cluster: Rc<ClusterRuntime>,
    pub attempted_at: Instant,
    _active: Option<ActiveRequest>,
    _counted: Counted,
    _permit: Permit,
}

impl Beyond {
    /// Of the callee's plan.
    pub fn of(plan: Plan<'_>) -> Self {
        Self {
            cluster: plan.cluster,
            attempted_at: plan.attempted_at,
            _active: plan.active,
            _counted: plan.counted,
            _permit: plan.permit,
        }
    }
}

/// Counts a request of a cluster as active while it lives.
struct Counted(Rc<Gauge>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Where a request goes next.
pub struct Hop {
    pub cluster: Rc<ClusterRuntime>,
    pub host: Rc<Host>,
}

/// What a route says of time and repetition.
#[derive(Debug, Default)]
pub struct Limits {
    pub timeout: Option<Duration>,
    pub stream_timeout: Option<Duration>,
    pub avoids_tried: bool,
    pub per_try_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub timeouts: Timeouts,
    pub hash: Option<u64>,
}

/// Whether an attempt is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    No,
    After(Duration),
    LimitExceeded,
    /// The circuit breaker for retries is open.
    Overflow,
}

/// What is left of a request's retries.
#[derive(Debug)]
pub struct Retries<'a> {
    retry: Option<Retry<'a>>,
    permit: Option<Permit>,
}

impl<'a> Retries<'a> {
    /// Of a request; `None`: it is never retried.
    pub fn new(retry: Option<Retry<'a>>) -> Self {
        Self { retry, permit: None }
    }

    /// True when it may be retried at all.
    pub fn is_possible(&self) -> bool {
        self.retry.is_some()
    }

    /// True after the first retry.
    pub fn was_retried(&self) -> bool {
        self.retry.as_ref().is_some_and(|retry| retry.done() > 0)
    }

    /// After a response's head.
    pub fn after_response(&mut self, response: &ResponseHead, cluster: &ClusterRuntime, random: u64) -> Again {
        let verdict = self.retry.as_mut().map(|retry| retry.after_response(response));
        self.granted(verdict, cluster, random)
    }

    /// After a failure.
    pub fn after_failure(&mut self, failure: &Failure, cluster: &ClusterRuntime, random: u64) -> Again {
        let Some(reset) = as_reset(failure) else { return Again::No };
        let verdict = self.retry.as_mut().map(|retry| retry.after_reset(reset));
        self.granted(verdict, cluster, random)
    }

    fn granted(&mut self, verdict: Option<RetryVerdict>, cluster: &ClusterRuntime, random: u64) -> Again {
        self.permit = None;
        match (verdict, &self.retry) {
            (Some(RetryVerdict::Retry), Some(retry)) => match cluster.retry_permit() {
                Some(permit) => {
                    self.permit = Some(permit);
                    Again::After(retry.backoff(random))
                }
                None => Again::Overflow,
            },
            (Some(RetryVerdict::LimitExceeded), _) => Again::LimitExceeded,
            _ => Again::No,
        }
    }
}

fn as_reset(failure: &Failure) -> Option<Reset> {
    match failure {
        Failure::Overflow => Some(Reset::Overflow),
        Failure::Connect(_) => Some(Reset::ConnectFailure),
        Failure::Upstream(LegError::Reset(h2::Reason::REFUSED_STREAM)) => Some(Reset::RefusedStream),
        Failure::Upstream(_) => Some(Reset::Other { started: true }),
        Failure::PerTryTimeout | Failure::PerTryIdle | Failure::CalleePerTryTimeout => Some(Reset::PerTryTimeout),
        Failure::Request(_)
        | Failure::ClientGone
        | Failure::Timeout
        | Failure::CalleeTimeout
        | Failure::StreamTimeout
        | Failure::Idle
        | Failure::RequestTimeout => None,
    }
}

impl<'a> Plan<'a> {
    /// A plan for `cluster`; `None` when its circuit breaker for requests is open.
    pub fn new(cluster: Rc<ClusterRuntime>, limits: Limits, retries: Retries<'a>) -> Option<Self> {
        let Some(permit) = cluster.request_permit() else {
            cluster.stats.pending_overflow.inc();
            return None;
        };
        let active = Rc::clone(&cluster.stats.requests_active);
        active.add(1);
        Some(Self {
            scoped: cluster.scoped(),
            timeout: limits.timeout,
            stream_timeout: limits.stream_timeout,
            avoids_tried: limits.avoids_tried,
            per_try_timeout: limits.per_try_timeout,
            idle_timeout: limits.idle_timeout,
            retries,
            timeouts: limits.timeouts,
            hash: limits.hash,
            tried: SmallVec::new(),
            host: None,
            attempted_at: Instant::now(),
            beyond: None,
            active: None,
            counted: Counted(active),
            permit,
            cluster,
        })
    }

    /// The cluster of the connection that is used.
    pub fn hop_cluster(&self) -> Arc<ScopedCluster> {
        self.beyond.as_ref().map_or(&self.cluster, |beyond| &beyond.cluster).scoped()
    }

    /// Counts an attempt to `host`.
    pub fn count_attempt(&mut self, host: &Host) {
        self.active = Some(host.begin());
        self.cluster.stats.requests.inc();
    }

    /// Tells outlier detection how the attempt ended.
    pub fn report(&self, outcome: Outcome) {
        if let Some(host) = &self.host {
            self.cluster.report(host, outcome);
        }
    }

    /// Counts a failed attempt.
    pub fn count_failure(&self, failure: &Failure) {
        match failure {
            Failure::Timeout
            | Failure::PerTryTimeout
            | Failure::PerTryIdle
            | Failure::CalleeTimeout
            | Failure::CalleePerTryTimeout => self.cluster.stats.request_timeouts.inc(),
            Failure::Upstream(_) => self.cluster.stats.request_resets.inc(),
            _ => {}
        }
    }

    /// Counts the bytes of a request that ended.
    pub fn ended(&self, sent: u64, received: u64) {
        for cluster in [&self.cluster].into_iter().chain(self.beyond.as_ref().map(|beyond| &beyond.cluster)) {
            cluster.stats.bytes_sent.add(sent);
            cluster.stats.bytes_received.add(received);
        }
    }
}
