//! An HTTP server of an application: HTTP/1.1 and HTTP/2 without TLS on one port, as bookinfo's are.

use super::client::Client;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;

/// What an application sees of a call.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub peer: SocketAddr,
    pub body: Bytes,
}

impl Seen {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Who called, as far as the application can tell.
    pub fn caller(&self) -> Value {
        json!({
            "address": self.peer.ip().to_string(),
            "certificate": self.header("x-forwarded-client-cert"),
            "authority": self.header("host"),
            "protocol": format!("{:?}", self.version),
        })
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: Vec<(&'static str, String)>,
    pub body: Value,
}

impl Answer {
    /// 200.
    pub fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, headers: Vec::new(), body }
    }
}

/// Serves until the process ends.
pub async fn serve<F, A>(port: u16, answer: F) -> anyhow::Result<()>
where
    F: Fn(Seen, Client) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let client = Client::new();
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (answer, client) = (answer.clone(), client.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| one(request, peer, answer.clone(), client.clone()));
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is the caller's affair.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn one<F, A>(
    request: Request<Incoming>,
    peer: SocketAddr,
    answer: F,
    client: Client,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    F: Fn(Seen, Client) -> A,
    A: Future<Output = Answer>,
{
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        version: parts.version,
        headers: parts.headers,
        peer,
        body,
    };
    Ok(render(answer(seen, client).await))
}

fn render(answer: Answer) -> Response<Full<Bytes>> {
    let mut body = answer.body;
    body["marker"] = json!(super::MARKER);
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = answer.status;
    for (name, value) in answer.headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
