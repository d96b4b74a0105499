//! Backends that record what they are asked and do what the request's `x-do` header says.
//!
//! `x-do` is a list of `name=value`, separated by `;`:
//! `status=503`, `body=TEXT`, `size=BYTES`, `delay=MILLISECONDS`, `header=NAME:VALUE`, `chunked`,
//! `trailers`, `close` (no answer), `reset` (RST, no answer), `half` (half an answer, then close),
//! `fail=N` (the first N requests with this `x-key` get `status`, later ones 200), `grpc=STATUS`.

use crate::observation::UpstreamRequest;
use bytes::Bytes;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What all backends of a run share.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<UpstreamRequest>,
    failures: HashMap<String, u32>,
}

impl Recorder {
    /// Takes what was recorded since the last call.
    pub fn take(&self) -> Vec<UpstreamRequest> {
        let mut state = self.lock();
        state.failures.clear();
        std::mem::take(&mut state.requests)
    }

    fn record(&self, request: UpstreamRequest) {
        self.lock().requests.push(request);
    }

    /// True for the first `limit` calls with this key.
    fn fails(&self, key: &str, limit: u32) -> bool {
        let mut state = self.lock();
        let count = state.failures.entry(key.to_owned()).or_default();
        *count += 1;
        *count <= limit
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a backend speaks.
#[derive(Clone)]
pub enum Speak {
    Http1,
    Http1Tls(TlsAcceptor),
    Http2,
    /// Answers each read with the same bytes, and says nothing first.
    Echo,
}

impl std::fmt::Debug for Speak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http1 => "Http1",
            Self::Http1Tls(_) => "Http1Tls",
            Self::Http2 => "Http2",
            Self::Echo => "Echo",
        })
    }
}

/// Starts a backend on a loopback port of its own.
pub async fn start(name: &'static str, speak: Speak, recorder: Recorder) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (speak, recorder) = (speak.clone(), recorder.clone());
            tokio::spawn(async move {
                // A peer that goes away is the case's business, not the backend's.
                let _ = match speak {
                    Speak::Http1 => http1(name, stream, &recorder).await,
                    Speak::Http1Tls(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => http1(name, stream, &recorder).await,
                        Err(error) => Err(error),
                    },
                    Speak::Http2 => http2(name, stream, recorder).await,
                    Speak::Echo => echo(name, stream, &recorder).await,
                };
            });
        }
    });
    Ok(address)
}

/// Parsed `x-do`.
#[derive(Clone, Debug, Default)]
struct Orders {
    status: u16,
    body: Vec<u8>,
    delay: Duration,
    headers: Vec<(String, String)>,
    flags: Vec<String>,
    fail: u32,
    grpc: Option<String>,
}

impl Orders {
    fn parse(name: &str, text: &str) -> Self {
        let mut orders = Self { status: 200, body: name.as_bytes().to_vec(), ..Self::default() };
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            orders.add(part);
        }
        orders
    }

    fn add(&mut self, part: &str) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "status" => self.status = value.parse().unwrap_or(200),
            "body" => self.body = value.as_bytes().to_vec(),
            "size" => self.body = vec![b'x'; value.parse().unwrap_or(0)],
            "delay" => self.delay = Duration::from_millis(value.parse().unwrap_or(0)),
            "header" => {
                self.headers.extend(value.split_once(':').map(|(name, value)| (name.to_owned(), value.to_owned())))
            }
            "fail" => self.fail = value.parse().unwrap_or(0),
            "grpc" => self.grpc = Some(value.to_owned()),
            flag => self.flags.push(flag.to_owned()),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|other| other == flag)
    }

    /// Applies `fail`: after the first N requests the answer is 200.
    fn settle(mut self, recorder: &Recorder, key: &str) -> Self {
        if self.fail > 0 && !recorder.fails(key, self.fail) {
            self.status = 200;
            self.flags.clear();
            self.delay = Duration::ZERO;
        }
        self
    }
}

fn value<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

async fn http1<S: AsyncRead + AsyncWrite + Unpin>(name: &str, stream: S, recorder: &Recorder) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some((line, headers)) = read_head(&mut stream).await? {
        let orders = Orders::parse(name, value(&headers, "x-do")).settle(recorder, value(&headers, "x-key"));
        let is_upgrade = value(&headers, "connection").eq_ignore_ascii_case("upgrade");
        let (body, trailers) = if is_upgrade { Default::default() } else { read_body(&mut stream, &headers).await? };
        let is_head = line.starts_with("HEAD ");
        recorder.record(UpstreamRequest { backend: name.to_owned(), line, headers, body, trailers });
        tokio::time::sleep(orders.delay).await;
        if orders.has("close") || orders.has("reset") {
            return Ok(());
        }
        if is_upgrade {
            return upgraded(stream).await;
        }
        stream.write_all(&render(&orders, is_head)).await?;
        stream.flush().await?;
        if orders.has("half") {
            return Ok(());
        }
    }
    Ok(())
}

async fn upgraded<S: AsyncRead + AsyncWrite + Unpin>(mut stream: BufReader<S>) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await?;
    stream.flush().await?;
    let mut buffer = [0u8; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
        stream.flush().await?;
    }
}

type Head = (String, Vec<(String, String)>);

async fn read_head<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Option<Head>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some((line.trim_end().to_owned(), read_headers(stream).await?)))
}

async fn read_headers<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(headers),
        }
    }
}

async fn read_body<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
    headers: &[(String, String)],
) -> std::io::Result<(String, Vec<(String, String)>)> {
    if value(headers, "transfer-encoding").eq_ignore_ascii_case("chunked") {
        return read_chunks(stream).await;
    }
    let length = value(headers, "content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((String::from_utf8_lossy(&body).into_owned(), Vec::new()))
}

async fn read_chunks<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
) -> std::io::Result<(String, Vec<(String, String)>)> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let size = usize::from_str_radix(line.trim_end(), 16).unwrap_or(0);
        if size == 0 {
            return Ok((String::from_utf8_lossy(&body).into_owned(), read_headers(stream).await?));
        }
        let start = body.len();
        body.resize(start + size, 0);
        stream.read_exact(&mut body[start..]).await?;
        stream.read_line(&mut line).await?;
    }
}

fn render(orders: &Orders, is_head: bool) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {} Whatever\r\n", orders.status).into_bytes();
    for (name, value) in &orders.headers {
        out.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    let bodyless = is_head || orders.status == 204 || orders.status == 304;
    if orders.has("chunked") || orders.has("trailers") {
        out.extend(b"transfer-encoding: chunked\r\n\r\n");
        out.extend(format!("{:x}\r\n", orders.body.len()).into_bytes());
        out.extend(&orders.body);
        out.extend(if orders.has("trailers") { &b"\r\n0\r\nx-trailer: end\r\n\r\n"[..] } else { b"\r\n0\r\n\r\n" });
        return out;
    }
    let claimed = if orders.has("half") { orders.body.len() * 2 } else { orders.body.len() };
    if orders.status != 204 {
        out.extend(format!("content-length: {claimed}\r\n").into_bytes());
    }
    out.extend(b"\r\n");
    if !bodyless {
        out.extend(&orders.body);
    }
    out
}

async fn http2(name: &'static str, stream: tokio::net::TcpStream, recorder: Recorder) -> std::io::Result<()> {
    let mut connection = h2::server::handshake(stream).await.map_err(std::io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(std::io::Error::other)?;
        tokio::spawn(http2_stream(name, request, respond, recorder.clone()));
    }
    Ok(())
}

async fn http2_stream(
    name: &'static str,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    recorder: Recorder,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let headers = to_pairs(&parts.headers);
    let orders = Orders::parse(name, value(&headers, "x-do")).settle(&recorder, value(&headers, "x-key"));
    let mut text = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        text.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await?.map(|trailers| to_pairs(&trailers)).unwrap_or_default();
    let line = format!("{} {} {}", parts.method, parts.uri, "HTTP/2");
    let body = String::from_utf8_lossy(&text).into_owned();
    recorder.record(UpstreamRequest { backend: name.to_owned(), line, headers, body, trailers });
    tokio::time::sleep(orders.delay).await;
    if orders.has("reset") || orders.has("close") {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        return Ok(());
    }
    answer_http2(&orders, &mut respond)
}

fn answer_http2(orders: &Orders, respond: &mut h2::server::SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut response = http::Response::builder().status(orders.status);
    for (name, value) in &orders.headers {
        response = response.header(name, value);
    }
    if orders.grpc.is_some() {
        response = response.header("content-type", "application/grpc");
    }
    let Ok(response) = response.body(()) else { return Ok(()) };
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from(orders.body.clone()), orders.grpc.is_none() && !orders.has("trailers"))?;
    let mut trailers = http::HeaderMap::new();
    if let Some(status) = orders.grpc.as_deref().and_then(|status| status.parse().ok()) {
        trailers.insert("grpc-status", status);
    } else if orders.has("trailers") {
        trailers.insert("x-trailer", http::HeaderValue::from_static("end"));
    } else {
        return Ok(());
    }
    stream.send_trailers(trailers)
}

/// Header map to pairs, in order.
pub fn to_pairs(headers: &http::HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

async fn echo(name: &str, mut stream: tokio::net::TcpStream, recorder: &Recorder) -> std::io::Result<()> {
    let mut buffer = [0u8; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&buffer[..count]).into_owned();
        recorder.record(UpstreamRequest { backend: name.to_owned(), line, ..UpstreamRequest::default() });
        stream.write_all(&buffer[..count]).await?;
    }
}
