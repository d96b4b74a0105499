//! The HTTP data path.
//!
//! * `http1`, `http2`: the downstream side, up to a request's head. `wire`, `leg`: connections of both sides.
//! * `request`: one request: decided (`decide`), forwarded (`plan`, `attempt`, `flight`; `callee`: through a callee of
//!   this host), answered (`respond`, `reply`).
//! * `mirror`: copies of requests. `pool`: upstream connections. `buffer`, `timer`: memory and clocks that cost nothing
//!   while nothing happens.
//! * `session`: what requests of one connection share and use again.

mod attempt;
mod buffer;
mod callee;
mod date;
mod decide;
mod filters;
mod flight;
mod http1;
mod http2;
mod leg;
mod mirror;
mod outcome;
mod plan;
mod pool;
mod prefixed;
mod reply;
mod request;
mod respond;
mod session;
mod timer;
mod translate;
mod wire;

#[cfg(test)]
mod tests;

pub use pool::HostState;

use crate::connection::Connection;
use crate::io::Stream;
use crate::worker::Worker;
use dpu_proxy_core::model::{CodecType, HttpConnectionManager};
use session::Session;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use wire::Wire;

/// What the HTTP path keeps per worker.
#[derive(Debug, Default)]
pub struct WorkerState {
    date: date::Date,
    /// Requests that are delayed by an injected fault.
    faults: Rc<std::cell::Cell<u32>>,
    own_address: std::cell::OnceCell<IpAddr>,
}

impl WorkerState {
    /// This machine's first address that is not a loopback one: what a loopback client is called in `x-forwarded-for`.
    fn own_address(&self) -> IpAddr {
        *self.own_address.get_or_init(|| {
            let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
            let mut v4 = addresses.filter_map(|address| address.as_sockaddr_in().map(|address| address.ip()));
            v4.find(|address| !address.is_loopback()).unwrap_or(Ipv4Addr::LOCALHOST).into()
        })
    }
}

/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves one downstream connection until it ends. `connection` is refreshed between requests when the
/// snapshot changes.
pub async fn serve_connection(
    worker: Rc<Worker>,
    connection: Connection,
    manager: Arc<HttpConnectionManager>,
    stream: Stream,
) {
    let by_alpn = match (connection.alpn(), manager.codec) {
        (_, CodecType::Http1) => Some(false),
        (_, CodecType::Http2) | ("h2", CodecType::Auto) => Some(true),
        ("http/1.1" | "http/1.0", CodecType::Auto) => Some(false),
        _ => None,
    };
    let session = Session::new(worker, connection, manager);
    let mut wire = Wire::new(stream);
    let is_http2 = match by_alpn {
        Some(is_http2) => is_http2,
        None => match is_preface(&session, &mut wire).await {
            Some(is_http2) => is_http2,
            None => return,
        },
    };
    match is_http2 {
        true => http2::serve_connection(session, wire.into_prefixed()).await,
        false => http1::serve_connection(session, wire).await,
    }
}

/// Reads until it is clear whether the client begins with HTTP/2. `None`: nothing came for too long, or the proxy drains.
async fn is_preface(session: &Session, wire: &mut Wire) -> Option<bool> {
    let manager = &session.manager;
    let mut patience = pin!(session.worker.patience());
    let mut timer = timer::Timer::default();
    let mut head_until = None;
    loop {
        let seen = wire.read_ahead();
        let (is_silent, compared) = (seen.is_empty(), seen.len().min(PREFACE.len()));
        if seen[..compared] != PREFACE[..compared] {
            return Some(false);
        }
        if compared == PREFACE.len() {
            return Some(true);
        }
        let mut until = None;
        let filled = poll_fn(|cx| {
            if let Poll::Ready(result) = wire.poll_fill(cx) {
                return Poll::Ready(Some(result));
            }
            let limit = manager.request_headers_timeout.unwrap_or(http1::SLOWEST_HEAD);
            let until = *until.get_or_insert_with(|| match is_silent {
                true => manager.idle_timeout.map(|timeout| Instant::now() + timeout),
                false => Some(*head_until.get_or_insert_with(|| Instant::now() + limit)),
            });
            if let Some(until) = until
                && timer.poll(cx, until).is_ready()
            {
                return Poll::Ready(None);
            }
            if is_silent { patience.as_mut().poll(cx).map(|()| None) } else { Poll::Pending }
        })
        .await;
        match filled {
            Some(Ok(1..)) => {}
            // The next read says the same again.
            Some(_) => return Some(false),
            None if is_silent => return None,
            // HTTP/1.1 answers what is too slow.
            None => return Some(false),
        }
    }
}
