//! The downstream side of HTTP/1.1: one request after the other on one connection.

use super::leg::{Leg, Pump};
use super::reply::Reply;
use super::request::{After, Request, serve};
use super::session::{Scratch, Session};
use super::wire::{HeadFailure, Wire};
use crate::stream_info::ResponseFlags;
use crate::worker::DRAIN_GRACE;
use dpu_proxy_core::http1::{HeadError, Limits, RequestMeta, RequestOptions};
use dpu_proxy_core::model::HttpConnectionManager;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

/// How long a head may take to come where the configuration sets no limit: a client that never finishes one does not stay.
pub const SLOWEST_HEAD: Duration = Duration::from_secs(60);

/// Serves a connection until it ends.
pub async fn serve_connection(mut session: Session, wire: Wire) {
    let worker = std::rc::Rc::clone(&session.worker);
    let mut draining = pin!(worker.draining());
    let mut leg = Leg::H1(Box::new(wire));
    let mut scratch = Scratch::new(&session);
    let mut served = 0u32;
    loop {
        let length = match next_head(&session, &mut leg, &mut scratch, draining.as_mut()).await {
            Ok(length) => length,
            Err(Ended::Silently) => return,
            Err(Ended::Malformed(error)) => return refuse(&session, &mut leg, &mut scratch, error).await,
            Err(Ended::TooSlow) => return too_slow(&session, &mut leg, &mut scratch).await,
        };
        session.refresh();
        served += 1;
        let is_last = is_last(&session, served);
        match one(&session, &mut leg, &mut scratch, length, is_last).await {
            After::Keep => rest(&mut leg),
            After::Close => return shut(&mut leg).await,
            After::Linger => return linger(&session, &mut leg, &mut scratch).await,
            After::Abort => return,
        }
    }
}

fn is_last(session: &Session, served: u32) -> bool {
    let manager = &session.manager;
    manager.max_requests_per_connection.is_some_and(|most| served >= most)
        || manager.max_connection_duration.is_some_and(|most| session.connection.started.elapsed() >= most)
}

fn rest(leg: &mut Leg) {
    if let Leg::H1(wire) = leg {
        wire.rest();
    }
}

enum Ended {
    Silently,
    Malformed(HeadError),
    TooSlow,
}

/// Waits for the next request's head.
async fn next_head(
    session: &Session,
    leg: &mut Leg,
    scratch: &mut Scratch,
    mut draining: Pin<&mut impl Future<Output = ()>>,
) -> Result<usize, Ended> {
    let Leg::H1(wire) = leg else { return Err(Ended::Silently) };
    let manager = &session.manager;
    let limits = limits(manager);
    // The clock is asked for only when the client lets us wait.
    let mut waiting: Option<Waiting> = None;
    poll_fn(|cx| {
        match wire.poll_head(cx, &limits) {
            Poll::Ready(Ok(length)) => return Poll::Ready(Ok(length)),
            Poll::Ready(Err(HeadFailure::Malformed(error))) => return Poll::Ready(Err(Ended::Malformed(error))),
            Poll::Ready(Err(HeadFailure::Closed | HeadFailure::Cut)) => return Poll::Ready(Err(Ended::Silently)),
            Poll::Pending => {}
        }
        let waiting = waiting.get_or_insert_with(|| Waiting::new(session));
        let is_idle = wire.read_ahead().is_empty();
        waiting.poll(cx, manager, is_idle, scratch, draining.as_mut()).map(Err)
    })
    .await
}

fn limits(manager: &HttpConnectionManager) -> Limits {
    Limits {
        max_bytes: manager.max_request_headers_kb as usize * 1024,
        max_headers: manager.max_headers_count as usize,
    }
}

/// How long the next request may take to come.
struct Waiting {
    idle_until: Option<Instant>,
    head_until: Option<Instant>,
    is_draining: bool,
}

impl Waiting {
    fn new(session: &Session) -> Self {
        let manager = &session.manager;
        let idle_until = manager.idle_timeout.map(|timeout| Instant::now() + timeout);
        let ends_at = manager.max_connection_duration.map(|most| session.connection.started + most);
        let idle_until = super::timer::earlier(idle_until, ends_at);
        Self { idle_until, head_until: None, is_draining: false }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        manager: &HttpConnectionManager,
        is_idle: bool,
        scratch: &mut Scratch,
        draining: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Ended> {
        if !is_idle {
            return self.poll_slow_head(cx, manager, scratch);
        }
        if !self.is_draining && draining.poll(cx).is_ready() {
            self.is_draining = true;
            let grace = Instant::now() + DRAIN_GRACE;
            self.idle_until = Some(self.idle_until.map_or(grace, |until| until.min(grace)));
        }
        match self.idle_until {
            Some(until) => scratch.timer.poll(cx, until).map(|()| Ended::Silently),
            None => Poll::Pending,
        }
    }

    fn poll_slow_head(
        &mut self,
        cx: &mut Context<'_>,
        manager: &HttpConnectionManager,
        scratch: &mut Scratch,
    ) -> Poll<Ended> {
        let limit = [manager.request_headers_timeout, manager.request_timeout, manager.stream_idle_timeout];
        let limit = limit.into_iter().flatten().min().unwrap_or(SLOWEST_HEAD);
        let until = *self.head_until.get_or_insert_with(|| Instant::now() + limit);
        scratch.timer.poll(cx, until).map(|()| Ended::TooSlow)
    }
}

/// Serves the request whose head is there.
async fn one(session: &Session, leg: &mut Leg, scratch: &mut Scratch, length: usize, is_last: bool) -> After {
    scratch.outer.begin(session, Instant::now(), SystemTime::now());
    scratch.response.clear();
    let Leg::H1(wire) = &mut *leg else { return After::Abort };
    let options = RequestOptions {
        allow_absolute_url: session.manager.http1.allow_absolute_url,
        allow_chunked_length: session.manager.http1.allow_chunked_length,
        is_tls: session.connection.tls.is_some(),
    };
    match wire.take_request(length, &options, &mut scratch.outer.head) {
        Ok(meta) => serve(request(session, leg, scratch, meta, is_last)).await,
        Err(error) => {
            reject(session, leg, scratch, error).await;
            After::Linger
        }
    }
}

fn request<'a>(
    session: &'a Session,
    down: &'a mut Leg,
    scratch: &'a mut Scratch,
    meta: RequestMeta,
    is_last: bool,
) -> Request<'a> {
    Request {
        session,
        scratch,
        down,
        meta,
        pump: Pump::default(),
        clock: Default::default(),
        request_ended: None,
        is_last,
    }
}

/// Answers a head that is malformed, and ends.
async fn refuse(session: &Session, leg: &mut Leg, scratch: &mut Scratch, error: HeadError) {
    scratch.outer.begin(session, Instant::now(), SystemTime::now());
    scratch.outer.head.clear();
    scratch.response.clear();
    reject(session, leg, scratch, error).await;
    linger(session, leg, scratch).await;
}

async fn reject(session: &Session, leg: &mut Leg, scratch: &mut Scratch, error: HeadError) {
    session.count("envoy_http_downstream_cx_protocol_error");
    tracing::debug!(remote = %session.connection.remote, %error, "malformed request");
    let text = match error.status() {
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        _ => "Bad Request",
    };
    let reply = Reply::new(error.status(), error.details()).text(text).flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
    answer(session, leg, scratch, &reply).await;
}

async fn too_slow(session: &Session, leg: &mut Leg, scratch: &mut Scratch) {
    session.count("envoy_http_downstream_rq_header_timeout");
    scratch.outer.begin(session, Instant::now(), SystemTime::now());
    scratch.outer.head.clear();
    scratch.response.clear();
    answer(session, leg, scratch, &Reply::new(408, "request_header_timeout").text("request header timeout")).await;
    linger(session, leg, scratch).await;
}

async fn answer(session: &Session, leg: &mut Leg, scratch: &mut Scratch, reply: &Reply) {
    let mut request = request(session, leg, scratch, RequestMeta::default(), true);
    // The connection ends in any case.
    let _ = request.answer(reply).await;
    request.finish();
}

/// Ends our direction; the client has sent everything.
async fn shut(leg: &mut Leg) {
    if let Leg::H1(wire) = leg {
        // The client may be gone already.
        let _ = poll_fn(|cx| wire.poll_shutdown(cx)).await;
    }
}

/// Throws away what still comes for a moment, so that the client can read the answer (Envoy's delayed close).
async fn linger(session: &Session, leg: &mut Leg, scratch: &mut Scratch) {
    let Leg::H1(wire) = leg else { return };
    let until = Instant::now() + session.manager.delayed_close_timeout;
    poll_fn(|cx| {
        loop {
            match wire.poll_discard(cx) {
                Poll::Ready(true) => return Poll::Ready(()),
                Poll::Ready(false) => {}
                Poll::Pending => return scratch.timer.poll(cx, until),
            }
        }
    })
    .await;
}
