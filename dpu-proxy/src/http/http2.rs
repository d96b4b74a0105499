//! The downstream side of HTTP/2: a task per stream.

use super::http1::SLOWEST_HEAD;
use super::leg::{H2Stream, Leg, Pump};
use super::prefixed::Prefixed;
use super::request::{After, Request, serve};
use super::session::{Scratch, Session};
use super::translate;
use crate::stream_info::ResponseFlags;
use bytes::Bytes;
use dpu_proxy_core::http1::{Framing, RequestMeta};
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

/// Defaults where the configuration says nothing. Envoy's windows of 16 MiB are more than a shared proxy can promise to every client.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const MAX_STREAMS: u32 = 1024;
/// Streams that a client may give up before it is asked whether it is well.
const MAX_ABANDONED: u64 = 500;

/// Streams of a connection.
#[derive(Debug, Default)]
struct Streams {
    served: Cell<u64>,
    /// Those that the client gave up before they were answered.
    abandoned: Cell<u64>,
}

impl Streams {
    /// As Envoy's premature reset check: many streams, and most of them given up at once, are an attack.
    fn are_reset_rapidly(&self) -> bool {
        self.abandoned.get() > MAX_ABANDONED && self.abandoned.get() * 2 > self.served.get()
    }
}

/// Serves a connection until it ends.
pub async fn serve_connection(mut session: Session, stream: Prefixed) {
    let limit = session.manager.request_headers_timeout.unwrap_or(SLOWEST_HEAD);
    let mut connection = match tokio::time::timeout(limit, handshake(&session, stream)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return protocol_error(&session, &error),
        Err(_) => return session.count("envoy_http_downstream_rq_header_timeout"),
    };
    let worker = Rc::clone(&session.worker);
    let mut draining = pin!(worker.draining());
    let mut is_draining = false;
    let streams = Rc::new(Streams::default());
    loop {
        let idle = idle(&session, is_draining);
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = &mut draining, if !is_draining => {
                is_draining = true;
                connection.graceful_shutdown();
                continue;
            }
            () = idle => {
                // Asked again: a stream may have come and gone meanwhile.
                if is_spent(&session, &streams) || Rc::strong_count(&streams) == 1 {
                    connection.graceful_shutdown();
                    is_draining = true;
                }
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                session.refresh();
                streams.served.set(streams.served.get() + 1);
                let stream = one(session.clone(), request, respond, Rc::clone(&streams));
                tokio::task::spawn_local(stream);
            }
            Some(Err(error)) => return protocol_error(&session, &error),
            None => return,
        }
        if streams.are_reset_rapidly() {
            session.count("envoy_http_downstream_rq_too_many_premature_resets");
            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        } else if !is_draining && is_spent(&session, &streams) {
            connection.graceful_shutdown();
            is_draining = true;
        }
    }
}

fn protocol_error(session: &Session, error: &h2::Error) {
    tracing::debug!(remote = %session.connection.remote, %error, "HTTP/2 connection ended");
    // A connection that is cut is no fault of the protocol.
    if !error.is_io() {
        session.count("envoy_http_downstream_cx_protocol_error");
    }
}

/// The connection has served what it may.
fn is_spent(session: &Session, streams: &Streams) -> bool {
    let manager = &session.manager;
    manager.max_requests_per_connection.is_some_and(|most| streams.served.get() >= u64::from(most))
        || manager.max_connection_duration.is_some_and(|most| session.connection.started.elapsed() >= most)
}

/// Until the connection was idle for too long, or has lasted for as long as it may.
async fn idle(session: &Session, is_draining: bool) {
    let manager = &session.manager;
    let left = |most: Duration| most.saturating_sub(session.connection.started.elapsed());
    let lasts = manager.max_connection_duration.filter(|_| !is_draining).map(left);
    match manager.idle_timeout.into_iter().chain(lasts).min() {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

async fn handshake(session: &Session, stream: Prefixed) -> Result<h2::server::Connection<Prefixed, Bytes>, h2::Error> {
    let manager = &session.manager;
    let options = &manager.http2;
    Builder::new()
        .initial_window_size(options.initial_stream_window_size.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(options.initial_connection_window_size.unwrap_or(CONNECTION_WINDOW))
        .max_concurrent_streams(options.max_concurrent_streams.unwrap_or(MAX_STREAMS))
        .max_header_list_size(manager.max_request_headers_kb * 1024)
        .handshake(stream)
        .await
}

async fn one(session: Session, request: http::Request<RecvStream>, respond: SendResponse<Bytes>, streams: Rc<Streams>) {
    let mut scratch = Scratch::new(&session);
    scratch.outer.begin(&session, Instant::now(), SystemTime::now());
    let (parts, recv) = request.into_parts();
    let scheme = if session.connection.tls.is_some() { &b"https"[..] } else { b"http" };
    translate::request_in(&parts, scheme, &mut scratch.outer.head);
    let meta = RequestMeta {
        framing: if recv.is_end_stream() { Framing::None } else { Framing::UntilClose },
        keep_alive: true,
        has_host: !scratch.outer.head.authority().is_empty(),
        connect: scratch.outer.head.method() == b"CONNECT",
        ..RequestMeta::default()
    };
    let mut down = Leg::H2(Box::new(H2Stream::server(recv, respond)));
    let request = Request {
        session: &session,
        scratch: &mut scratch,
        down: &mut down,
        meta,
        pump: Pump::default(),
        clock: Default::default(),
        request_ended: None,
        is_last: false,
    };
    let after = serve(request).await;
    if after == After::Abort && scratch.outer.info.flags.contains(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION) {
        streams.abandoned.set(streams.abandoned.get() + 1);
    }
}
