//! The downstream side of HTTP/2: a task per stream.

use super::leg::{H2Stream, Leg, Pump};
use super::prefixed::Prefixed;
use super::request::{Request, serve};
use super::session::{Scratch, Session};
use super::translate;
use bytes::Bytes;
use dpu_proxy_core::http1::{Framing, RequestMeta};
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Instant, SystemTime};

/// Defaults where the configuration says nothing. Envoy's windows of 16 MiB are more than a shared proxy can promise to every client.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const MAX_STREAMS: u32 = 1024;

/// Serves a connection until it ends.
pub async fn serve_connection(mut session: Session, stream: Prefixed) {
    let mut connection = match handshake(&session, stream).await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(remote = %session.connection.remote, %error, "no HTTP/2"),
    };
    let worker = Rc::clone(&session.worker);
    let mut draining = pin!(worker.draining());
    let mut is_draining = false;
    let streams = Rc::new(());
    loop {
        let idle = idle(&session, &streams);
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
                if Rc::strong_count(&streams) == 1 {
                    connection.graceful_shutdown();
                    is_draining = true;
                }
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                session.refresh();
                let stream = one(session.clone(), request, respond, Rc::clone(&streams));
                tokio::task::spawn_local(stream);
            }
            Some(Err(error)) => {
                return tracing::debug!(remote = %session.connection.remote, %error, "HTTP/2 connection ended");
            }
            None => return,
        }
    }
}

async fn idle(session: &Session, streams: &Rc<()>) {
    match session.manager.idle_timeout {
        Some(timeout) if Rc::strong_count(streams) == 1 => tokio::time::sleep(timeout).await,
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

async fn one(session: Session, request: http::Request<RecvStream>, respond: SendResponse<Bytes>, _counted: Rc<()>) {
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
    // The stream says itself how it ended.
    let _ = serve(request).await;
}
