//! `Flight`: one attempt on its way: the request's body up, the response's head and body down, within
//! the deadlines, until both messages ended or something failed.

use super::leg::{H2Stream, Leg, LegError, Pump, PumpError};
use super::session::Replay;
use super::timer::{Timer, earlier};
use super::translate;
use super::wire::HeadFailure;
use crate::upstream::ConnectError;
use dpu_proxy_core::head::ResponseHead;
use dpu_proxy_core::http1::response::Answers;
use dpu_proxy_core::http1::{Framing, Limits, ResponseMeta};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Why an attempt did not bring a response, or not all of it.
#[derive(Debug)]
pub enum Failure {
    Overflow,
    Connect(ConnectError),
    /// The upstream's connection or stream.
    Upstream(LegError),
    /// The client's request could not be read to its end.
    Request(LegError),
    ClientGone,
    /// Of the whole request.
    Timeout,
    PerTryTimeout,
    PerTryIdle,
    /// `max_stream_duration`.
    StreamTimeout,
    /// Of the whole request, as a callee on this host limits it.
    CalleeTimeout,
    CalleePerTryTimeout,
    /// Nothing moved for too long.
    Idle,
    /// The request took longer than it may to come.
    RequestTimeout,
}

/// What may end an attempt, besides its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadlines {
    /// Route timeout: counts from the end of the request.
    pub route: Option<Duration>,
    pub per_try: Option<Duration>,
    /// Nothing moved for so long in an attempt.
    pub per_try_idle: Option<Duration>,
    /// When the stream must have ended.
    pub stream: Option<Instant>,
    pub idle: Option<Duration>,
    /// Until when the request must have been received.
    pub request: Option<Instant>,
}

/// The clock of a request.
#[derive(Debug, Default)]
pub struct Clock {
    pub deadlines: Deadlines,
    route_at: Option<Instant>,
    per_try_at: Option<Instant>,
    per_try_idle_at: Option<Instant>,
    moved_in_try: u64,
    callee_at: Option<Instant>,
    callee_try_at: Option<Instant>,
    idle_at: Option<Instant>,
    moved: u64,
}

impl Clock {
    /// The request was received whole: the route's timeout begins.
    pub fn request_ended(&mut self, now: Instant) {
        self.deadlines.request = None;
        if self.route_at.is_none() {
            self.route_at = self.deadlines.route.map(|timeout| now + timeout);
        }
    }

    /// An attempt begins.
    pub fn attempt(&mut self, now: Instant) {
        self.per_try_at = self.deadlines.per_try.map(|timeout| now + timeout);
        self.per_try_idle_at = self.deadlines.per_try_idle.map(|timeout| now + timeout);
        (self.callee_at, self.callee_try_at) = (None, None);
        self.idle_at = self.deadlines.idle.map(|timeout| now + timeout);
    }

    /// A callee on this host takes the request.
    pub fn begin_callee(&mut self, route: Option<Duration>, stream: Option<Duration>) {
        let limit = route.into_iter().chain(stream).min();
        self.callee_at = limit.map(|limit| Instant::now() + limit);
    }

    /// It makes an attempt.
    pub fn attempt_of_callee(&mut self, now: Instant, per_try: Option<Duration>) {
        self.callee_try_at = per_try.map(|timeout| now + timeout);
    }

    /// A response came: the attempt's own limit is kept.
    pub fn response_started(&mut self) {
        (self.per_try_at, self.callee_try_at) = (None, None);
    }

    /// For an upgraded connection only the idle limit counts.
    pub fn tunnel(&mut self) {
        (self.route_at, self.per_try_at, self.deadlines.request) = (None, None, None);
        (self.callee_at, self.callee_try_at, self.per_try_idle_at) = (None, None, None);
    }

    /// Ready when a deadline passed. `moved` counts bytes.
    pub fn poll(&mut self, cx: &mut Context<'_>, timer: &mut Timer, moved: u64) -> Poll<Failure> {
        loop {
            let limits = earlier(earlier(self.route_at, self.per_try_at), self.deadlines.request);
            let limits = earlier(limits, self.deadlines.stream);
            let limits = earlier(limits, earlier(self.callee_at, self.callee_try_at));
            let limits = earlier(limits, self.per_try_idle_at);
            let Some(deadline) = earlier(limits, self.idle_at) else { return Poll::Pending };
            ready!(timer.poll(cx, deadline));
            let now = Instant::now();
            let is_over = |at: Option<Instant>| at.is_some_and(|at| now >= at);
            if is_over(self.route_at) {
                return Poll::Ready(Failure::Timeout);
            }
            if is_over(self.per_try_at) {
                return Poll::Ready(Failure::PerTryTimeout);
            }
            if is_over(self.deadlines.stream) {
                return Poll::Ready(Failure::StreamTimeout);
            }
            if is_over(self.callee_at) {
                return Poll::Ready(Failure::CalleeTimeout);
            }
            if is_over(self.callee_try_at) {
                return Poll::Ready(Failure::CalleePerTryTimeout);
            }
            if is_over(self.deadlines.request) {
                return Poll::Ready(Failure::RequestTimeout);
            }
            if is_over(self.per_try_idle_at) {
                if moved == self.moved_in_try {
                    return Poll::Ready(Failure::PerTryIdle);
                }
                self.moved_in_try = moved;
                self.per_try_idle_at = self.deadlines.per_try_idle.map(|timeout| now + timeout);
            }
            if is_over(self.idle_at) {
                if moved == self.moved {
                    return Poll::Ready(Failure::Idle);
                }
                self.moved = moved;
                self.idle_at = self.deadlines.idle.map(|timeout| now + timeout);
            }
        }
    }
}

/// One attempt on its way.
pub struct Flight<'a> {
    pub down: &'a mut Leg,
    pub up: &'a mut Leg,
    pub request: &'a mut Pump,
    pub replay: &'a mut Replay,
    /// Bytes of the replay that this attempt has sent already.
    pub replayed: usize,
    pub clock: &'a mut Clock,
    pub timer: &'a mut Timer,
    /// When the request's last byte was sent, once it was.
    pub request_ended: &'a mut Option<Instant>,
    /// The upstream took no more of the request.
    pub is_write_closed: bool,
    pub passes_continue: bool,
}

impl Flight<'_> {
    /// Waits for the response's head, sending the request meanwhile.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        answers: Answers,
        head: &mut ResponseHead,
    ) -> Poll<Result<ResponseMeta, Failure>> {
        if let Poll::Ready(Err(failure)) = self.poll_request(cx) {
            return Poll::Ready(Err(failure));
        }
        loop {
            match poll_response_head(self.up, cx, answers, head) {
                Poll::Ready(Ok(meta)) if (100..200).contains(&head.status) && !meta.upgrade => {
                    self.informational(cx, head)
                }
                Poll::Ready(Ok(meta)) => return Poll::Ready(Ok(meta)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Upstream(error))),
                Poll::Pending => break,
            }
        }
        self.clock.poll(cx, self.timer, self.request.bytes).map(Err)
    }

    fn informational(&mut self, cx: &mut Context<'_>, head: &ResponseHead) {
        if let (true, 100, Leg::H1(wire)) = (self.passes_continue, head.status, &mut *self.down) {
            wire.put_informational(100);
            // What can't be written now goes out with the response.
            let _ = wire.poll_flush(cx);
        }
    }

    /// Moves the response's body, and what is left of the request's.
    pub fn poll_rest(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut Pump,
        is_tunnel: bool,
    ) -> Poll<Result<(), Failure>> {
        if !response.is_done() {
            match response.poll(cx, self.up, self.down, |_| {}) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(PumpError::From(error))) => return Poll::Ready(Err(Failure::Upstream(error))),
                Poll::Ready(Err(PumpError::To(_))) => return Poll::Ready(Err(Failure::ClientGone)),
                Poll::Pending => {
                    match self.poll_request(cx) {
                        Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                        Poll::Ready(Ok(())) if is_tunnel => return Poll::Ready(Ok(())),
                        _ => {}
                    }
                    let moved = self.request.bytes + response.bytes;
                    return self.clock.poll(cx, self.timer, moved).map(Err);
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once the request was sent; watches the client then.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        ready!(self.poll_replay(cx));
        if !self.request.is_done() && !self.is_write_closed {
            let replay = &mut *self.replay;
            match self.request.poll(cx, self.down, self.up, |data| replay.push(data)) {
                Poll::Ready(Ok(())) => {
                    replay.finish();
                    let now = Instant::now();
                    *self.request_ended = Some(now);
                    self.clock.request_ended(now);
                }
                Poll::Ready(Err(PumpError::From(LegError::Cut | LegError::Ended | LegError::Reset(_)))) => {
                    return Poll::Ready(Err(Failure::ClientGone));
                }
                Poll::Ready(Err(PumpError::From(error))) => return Poll::Ready(Err(Failure::Request(error))),
                // It may have answered before it closed.
                Poll::Ready(Err(PumpError::To(_))) => self.is_write_closed = true,
                Poll::Pending => {}
            }
        }
        if self.request.is_done() || self.is_write_closed {
            if self.down.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Failure::ClientGone));
            }
            return if self.is_write_closed { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        Poll::Pending
    }

    /// Sends again what an earlier attempt has sent.
    fn poll_replay(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.replayed < self.replay.bytes.len() && !self.is_write_closed {
            match ready!(self.up.poll_give(cx, &self.replay.bytes[self.replayed..])) {
                Ok(count) => self.replayed += count,
                Err(_) => self.is_write_closed = true,
            }
        }
        Poll::Ready(())
    }
}

/// Waits for the head of a response.
pub fn poll_response_head(
    up: &mut Leg,
    cx: &mut Context<'_>,
    answers: Answers,
    head: &mut ResponseHead,
) -> Poll<Result<ResponseMeta, LegError>> {
    match up {
        Leg::H1(wire) => match ready!(wire.poll_head(cx, &Limits::default())) {
            Ok(length) => Poll::Ready(
                wire.take_response(length, answers, head).map_err(|error| LegError::Malformed(error.details())),
            ),
            Err(HeadFailure::Malformed(error)) => Poll::Ready(Err(LegError::Malformed(error.details()))),
            Err(HeadFailure::Closed | HeadFailure::Cut) => Poll::Ready(Err(LegError::Cut)),
        },
        Leg::H2(stream) => poll_h2_head(stream, cx, head),
    }
}

fn poll_h2_head(
    stream: &mut H2Stream,
    cx: &mut Context<'_>,
    head: &mut ResponseHead,
) -> Poll<Result<ResponseMeta, LegError>> {
    let Some(response) = &mut stream.response else { return Poll::Ready(Err(LegError::Cut)) };
    let (parts, recv) = ready!(Pin::new(response).poll(cx))?.into_parts();
    stream.response = None;
    translate::response_in(&parts, head);
    let framing = if recv.is_end_stream() { Framing::None } else { Framing::UntilClose };
    stream.recv = Some(recv);
    Poll::Ready(Ok(ResponseMeta { framing, keep_alive: true, upgrade: false }))
}
