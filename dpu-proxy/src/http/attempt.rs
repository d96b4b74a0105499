//! One attempt: a host, the callee's rules when it is on this host, a connection, the request sent,
//! the response's head awaited.

use super::callee;
use super::decide;
use super::flight::Failure;
use super::plan::{Hop, Plan};
use super::pool::{self, AcquireError, Upstream};
use super::reply::Reply;
use super::request::Request;
use super::session::Pass;
use crate::connection::Connection;
use crate::local;
use crate::stream_info::UpstreamInfo;
use crate::upstream::{ConnectError, ConnectErrorKind, Host, Outcome, TargetOptions, target};
use dpu_proxy_core::head::{RequestHead, Version};
use dpu_proxy_core::http1::ResponseMeta;
use dpu_proxy_core::http1::response::Answers;
use dpu_proxy_core::model::{TerminalFilter, UpstreamProtocol};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

/// How an attempt ended.
// One lives per request, on the stack of its task: a box would cost an allocation per request.
#[allow(clippy::large_enum_variant)]
pub enum Attempt {
    /// The head of the response is in `scratch.response`.
    Answered(Upstream, ResponseMeta),
    /// The rules of a callee on this host answered by themselves.
    Replied(Reply),
    /// There is no host.
    Unavailable(Reply),
    Failed(Failure),
}

/// Makes one attempt of the caller's.
pub async fn attempt(request: &mut Request<'_>, plan: &mut Plan<'_>) -> Attempt {
    request.end_callee();
    let now = Instant::now();
    plan.attempted_at = now;
    request.clock.attempt(now);
    request.scratch.outer.info.attempts += 1;
    request.scratch.response.clear();
    let host = match decide::pick(plan, &request.scratch.outer) {
        Ok(host) => host,
        Err(reply) => {
            note_upstream(&mut request.scratch.outer, plan, None);
            return Attempt::Unavailable(reply);
        }
    };
    plan.tried.push(host.address());
    plan.host = Some(Rc::clone(&host));
    plan.count_attempt(&host);
    note_upstream(&mut request.scratch.outer, plan, Some(&host));
    decide::address(&mut request.scratch.outer, plan, &host);
    match enter(request, plan, &host) {
        Ok(Some(callee)) => callee::take(request, plan, callee).await,
        Ok(None) => {
            let hop = Hop { cluster: Rc::clone(&plan.cluster), host };
            send(request, plan, hop).await
        }
        Err(failure) => Attempt::Failed(failure),
    }
}

/// The callee's side, when the host is a workload of this host.
fn enter(request: &mut Request<'_>, plan: &Plan<'_>, host: &Host) -> Result<Option<Rc<Connection>>, Failure> {
    let session = request.session;
    let scoped = plan.cluster.scoped();
    let callee = match session.callee(&scoped, host, &request.scratch.outer) {
        None => return Ok(None),
        Some(Err(error)) => return Err(tls_failure(error.to_string())),
        // A callee that takes it as TCP is reached through its own inbound listener.
        Some(Ok(callee)) if !matches!(callee.chain.terminal, TerminalFilter::Http(_)) => return Ok(None),
        Some(Ok(callee)) => callee,
    };
    if let Some(upstream) = &mut request.scratch.outer.info.upstream {
        upstream.is_local = true;
        upstream.own_identity = callee.peer_identity().map(Into::into);
        upstream.peer = callee.tls.as_ref().map(local::shown_by_callee);
    }
    if let Err(denied) = crate::authorize::network(&callee, &session.worker.stats) {
        return Err(tls_failure(denied));
    }
    Ok(Some(callee))
}

fn tls_failure(reason: String) -> Failure {
    Failure::Connect(ConnectError::new(ConnectErrorKind::Tls, reason))
}

/// Sends the request to a hop and waits for the response's head.
pub async fn send(request: &mut Request<'_>, plan: &mut Plan<'_>, hop: Hop) -> Attempt {
    let mut upstream = match acquire(request, &hop).await {
        Ok(upstream) => upstream,
        Err(failure) => {
            fail_connect(request, plan, &failure);
            return Attempt::Failed(failure);
        }
    };
    note_connection(request, &upstream);
    let has_body = request.has_body();
    let sent = request.scratch.last();
    let answers = match sent.head.method() {
        b"HEAD" => Answers::Head,
        b"CONNECT" => Answers::Connect,
        _ => Answers::Other,
    };
    if let Err(error) = upstream.begin(&sent.head, has_body, hop.cluster.scoped().cluster.http.preserve_header_case) {
        return Attempt::Failed(Failure::Upstream(error));
    }
    let mut response = std::mem::take(&mut request.scratch.response);
    let result = {
        let mut flight = request.flight(&mut upstream.leg);
        flight.replayed = 0;
        poll_fn(|cx| flight.poll_head(cx, answers, &mut response)).await
    };
    request.scratch.response = response;
    match result {
        Ok(meta) => {
            let info = &mut request.scratch.outer.info;
            info.response_started = Some(info.started.elapsed());
            let status = request.scratch.response.status;
            plan.cluster.stats.count_status(status);
            plan.report(Outcome::Status(status));
            Attempt::Answered(upstream, meta)
        }
        Err(failure) => {
            if matches!(
                failure,
                Failure::Upstream(_)
                    | Failure::Timeout
                    | Failure::PerTryTimeout
                    | Failure::PerTryIdle
                    | Failure::CalleeTimeout
                    | Failure::CalleePerTryTimeout
            ) {
                plan.report(Outcome::LocalOrigin);
                plan.count_failure(&failure);
            }
            upstream.leg.reset(h2::Reason::CANCEL);
            Attempt::Failed(failure)
        }
    }
}

fn fail_connect(request: &mut Request<'_>, plan: &mut Plan<'_>, failure: &Failure) {
    let Failure::Connect(error) = failure else { return };
    plan.report(Outcome::LocalOrigin);
    if let Some(upstream) = &mut request.scratch.last_mut().info.upstream {
        upstream.transport_failure = error.transport_failure_reason();
    }
}

/// A connection to the hop: an idle one, or a new one, while the client and the clock are watched.
async fn acquire(request: &mut Request<'_>, hop: &Hop) -> Result<Upstream, Failure> {
    let pass = request.scratch.last();
    let scoped = hop.cluster.scoped();
    let protocol = protocol(&pass.head, scoped.cluster.protocol);
    let request_host = std::str::from_utf8(pass.head.authority()).ok();
    let options = TargetOptions { alpn: decide::alpn(pass, &scoped.cluster), request_host };
    let target = target(&request.session.worker, &pass.connection, &hop.cluster, &hop.host, &options)
        .map_err(Failure::Connect)?;
    let pool = hop.host.state.http.pool(target);
    if let Some(upstream) = pool::try_acquire(&pool, protocol) {
        return Ok(upstream);
    }
    let mut acquiring = Box::pin(pool::acquire(&pool, &hop.cluster, &hop.host, protocol));
    poll_fn(|cx| {
        if let Poll::Ready(result) = acquiring.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(|error| match error {
                AcquireError::Overflow => Failure::Overflow,
                AcquireError::Connect(error) => Failure::Connect(error),
            }));
        }
        if request.down.poll_flush(cx).map(|result| result.is_err()) == Poll::Ready(true)
            || request.down.poll_gone(cx).is_ready()
        {
            return Poll::Ready(Err(Failure::ClientGone));
        }
        request.clock.poll(cx, &mut request.scratch.timer, 0).map(Err)
    })
    .await
}

/// The protocol to speak for a request.
pub fn protocol(head: &RequestHead, configured: UpstreamProtocol) -> UpstreamProtocol {
    let is_h2 = head.version == Version::Http2;
    let is_upgrade = head.headers.get(b"upgrade").is_some();
    match configured {
        UpstreamProtocol::Downstream if is_h2 => UpstreamProtocol::Http2,
        UpstreamProtocol::Downstream => UpstreamProtocol::Http1,
        UpstreamProtocol::Auto if is_upgrade => UpstreamProtocol::Http1,
        other => other,
    }
}

/// Notes which host was chosen.
pub fn note_upstream(pass: &mut Pass, plan: &Plan<'_>, host: Option<&Rc<Host>>) {
    pass.info.upstream = Some(UpstreamInfo {
        cluster: Arc::clone(&plan.scoped),
        endpoint: host.map(|host| Arc::clone(&host.endpoint)),
        local_address: None,
        own_identity: None,
        peer: None,
        is_local: false,
        transport_failure: String::new(),
    });
}

fn note_connection(request: &mut Request<'_>, upstream: &Upstream) {
    let pass = request.scratch.last_mut();
    if let Some(info) = &mut pass.info.upstream {
        info.local_address = Some(upstream.lease.local_address());
        info.own_identity = upstream.lease.own_identity();
        info.peer = upstream.lease.peer().cloned();
    }
}
