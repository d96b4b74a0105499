//! The admin server: Envoy's paths, on the bootstrap's admin address, and what is ours
//! (`/unsupported`, `/workloads`).
//!
//! In: the shared state and the workers' own. Out: text and JSON; orders to stop.

mod pages;

use crate::shared::{Phase, Shared};
use crate::workers::Workers;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A client that says nothing for so long is cut.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What an admin may ask of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Close the listening sockets; connections go on.
    DrainListeners,
    /// Drain, then end.
    Quit,
}

/// What the pages are made of.
#[derive(Clone, Debug)]
pub struct Admin {
    pub shared: Arc<Shared>,
    pub workers: Workers,
    pub orders: mpsc::Sender<Order>,
}

/// Between attempts at an address that another process has.
const BIND_INTERVAL: Duration = Duration::from_millis(100);

/// Binds `address` and serves in the background until `release`. Returns the bound address; `None` when another process
/// has it and `may_wait`: then it is served once it is free.
pub async fn serve(
    address: SocketAddr,
    admin: Admin,
    may_wait: bool,
    release: CancellationToken,
) -> std::io::Result<Option<SocketAddr>> {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) if may_wait && error.kind() == std::io::ErrorKind::AddrInUse => {
            tracing::warn!(%address, "the admin address belongs to another process, an older proxy perhaps; waiting for it");
            tokio::spawn(serve_when_free(address, admin, release));
            return Ok(None);
        }
        Err(error) => {
            let text = format!("cannot listen on {address} for the admin server: {error}");
            return Err(std::io::Error::new(error.kind(), text));
        }
    };
    let bound = listener.local_addr()?;
    tracing::info!(address = %bound, "admin server");
    tokio::spawn(accept(listener, admin, release));
    Ok(Some(bound))
}

async fn serve_when_free(address: SocketAddr, admin: Admin, release: CancellationToken) {
    let bound = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(BIND_INTERVAL).await,
            }
        }
    };
    tokio::select! {
        listener = bound => {
            tracing::info!(%address, "admin server");
            accept(listener, admin, release).await;
        }
        () = release.clone().cancelled_owned() => {}
    }
}

async fn accept(listener: TcpListener, admin: Admin, release: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = release.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, admin.clone()))),
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, admin: Admin) {
    let admin = &admin;
    let service = service_fn(move |request: Request<Incoming>| async move {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or(""));
        Ok::<_, Infallible>(admin.answer(request.method(), path, query).await.into_response())
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "admin connection ended");
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub is_json: bool,
    pub body: String,
}

impl Answer {
    fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, is_json: false, body: body.into() }
    }

    fn json(value: &serde_json::Value) -> Self {
        // `{:#}` of a value is indented JSON.
        Self { status: StatusCode::OK, is_json: true, body: format!("{value:#}\n") }
    }

    fn status(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, ..Self::text(body) }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let kind = if self.is_json { "application/json" } else { "text/plain; charset=UTF-8" };
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, max-age=0"));
        response
    }
}

const PATHS: &str = "/: this page
/ready: 200 once everything that was configured is in force
/stats: every statistic (?filter=TEXT, ?format=prometheus)
/stats/prometheus: the same for Prometheus
/config_dump: what is in force
/clusters: clusters and their endpoints
/listeners: listening sockets
/certs: certificates and trusted roots
/server_info: version, state, settings
/unsupported: what the configuration asks for and is not done
/workloads: pods of this DPU
/logging: the log filter; POST ?level=debug (or ?level=dpu_proxy=debug,info) changes it
/drain_listeners (POST): close the listening sockets
/quitquitquit (POST): drain and end
";

impl Admin {
    /// Answers one call.
    pub async fn answer(&self, method: &Method, path: &str, query: &str) -> Answer {
        match (path, method == Method::POST) {
            ("/drain_listeners", true) => self.order(Order::DrainListeners).await,
            ("/quitquitquit", true) => self.order(Order::Quit).await,
            ("/logging", true) => set_logging(query),
            ("/logging", false) => Answer::text(format!("{}\n", service::logging::filter())),
            ("/drain_listeners" | "/quitquitquit", false) => {
                Answer::status(StatusCode::METHOD_NOT_ALLOWED, format!("Method {method} not allowed, POST required.\n"))
            }
            ("/ready", _) => self.ready(),
            ("/stats", _) if !query.contains("format=prometheus") => self.stats(query).await,
            ("/stats" | "/stats/prometheus" | "/metrics", _) => Answer::text(self.prometheus().await),
            ("/clusters", _) => Answer::text(pages::clusters(&self.workers).await),
            ("/listeners", _) => Answer::text(pages::listeners(&self.shared.report.borrow())),
            ("/certs", _) => Answer::json(&pages::certificates(&self.shared.state.borrow().secrets)),
            ("/server_info", _) => Answer::json(&pages::server_info(&self.shared)),
            ("/config_dump", _) => Answer::json(&pages::config_dump(&self.shared)),
            ("/unsupported", _) => Answer::json(&pages::unsupported(&self.shared.report.borrow())),
            ("/workloads", _) => Answer::json(&pages::workloads(&self.shared)),
            ("/" | "/help", _) => Answer::text(PATHS),
            _ => Answer::status(StatusCode::NOT_FOUND, format!("invalid path. admin commands are:\n{PATHS}")),
        }
    }

    async fn order(&self, order: Order) -> Answer {
        match self.orders.send(order).await {
            Ok(()) => Answer::text("OK\n"),
            Err(_) => Answer::status(StatusCode::SERVICE_UNAVAILABLE, "the process is ending already\n"),
        }
    }

    fn ready(&self) -> Answer {
        let state = pages::state(&self.shared);
        let status = if state == "LIVE" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Answer::status(status, format!("{state}\n"))
    }

    async fn stats(&self, query: &str) -> Answer {
        let lines = self.workers.stats().await.lines();
        let filter = query.split('&').find_map(|pair| pair.strip_prefix("filter=")).unwrap_or("");
        Answer::text(
            lines.lines().filter(|line| line.contains(filter)).map(|line| format!("{line}\n")).collect::<String>(),
        )
    }

    async fn prometheus(&self) -> String {
        let mut text = self.workers.stats().await.prometheus();
        text.push_str(&pages::process_metrics(&self.shared));
        text
    }
}

/// `level=FILTER` puts a log filter in force.
fn set_logging(query: &str) -> Answer {
    let Some(filter) = query.split('&').find_map(|pair| pair.strip_prefix("level=")) else {
        return Answer::status(StatusCode::BAD_REQUEST, "give ?level=FILTER, e.g. ?level=debug\n");
    };
    match service::logging::set_filter(filter) {
        Ok(()) => Answer::text(format!("{filter}\n")),
        Err(error) => Answer::status(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// True once the process drains.
fn is_draining(shared: &Shared) -> bool {
    *shared.phase.borrow() != Phase::Serving
}
