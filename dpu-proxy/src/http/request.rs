//! One request, from its head to the end of its response: decide, forward (again, where it may be
//! retried), answer, tell.

use super::attempt::{Attempt, attempt};
use super::decide;
use super::filters;
use super::flight::{Clock, Failure};
use super::leg::{Leg, Pump};
use super::plan::{Again, Plan};
use super::pool::Upstream;
use super::reply::Reply;
use super::session::{Chosen, Pass, Scratch, Session};
use super::{flight, mirror, outcome};
use crate::stream_info::ResponseFlags;
use crate::upstream::Outcome;
use dpu_proxy_core::head::Version;
use dpu_proxy_core::http1::encode::ResponseExtras;
use dpu_proxy_core::http1::{Framing, RequestMeta, ResponseMeta};
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

    /// Passes the response on.
    async fn respond(&mut self, plan: Plan<'_>, mut upstream: Upstream, meta: ResponseMeta) -> After {
        self.clock.response_started();
        let has_body = !upstream.leg.is_body_ended();
        self.edit_response(&plan);
        if meta.upgrade {
            self.clock.tunnel();
            upstream.leg.become_tunnel();
            self.down.become_tunnel();
            self.pump.restart();
        }
        let close = self.put_head(has_body, meta.upgrade);
        let mut response = Pump::new(self.passes_trailers(&upstream));
        let result = {
            let mut flight = self.flight(&mut upstream.leg);
            poll_fn(|cx| flight.poll_rest(cx, &mut response, meta.upgrade)).await
        };
        let now = Instant::now();
        let info = &mut self.scratch.outer.info;
        info.bytes_sent = response.bytes;
        info.response_ended = Some(now - info.started);
        self.note_grpc(upstream.leg.trailers());
        plan.ended(self.pump.bytes, response.bytes);
        match result {
            Ok(()) => {
                let is_whole = self.pump.is_done() && meta.keep_alive && !meta.upgrade;
                if is_whole {
                    upstream.lease.release(upstream.leg, &plan.hop_cluster().cluster);
                }
                self.after(close || meta.upgrade)
            }
            Err(failure) => self.cut(&plan, &failure),
        }
    }

    fn passes_trailers(&self, upstream: &Upstream) -> bool {
        self.session.manager.http1.enable_trailers
            || (matches!(self.down, Leg::H2(_)) && matches!(upstream.leg, Leg::H2(_)))
    }

    fn note_grpc(&mut self, trailers: &dpu_proxy_core::head::HeaderBlock) {
        let status = trailers.get_str("grpc-status").or_else(|| self.scratch.response.headers.get_str("grpc-status"));
        self.scratch.outer.info.grpc_status = status.and_then(|status| status.parse().ok());
    }

    /// The response could not be passed on whole.
    fn cut(&mut self, plan: &Plan<'_>, failure: &Failure) -> After {
        let outer = &mut self.scratch.outer;
        outcome::cut(failure, outer);
        if matches!(failure, Failure::Upstream(_)) {
            plan.report(Outcome::LocalOrigin);
        }
        self.down.reset(h2::Reason::INTERNAL_ERROR);
        After::Abort
    }

    /// Makes the answer of a callee on this host that answered by itself; its body.
    fn make_callee_response(&mut self, reply: &Reply) -> Vec<u8> {
        let Scratch { inner, response, .. } = &mut *self.scratch;
        match inner {
            Some(inner) if inner.is_begun => decide::local_response(&self.session.worker, inner, reply, response),
            _ => Vec::new(),
        }
    }

    /// Passes it on.
    async fn respond_for_callee(&mut self, plan: &Plan<'_>, body: &[u8]) -> After {
        self.scratch.outer.details("via_upstream");
        self.scratch.outer.info.attempts = self.scratch.outer.info.attempts.max(1);
        self.scratch.outer.info.status = self.scratch.response.status;
        decide::upstream_response(
            &self.session.worker,
            &mut self.scratch.outer,
            &mut self.scratch.response,
            plan.attempted_at,
        );
        self.send(body).await
    }

    /// Answers ourselves.
    pub async fn answer(&mut self, reply: &Reply) -> After {
        let Scratch { outer, response, .. } = &mut *self.scratch;
        self.is_last |= reply.closes;
        let body = decide::local_response(&self.session.worker, outer, reply, response);
        match self.send(&body).await {
            After::Close if reply.closes => After::Linger,
            after => after,
        }
    }

    /// Sends the response's head and a body that is there already.
    async fn send(&mut self, body: &[u8]) -> After {
        let is_head = self.scratch.outer.head.method() == b"HEAD";
        let body = if is_head { b"" } else { body };
        let close = self.put_head(!body.is_empty(), false);
        let mut given = 0;
        let mut is_finished = false;
        let result = poll_fn(|cx| {
            while given < body.len() {
                match self.down.poll_give(cx, &body[given..]) {
                    Poll::Ready(Ok(count)) => given += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if !std::mem::replace(&mut is_finished, true) {
                self.down.finish(None)?;
            }
            self.down.poll_flush(cx)
        })
        .await;
        self.scratch.outer.info.bytes_sent = given as u64;
        if result.is_err() { After::Abort } else { self.after(close) }
    }

    fn edit_response(&mut self, plan: &Plan<'_>) {
        let Scratch { outer, inner, response, .. } = &mut *self.scratch;
        let worker = &self.session.worker;
        if let Some(inner) = inner.as_mut().filter(|inner| inner.is_begun) {
            let attempted_at = plan.beyond.as_ref().map_or(plan.attempted_at, |beyond| beyond.attempted_at);
            inner.info.status = response.status;
            inner.details("via_upstream");
            decide::upstream_response(worker, inner, response, attempted_at);
        }
        outer.info.status = response.status;
        outer.details("via_upstream");
        decide::upstream_response(worker, outer, response, plan.attempted_at);
    }

    /// Puts the response's head; true when the connection must be closed after it.
    fn put_head(&mut self, has_body: bool, is_upgrade: bool) -> bool {
        let is_request_whole = self.pump.is_read() || self.down.is_body_ended();
        let outer = &self.scratch.outer;
        let response = &self.scratch.response;
        let is_head = outer.head.method() == b"HEAD";
        match &mut *self.down {
            Leg::H1(wire) => {
                let is_old = outer.head.version == Version::Http10;
                let has_length = response.headers.get(b"content-length").is_some();
                let takes_body = !is_head && !matches!(response.status, 204 | 304) && !is_upgrade;
                let chunked = has_body && takes_body && !has_length && !is_old;
                let until_close = has_body && takes_body && !has_length && is_old;
                let close = !is_upgrade
                    && (self.is_last
                        || !self.meta.keep_alive
                        || !is_request_whole
                        || until_close
                        || self.session.worker.is_draining());
                let extras = ResponseExtras {
                    chunked,
                    zero_length: !has_body && takes_body && !has_length,
                    close,
                    keep_alive: is_old && !close && !is_upgrade,
                    proper_case: self.session.manager.http1.proper_case_headers,
                };
                wire.put_response(response, extras, is_upgrade || (has_body && takes_body));
                close
            }
            Leg::H2(stream) => {
                let Some(mut respond) = stream.respond.take() else { return false };
                let is_all = !has_body || is_head;
                match respond.send_response(super::translate::response_out(response), is_all) {
                    Ok(send) => stream.send = Some(send),
                    // The stream is gone, which the next write tells.
                    Err(error) => tracing::debug!(%error, "cannot answer on an HTTP/2 stream"),
                }
                if is_all {
                    stream.head_was_all();
                }
                false
            }
        }
    }

    fn after(&mut self, close: bool) -> After {
        let is_request_whole = self.pump.is_done() || self.down.is_body_ended();
        match (is_request_whole, close) {
            (true, false) => After::Keep,
            (true, true) => After::Close,
            (false, _) => After::Linger,
        }
    }

    /// The client is gone.
    fn abandoned(&mut self) -> After {
        let outer = &mut self.scratch.outer;
        outer.info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
        outer.details("downstream_remote_disconnect");
        After::Abort
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
