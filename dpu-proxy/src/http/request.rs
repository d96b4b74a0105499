//! One request, from its head to the end of its response: decide, forward (again, where it may be retried), have it
//! answered (`respond`), tell.

use super::attempt::{Attempt, attempt};
use super::decide;
use super::filters;
use super::flight::{Clock, Failure};
use super::leg::{Leg, Pump};
use super::plan::{Again, Plan};
use super::reply::Reply;
use super::session::{Chosen, Pass, Scratch, Session};
use super::{flight, mirror, outcome};
use crate::stream_info::ResponseFlags;
use dpu_proxy_core::http1::{Framing, RequestMeta};
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Whether the downstream connection serves another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Keep,
    /// Everything was said; the client sent all, too.
    Close,
    /// Part of the request was not read: what still comes is thrown away for a moment before the connection is closed.
    Linger,
    /// The client is gone, or must see that the response is cut short.
    Abort,
}

/// Whose rules an attempt is made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Caller,
    /// On this host, in the same pass.
    Callee,
}

/// A request in progress.
pub struct Request<'a> {
    pub session: &'a Session,
    pub scratch: &'a mut Scratch,
    pub down: &'a mut Leg,
    pub meta: RequestMeta,
    pub pump: Pump,
    pub clock: Clock,
    pub request_ended: Option<Instant>,
    /// The connection ends after this request whatever happens.
    pub is_last: bool,
}

/// Serves the request whose head is in `scratch.outer`.
pub async fn serve(mut request: Request<'_>) -> After {
    let manager = std::sync::Arc::clone(&request.session.manager);
    request.pump.with_trailers = manager.http1.enable_trailers || matches!(request.down, Leg::H2(_));
    request.clock.deadlines.idle = manager.stream_idle_timeout;
    request.clock.deadlines.request =
        manager.request_timeout.map(|timeout| request.scratch.outer.info.started + timeout);
    let after = match decide(&mut request).await {
        Ok(()) => {
            let chosen = request.scratch.outer.chosen.clone();
            match decide::plan(&request.session.worker, &mut request.scratch.outer, chosen.as_ref()) {
                Ok(plan) => request.forward(plan).await,
                Err(reply) => request.answer(&reply).await,
            }
        }
        Err(Some(reply)) => request.answer(&reply).await,
        Err(None) => request.abandoned(),
    };
    request.finish();
    after
}

/// Runs the rules up to the router; an error without a reply means that the client is gone.
async fn decide(request: &mut Request<'_>) -> Result<(), Option<Reply>> {
    decide::admit(&request.session.worker, &mut request.scratch.outer, &request.meta)?;
    continue_at_once(request);
    while let Some(delay) = filters::run(&request.session.worker, &mut request.scratch.outer)? {
        request.delay(delay).await.map_err(|()| None)?;
    }
    Ok(())
}

/// `Expect: 100-continue` is answered here, unless it is passed on.
fn continue_at_once(request: &mut Request<'_>) {
    if request.meta.expects_continue && !request.session.manager.proxy_100_continue {
        request.scratch.outer.head.headers.remove(b"expect");
        if let Leg::H1(wire) = &mut *request.down {
            wire.put_informational(100);
        }
    }
}

impl Request<'_> {
    /// Waits; an error when the client is gone meanwhile.
    async fn delay(&mut self, time: Duration) -> Result<(), ()> {
        let deadline = Instant::now() + time;
        poll_fn(|cx| {
            if self.poll_client_gone(cx).is_ready() {
                return Poll::Ready(Err(()));
            }
            self.scratch.timer.poll(cx, deadline).map(Ok)
        })
        .await
    }

    /// The same within the limits of the request.
    pub async fn wait(&mut self, time: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + time;
        poll_fn(|cx| {
            if self.poll_client_gone(cx).is_ready() {
                return Poll::Ready(Err(Failure::ClientGone));
            }
            if let Poll::Ready(failure) = self.clock.poll(cx, &mut self.scratch.timer, 0) {
                return Poll::Ready(Err(failure));
            }
            self.scratch.timer.poll(cx, deadline).map(Ok)
        })
        .await
    }

    /// Watches the client where its body is not being read.
    fn poll_client_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.down.poll_flush(cx).map(|result| result.is_err()) == Poll::Ready(true) {
            return Poll::Ready(());
        }
        self.down.poll_gone(cx)
    }

    async fn forward(&mut self, mut plan: Plan<'_>) -> After {
        self.clock.deadlines.route = plan.timeout;
        self.clock.deadlines.per_try = plan.per_try_timeout;
        self.clock.deadlines.per_try_idle = plan.timeouts.per_try_idle;
        self.clock.deadlines.stream = plan.stream_timeout.map(|timeout| self.scratch.outer.info.started + timeout);
        self.clock.deadlines.idle = plan.idle_timeout.or(self.clock.deadlines.idle);
        let limit = self.session.connection.listener.per_connection_buffer_limit_bytes as usize;
        if !self.has_body() {
            self.clock.request_ended(Instant::now());
        }
        self.scratch.replay.begin(if plan.retries.is_possible() { limit } else { 0 });
        self.mirror(plan.timeout);
        loop {
            match attempt(self, &mut plan).await {
                Attempt::Answered(upstream, meta) => {
                    let Some(pause) = self.retry_after_response(&mut plan, Side::Caller) else {
                        return self.respond(plan, upstream, meta).await;
                    };
                    drop(upstream);
                    plan.beyond = None;
                    if let Err(failure) = self.pause(pause).await {
                        return self.fail(&plan, &failure).await;
                    }
                }
                Attempt::Replied(reply) => {
                    let body = self.make_callee_response(&reply);
                    let Some(pause) = self.retry_after_response(&mut plan, Side::Caller) else {
                        return self.respond_for_callee(&plan, &body).await;
                    };
                    if let Err(failure) = self.pause(pause).await {
                        return self.fail(&plan, &failure).await;
                    }
                }
                Attempt::Unavailable(reply) => return self.answer(&reply).await,
                Attempt::Failed(failure) => {
                    let Some(pause) = self.retry_after_failure(&mut plan, &failure, Side::Caller) else {
                        return self.fail(&plan, &failure).await;
                    };
                    if let Err(failure) = self.pause(pause).await {
                        return self.fail(&plan, &failure).await;
                    }
                }
            }
        }
    }

    /// Starts the copies of the request that its route asks for.
    pub fn mirror(&mut self, timeout: Option<Duration>) {
        let pass = self.scratch.last();
        let Some(action) = pass.chosen.as_ref().and_then(Chosen::action).filter(|action| !action.mirrors.is_empty())
        else {
            return;
        };
        // A copy that begins in the middle of a body would be another request.
        if self.pump.bytes > 0 {
            return;
        }
        let limit = self.session.connection.listener.per_connection_buffer_limit_bytes as usize;
        let limit = self.has_body().then_some(limit);
        let copies = mirror::start(&self.session.worker, pass, action, timeout, limit);
        self.scratch.replay.copies.extend(copies);
    }

    /// There is no response.
    async fn fail(&mut self, plan: &Plan<'_>, failure: &Failure) -> After {
        if matches!(failure, Failure::ClientGone) {
            return self.abandoned();
        }
        let reply = outcome::reply(failure, plan.retries.was_retried(), self.is_request_whole());
        self.answer(&reply).await
    }

    /// True when the request was received to its end.
    pub fn is_request_whole(&self) -> bool {
        self.pump.is_done() || self.down.is_body_ended()
    }

    /// Before another attempt.
    pub async fn pause(&mut self, time: Duration) -> Result<(), Failure> {
        self.pump.restart();
        if time.is_zero() { Ok(()) } else { self.wait(time).await }
    }

    /// The pause before another attempt, if the response is not to stand.
    pub fn retry_after_response(&mut self, plan: &mut Plan<'_>, side: Side) -> Option<Duration> {
        if !plan.retries.is_possible() || !self.scratch.replay.is_complete() {
            return None;
        }
        let decision = plan.retries.after_response(&self.scratch.response, &plan.cluster, self.session.worker.random());
        self.note(plan, decision, side)
    }

    /// The pause before another attempt, if there is one.
    pub fn retry_after_failure(&mut self, plan: &mut Plan<'_>, failure: &Failure, side: Side) -> Option<Duration> {
        if !plan.retries.is_possible() || !self.scratch.replay.is_complete() {
            return None;
        }
        let decision = plan.retries.after_failure(failure, &plan.cluster, self.session.worker.random());
        self.note(plan, decision, side)
    }

    fn note(&mut self, plan: &mut Plan<'_>, decision: Again, side: Side) -> Option<Duration> {
        let info = match side {
            Side::Caller => &mut self.scratch.outer.info,
            Side::Callee => &mut self.scratch.last_mut().info,
        };
        match decision {
            Again::No => None,
            Again::After(pause) => {
                plan.cluster.stats.request_retries.inc();
                Some(pause)
            }
            Again::LimitExceeded => {
                info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
                None
            }
            Again::Overflow => {
                info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
                None
            }
        }
    }

    /// Tells of the end of the callee's part, if one began.
    pub fn end_callee(&mut self) {
        let Scratch { outer, inner, response, .. } = &mut *self.scratch;
        let answered = Some(&*response).filter(|response| response.status != 0);
        if let Some(inner) = inner {
            inner.info.bytes_received = outer.info.bytes_received;
            inner.info.bytes_sent = outer.info.bytes_sent;
            inner.info.grpc_status = outer.info.grpc_status;
            finish_like(inner, outer);
            if inner.is_begun {
                inner.finish(&self.session.worker, answered);
                inner.is_begun = false;
            }
        }
    }

    /// Tells of the request's end.
    pub fn finish(&mut self) {
        let outer = &mut self.scratch.outer;
        // Copies of a request that was not received whole end with it.
        self.scratch.replay.copies.clear();
        outer.info.bytes_received = self.pump.bytes;
        outer.info.request_ended = self.request_ended.map(|at| at - outer.info.started);
        self.end_callee();
        let Scratch { outer, response, .. } = &mut *self.scratch;
        let answered = Some(&*response).filter(|response| response.status != 0);
        outer.finish(&self.session.worker, answered);
    }

    /// The flight of an attempt over `up`.
    pub fn flight<'b>(&'b mut self, up: &'b mut Leg) -> flight::Flight<'b> {
        flight::Flight {
            down: self.down,
            up,
            request: &mut self.pump,
            replayed: self.scratch.replay.bytes.len(),
            replay: &mut self.scratch.replay,
            clock: &mut self.clock,
            timer: &mut self.scratch.timer,
            request_ended: &mut self.request_ended,
            is_write_closed: false,
            passes_continue: self.session.manager.proxy_100_continue,
        }
    }

    /// True when a body follows the request's head.
    pub fn has_body(&self) -> bool {
        match &*self.down {
            Leg::H1(_) => !matches!(self.meta.framing, Framing::None),
            Leg::H2(_) => !self.down.is_body_ended(),
        }
    }
}

fn finish_like(inner: &mut Pass, outer: &Pass) {
    inner.info.request_ended = outer.info.request_ended;
    inner.info.response_started = outer.info.response_started;
    inner.info.response_ended = outer.info.response_ended;
    inner.info.flags.insert(outer.info.flags);
    if inner.info.details.is_empty() {
        inner.details(&outer.info.details.clone());
    }
}
