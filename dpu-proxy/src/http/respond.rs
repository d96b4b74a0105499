//! How a request ends: the upstream's response passed on, or an answer of our own.

use super::decide;
use super::flight::Failure;
use super::leg::{Leg, Pump};
use super::outcome;
use super::plan::Plan;
use super::pool::Upstream;
use super::reply::Reply;
use super::request::{After, Request};
use super::session::Scratch;
use crate::stream_info::ResponseFlags;
use crate::upstream::Outcome;
use dpu_proxy_core::head::{HeaderBlock, Version};
use dpu_proxy_core::http1::ResponseMeta;
use dpu_proxy_core::http1::encode::ResponseExtras;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

impl Request<'_> {
    /// Passes the response on.
    pub async fn respond(&mut self, plan: Plan<'_>, mut upstream: Upstream, meta: ResponseMeta) -> After {
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

    fn note_grpc(&mut self, trailers: &HeaderBlock) {
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
    pub fn make_callee_response(&mut self, reply: &Reply) -> Vec<u8> {
        let Scratch { inner, response, .. } = &mut *self.scratch;
        match inner {
            Some(inner) if inner.is_begun => decide::local_response(&self.session.worker, inner, reply, response),
            _ => Vec::new(),
        }
    }

    /// Passes it on.
    pub async fn respond_for_callee(&mut self, plan: &Plan<'_>, body: &[u8]) -> After {
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
    pub fn abandoned(&mut self) -> After {
        let outer = &mut self.scratch.outer;
        outer.info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
        outer.details("downstream_remote_disconnect");
        After::Abort
    }
}
