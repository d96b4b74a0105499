//! How an application calls another: keep-alive HTTP/1.1 to a service address, trace headers passed on.

use super::http::Seen;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::time::Duration;

/// Headers that bookinfo's applications pass on.
const PASSED_ON: [&str; 4] = ["x-request-id", "end-user", "traceparent", "via-grpc"];

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Pool<HttpConnector, Empty<Bytes>>,
}

/// What another application answered; status 0 when it could not be reached.
#[derive(Clone, Debug)]
pub struct Called {
    pub status: u16,
    pub body: Value,
}

impl Client {
    /// With its own connections.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { pool: Pool::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).build(connector) }
    }

    /// GET `http://ADDRESS/path` as `host`, on behalf of the call `seen`.
    pub async fn get(&self, address: &str, host: &str, path: &str, seen: &Seen) -> Called {
        match tokio::time::timeout(Duration::from_secs(10), self.try_get(address, host, path, seen)).await {
            Ok(Ok(called)) => called,
            Ok(Err(error)) => failed(&format!("{error:#}")),
            Err(_) => failed("no answer within 10 s"),
        }
    }

    async fn try_get(&self, address: &str, host: &str, path: &str, seen: &Seen) -> anyhow::Result<Called> {
        let mut request = Request::get(format!("http://{address}{path}")).header("host", host);
        for name in PASSED_ON {
            if let Some(value) = seen.headers.get(name) {
                request = request.header(name, value);
            }
        }
        let response = self.pool.request(request.body(Empty::new())?).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        let text = || json!({ "text": String::from_utf8_lossy(&body) });
        Ok(Called { status, body: serde_json::from_slice(&body).unwrap_or_else(|_| text()) })
    }
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Called {
    /// The status for one's own answer: what the other could not do, we could not either.
    pub fn passed_on(&self) -> StatusCode {
        match self.status {
            200 => StatusCode::OK,
            0 => StatusCode::BAD_GATEWAY,
            other => StatusCode::from_u16(other).unwrap_or(StatusCode::BAD_GATEWAY),
        }
    }
}

fn failed(reason: &str) -> Called {
    Called { status: 0, body: json!({ "error": reason }) }
}
