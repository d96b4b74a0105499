//! The HTTP server of a program: `/healthz`, `/readyz`, `/metrics`, and what the program adds.

use crate::health::Health;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Largest request body that is read, in bytes.
const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// Metrics of the program.
pub type SharedRegistry = Arc<Mutex<Registry>>;

/// What a handler gets.
#[derive(Debug)]
pub struct Call<'a> {
    pub path: &'a str,
    /// Without `?`; empty when there is none.
    pub query: &'a str,
    pub body: Bytes,
}

/// What a handler answers.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
}

impl Reply {
    /// 200 with text.
    pub fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    /// 200 with JSON text.
    pub fn json(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: "application/json", body: body.into() }
    }

    /// Another status with text.
    pub fn status(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, ..Self::text(body) }
    }
}

type Handler = Box<dyn Fn(Call<'_>) -> Reply + Send + Sync>;

/// Routes that a program adds, by method and exact path.
#[derive(Default)]
pub struct Routes {
    handlers: BTreeMap<(String, String), Handler>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}

impl Routes {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `GET path` with a JSON answer.
    pub fn get(self, path: &str, handler: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.route(Method::GET, path, move |_| Reply::json(handler()))
    }

    /// Adds any route.
    pub fn route(
        mut self,
        method: Method,
        path: &str,
        handler: impl Fn(Call<'_>) -> Reply + Send + Sync + 'static,
    ) -> Self {
        self.handlers.insert((method.to_string(), path.to_owned()), Box::new(handler));
        self
    }
}

struct Site {
    health: Health,
    registry: SharedRegistry,
    routes: Routes,
}

/// Binds `address` and serves until `shutdown`. Returns the bound address once it listens.
pub async fn serve(
    address: SocketAddr,
    health: Health,
    registry: SharedRegistry,
    routes: Routes,
    shutdown: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.map_err(|error| named(address, error))?;
    let bound = listener.local_addr()?;
    tracing::info!(address = %bound, "health and metrics are served");
    let site = Arc::new(Site { health, registry, routes });
    tokio::spawn(accept(listener, site, shutdown));
    Ok(bound)
}

fn named(address: SocketAddr, error: std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("cannot listen on {address} for health and metrics: {error}"))
}

async fn accept(listener: TcpListener, site: Arc<Site>, shutdown: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(&site)));
            }
            Err(error) => tracing::warn!(%error, "health server could not accept"),
        }
    }
}

async fn connection(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(answer(&site, request).await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "health connection ended");
    }
}

async fn answer(site: &Site, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let reply = match Limited::new(body, BODY_LIMIT_BYTES).collect().await {
        Ok(body) => dispatch(site, &parts.method, &parts.uri, body.to_bytes()),
        Err(error) => Reply::status(StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n")),
    };
    render(reply)
}

fn dispatch(site: &Site, method: &Method, uri: &hyper::Uri, body: Bytes) -> Reply {
    let path = uri.path();
    if let Some(handler) = site.routes.handlers.get(&(method.to_string(), path.to_owned())) {
        return handler(Call { path, query: uri.query().unwrap_or(""), body });
    }
    match path {
        "/healthz" | "/livez" => Reply::text("ok\n"),
        "/readyz" | "/ready" => ready(&site.health),
        "/metrics" => metrics(&site.registry),
        _ => Reply::status(StatusCode::NOT_FOUND, index(site)),
    }
}

fn ready(health: &Health) -> Reply {
    match health.ready() {
        Ok(text) => Reply::text(format!("ready\n{text}")),
        Err(text) => Reply::status(StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

fn metrics(registry: &SharedRegistry) -> Reply {
    let mut body = String::new();
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut body, &registry) {
        Ok(()) => {
            Reply { content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8", ..Reply::text(body) }
        }
        Err(error) => Reply::status(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode metrics: {error}\n")),
    }
}

fn index(site: &Site) -> String {
    let mut text = format!("{} serves:\nGET /healthz\nGET /readyz\nGET /metrics\n", site.health.program());
    for (method, path) in site.routes.handlers.keys() {
        text.push_str(&format!("{method} {path}\n"));
    }
    text
}

fn render(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = reply.status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(reply.content_type));
    response
}
