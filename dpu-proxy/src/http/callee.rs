//! The callee's side of a call to a workload of this host, in the same pass: its rules, its faults, its limits and its
//! attempts. Its caller sees of it what it would see of a proxy far away: a response, or none in time.

use super::attempt::{Attempt, note_upstream, send};
use super::flight::Failure;
use super::plan::{Beyond, Hop, Plan};
use super::reply::Reply;
use super::request::{Request, Side};
use super::session::{Pass, Scratch};
use super::{decide, filters, outcome};
use crate::connection::Connection;
use crate::upstream::Outcome;
use dpu_proxy_core::head::Version;
use dpu_proxy_core::http1::RequestMeta;
use dpu_proxy_core::model::TerminalFilter;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Why the callee's rules let nothing through.
enum Stopped {
    /// They answered by themselves.
    Replied(Reply),
    /// The caller's side ended the call meanwhile.
    Failed(Failure),
}

impl From<Reply> for Stopped {
    fn from(reply: Reply) -> Self {
        Self::Replied(reply)
    }
}

/// Takes the request of the caller's attempt through the callee's side.
pub async fn take(request: &mut Request<'_>, caller: &mut Plan<'_>, callee: Rc<Connection>) -> Attempt {
    let attempt = match admit(request, callee).await {
        Ok(()) => forward(request, caller).await,
        Err(Stopped::Replied(reply)) => Attempt::Replied(reply),
        Err(Stopped::Failed(failure)) => Attempt::Failed(failure),
    };
    match &attempt {
        Attempt::Answered(..) => answered(caller, request.scratch.response.status),
        Attempt::Replied(reply) => answered(caller, reply.status),
        Attempt::Failed(failure @ (Failure::Timeout | Failure::PerTryTimeout | Failure::PerTryIdle)) => {
            caller.report(Outcome::LocalOrigin);
            caller.count_failure(failure);
        }
        Attempt::Unavailable(_) | Attempt::Failed(_) => {}
    }
    attempt
}

fn answered(caller: &Plan<'_>, status: u16) {
    caller.cluster.stats.count_status(status);
    caller.report(Outcome::Status(status));
}

/// The callee's rules up to its router. Its delays are waited for within the caller's limits.
async fn admit(request: &mut Request<'_>, callee: Rc<Connection>) -> Result<(), Stopped> {
    let worker = &request.session.worker;
    let inner = begin(request.scratch, callee)?;
    let meta = RequestMeta {
        has_host: true,
        upgrade: inner.head.headers.get(b"upgrade").is_some(),
        connect: inner.head.method() == b"CONNECT",
        ..RequestMeta::default()
    };
    decide::admit(worker, inner, &meta)?;
    while let Some(delay) = filters::run(worker, request.scratch.last_mut())? {
        request.wait(delay).await.map_err(Stopped::Failed)?;
    }
    Ok(())
}

fn begin(scratch: &mut Scratch, callee: Rc<Connection>) -> Result<&mut Pass, Reply> {
    let TerminalFilter::Http(manager) = &callee.chain.terminal else { return Err(outcome::no_http()) };
    let manager = Arc::clone(manager);
    let outer = &scratch.outer;
    let inner = scratch.inner.get_or_insert_with(|| Pass::new(Rc::clone(&callee), Arc::clone(&manager)));
    inner.begin_callee(callee, manager, outer);
    // No proxy speaks HTTP/1.0 to another.
    if inner.head.version == Version::Http10 {
        inner.head.version = Version::Http11;
    }
    Ok(inner)
}

/// The callee's router: attempts until one stands.
async fn forward(request: &mut Request<'_>, caller: &mut Plan<'_>) -> Attempt {
    let chosen = request.scratch.last().chosen.clone();
    let planned = decide::plan(&request.session.worker, request.scratch.last_mut(), chosen.as_ref());
    let mut plan = match planned {
        Ok(plan) => plan,
        Err(reply) => return Attempt::Replied(reply),
    };
    if plan.retries.is_possible() {
        let limit = request.session.connection.listener.per_connection_buffer_limit_bytes as usize;
        request.scratch.replay.keep(limit);
    }
    request.mirror(plan.timeout);
    request.clock.begin_callee(plan.timeout, plan.stream_timeout);
    loop {
        let failure = match once(request, &mut plan).await {
            Attempt::Answered(upstream, meta) => match request.retry_after_response(&mut plan, Side::Callee) {
                None => {
                    caller.beyond = Some(Beyond::of(plan));
                    return Attempt::Answered(upstream, meta);
                }
                Some(pause) => {
                    drop(upstream);
                    match request.pause(pause).await {
                        Ok(()) => continue,
                        Err(failure) => return Attempt::Failed(failure),
                    }
                }
            },
            Attempt::Failed(failure) if is_of_callee(&failure) => failure,
            other => return other,
        };
        match request.retry_after_failure(&mut plan, &failure, Side::Callee) {
            None => {
                let is_whole = request.is_request_whole();
                return Attempt::Replied(outcome::reply(&failure, plan.retries.was_retried(), is_whole));
            }
            Some(pause) => {
                if let Err(failure) = request.pause(pause).await {
                    return Attempt::Failed(failure);
                }
            }
        }
    }
}

/// One attempt of the callee's.
async fn once(request: &mut Request<'_>, plan: &mut Plan<'_>) -> Attempt {
    let now = Instant::now();
    plan.attempted_at = now;
    request.clock.attempt_of_callee(now, plan.per_try_timeout);
    request.scratch.response.clear();
    let inner = request.scratch.last_mut();
    inner.info.attempts += 1;
    let host = match decide::pick(plan, inner) {
        Ok(host) => host,
        Err(reply) => return Attempt::Replied(reply),
    };
    plan.tried.push(host.address());
    plan.host = Some(Rc::clone(&host));
    plan.count_attempt(&host);
    note_upstream(inner, plan, Some(&host));
    decide::address(inner, plan, &host);
    let hop = Hop { cluster: Rc::clone(&plan.cluster), host };
    send(request, plan, hop).await
}

/// True for what a proxy far away would answer for; the rest ends the caller's attempt.
fn is_of_callee(failure: &Failure) -> bool {
    match failure {
        Failure::Overflow
        | Failure::Connect(_)
        | Failure::Upstream(_)
        | Failure::CalleeTimeout
        | Failure::CalleePerTryTimeout => true,
        Failure::Request(_)
        | Failure::ClientGone
        | Failure::Timeout
        | Failure::PerTryTimeout
        | Failure::PerTryIdle
        | Failure::StreamTimeout
        | Failure::Idle
        | Failure::RequestTimeout => false,
    }
}
