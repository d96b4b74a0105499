//! The client side of a case: raw HTTP/1.1 bytes, HTTP/2 requests, or plain TCP, with or without TLS.

use crate::case::{Case, Client, ClientTls, Http2Request};
use crate::observation::Response;
use crate::upstream::to_pairs;
use bytes::Bytes;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a connection must stay open after the last answer to count as kept.
const SETTLE: Duration = Duration::from_millis(60);

/// What a client saw: the responses, and whether the peer then closed.
pub type Seen = (Vec<Response>, bool);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Makes the exchanges of a case once.
pub async fn run(case: &Case, address: SocketAddr, certificates: &Path) -> anyhow::Result<Seen> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match &case.tls {
        None => Box::new(tcp),
        Some(tls) => match connect_tls(tcp, tls, certificates).await? {
            Ok(stream) => Box::new(stream),
            Err(failure) => return Ok((vec![failed(&failure)], true)),
        },
    };
    match case.client {
        Client::Http1 => http1(stream, &case.send).await,
        Client::Http2 => http2(stream, &case.requests).await,
        Client::Tcp => tcp_exchange(stream, &case.send).await,
    }
}

fn failed(reason: &str) -> Response {
    Response { failure: Some(reason.to_owned()), ..Response::default() }
}

type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect_tls(
    tcp: TcpStream,
    tls: &ClientTls,
    certificates: &Path,
) -> anyhow::Result<Result<TlsStream, String>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.join("ca.pem"))?)?;
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some(name) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(certificates.join(format!("{name}.pem")))?],
            PrivateKeyDer::from_pem_file(certificates.join(format!("{name}.key")))?,
        )?,
    };
    config.enable_sni = tls.sni.is_some();
    config.alpn_protocols = tls.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    let name = ServerName::try_from(tls.sni.clone().unwrap_or_else(|| "proxy.example.test".to_owned()))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    match tokio::time::timeout(ANSWER_TIMEOUT, connector.connect(name, tcp)).await? {
        Ok(stream) => Ok(Ok(stream)),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Err(error.into()),
        Err(_) => Ok(Err("tls handshake refused".to_owned())),
    }
}

async fn http1(mut stream: Box<dyn Stream>, messages: &[String]) -> anyhow::Result<Seen> {
    let mut buffer = Vec::new();
    let mut responses = Vec::new();
    for message in messages {
        let message = expand(message);
        if stream.write_all(message.as_bytes()).await.is_err() {
            responses.push(failed("connection closed"));
            return Ok((responses, true));
        }
        let is_head = message.starts_with("HEAD ");
        match tokio::time::timeout(ANSWER_TIMEOUT, read_response(&mut stream, &mut buffer, is_head)).await {
            Err(_) => responses.push(failed("no answer in time")),
            Ok(response) => responses.push(response),
        }
    }
    let closed = is_closed(&mut stream).await;
    Ok((responses, closed))
}

/// Replaces `{{N bytes}}` by N letters, so that a case file stays readable.
fn expand(message: &str) -> String {
    let parts = message.split_once("{{").and_then(|(before, rest)| Some((before, rest.split_once(" bytes}}")?)));
    match parts {
        Some((before, (count, after))) => format!("{before}{}{after}", "a".repeat(count.parse().unwrap_or(0))),
        None => message.to_owned(),
    }
}

async fn is_closed(stream: &mut Box<dyn Stream>) -> bool {
    let mut rest = [0u8; 512];
    // Closed: end of stream or an error. Kept: nothing within the time.
    matches!(tokio::time::timeout(SETTLE, stream.read(&mut rest)).await, Ok(Ok(0) | Err(_)))
}

async fn read_response(stream: &mut Box<dyn Stream>, buffer: &mut Vec<u8>, is_head: bool) -> Response {
    let mut response = Response::default();
    loop {
        let Some(head) = read_head(stream, buffer).await else {
            response.failure = Some("connection closed".to_owned());
            return response;
        };
        let (status, headers) = parse_head(&head);
        if (100..200).contains(&status) && status != 101 {
            response.informational.push(status);
            continue;
        }
        (response.status, response.headers) = (status, headers);
        break;
    }
    if is_head || matches!(response.status, 101 | 204 | 304) {
        return response;
    }
    read_body(stream, buffer, &mut response).await;
    response
}

async fn fill(stream: &mut Box<dyn Stream>, buffer: &mut Vec<u8>) -> bool {
    matches!(stream.read_buf(buffer).await, Ok(count) if count > 0)
}

async fn read_head(stream: &mut Box<dyn Stream>, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            let head = std::mem::replace(buffer, rest);
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
        if !fill(stream, buffer).await {
            return None;
        }
    }
}

fn parse_head(head: &str) -> (u16, Vec<(String, String)>) {
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    (status.unwrap_or(0), lines.filter_map(pair).collect())
}

async fn read_body(stream: &mut Box<dyn Stream>, buffer: &mut Vec<u8>, response: &mut Response) {
    let find = |name: &str| {
        response.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
    };
    let body = match (find("transfer-encoding"), find("content-length").and_then(|length| length.parse().ok())) {
        (Some(_), _) => read_chunks(stream, buffer, &mut response.trailers).await,
        (None, Some(length)) => take(stream, buffer, length).await,
        (None, None) => {
            while fill(stream, buffer).await {}
            Some(std::mem::take(buffer))
        }
    };
    match body {
        Some(body) => response.body = String::from_utf8_lossy(&body).into_owned(),
        None => response.failure = Some("body cut short".to_owned()),
    }
}

async fn take(stream: &mut Box<dyn Stream>, buffer: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while buffer.len() < length {
        if !fill(stream, buffer).await {
            return None;
        }
    }
    let rest = buffer.split_off(length);
    Some(std::mem::replace(buffer, rest))
}

async fn take_line(stream: &mut Box<dyn Stream>, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|window| window == b"\r\n") {
            let line = take(stream, buffer, end + 2).await?;
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if !fill(stream, buffer).await {
            return None;
        }
    }
}

async fn read_chunks(
    stream: &mut Box<dyn Stream>,
    buffer: &mut Vec<u8>,
    trailers: &mut Vec<(String, String)>,
) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = take_line(stream, buffer).await?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend(take(stream, buffer, size).await?);
        take_line(stream, buffer).await?;
    }
    loop {
        let line = take_line(stream, buffer).await?;
        match line.split_once(':') {
            Some((name, value)) => trailers.push((name.to_owned(), value.trim().to_owned())),
            None => return Some(body),
        }
    }
}

async fn http2(stream: Box<dyn Stream>, requests: &[Http2Request]) -> anyhow::Result<Seen> {
    let (client, connection) = match h2::client::handshake(stream).await {
        Ok(pair) => pair,
        Err(error) => return Ok((vec![failed(&error.to_string())], true)),
    };
    let driver = tokio::spawn(connection);
    let mut responses = Vec::new();
    for request in requests {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, http2_exchange(client.clone(), request));
        responses.push(match answer.await {
            Err(_) => failed("no answer in time"),
            Ok(Err(error)) => failed(&reset_reason(&error)),
            Ok(Ok(response)) => response,
        });
    }
    let closed = tokio::time::timeout(SETTLE, driver).await.is_ok();
    Ok((responses, closed))
}

fn reset_reason(error: &h2::Error) -> String {
    error.reason().map_or_else(|| "connection closed".to_owned(), |reason| format!("reset {reason:?}"))
}

async fn http2_exchange(client: h2::client::SendRequest<Bytes>, request: &Http2Request) -> Result<Response, h2::Error> {
    let mut builder = http::Request::builder()
        .version(http::Version::HTTP_2)
        .method(request.method.as_str())
        .uri(format!("http://{}{}", request.authority, request.path));
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    let head = builder.body(()).expect("a case names a valid request");
    let mut client = client.ready().await?;
    let is_bodyless = request.body.is_none() && request.trailers.is_empty();
    let (response, mut stream) = client.send_request(head, is_bodyless)?;
    if !is_bodyless {
        let body = Bytes::from(request.body.clone().unwrap_or_default());
        stream.send_data(body, request.trailers.is_empty())?;
        if !request.trailers.is_empty() {
            stream.send_trailers(header_map(&request.trailers))?;
        }
    }
    collect(response.await?).await
}

fn header_map(pairs: &[(String, String)]) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in pairs {
        let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a case names valid trailers");
        map.append(name, value.parse().expect("a case names valid trailers"));
    }
    map
}

async fn collect(response: http::Response<h2::RecvStream>) -> Result<Response, h2::Error> {
    let (parts, mut body) = response.into_parts();
    let mut text = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        text.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await?.map(|trailers| to_pairs(&trailers)).unwrap_or_default();
    Ok(Response {
        status: parts.status.as_u16(),
        headers: to_pairs(&parts.headers),
        body: String::from_utf8_lossy(&text).into_owned(),
        trailers,
        ..Response::default()
    })
}

async fn tcp_exchange(mut stream: Box<dyn Stream>, messages: &[String]) -> anyhow::Result<Seen> {
    let mut responses = Vec::new();
    for message in messages {
        let sent = stream.write_all(message.as_bytes()).await;
        let mut buffer = Vec::new();
        let answered = sent.is_ok()
            && matches!(tokio::time::timeout(ANSWER_TIMEOUT, fill(&mut stream, &mut buffer)).await, Ok(true));
        if !answered {
            responses.push(failed("connection closed"));
            return Ok((responses, true));
        }
        responses.push(Response { body: String::from_utf8_lossy(&buffer).into_owned(), ..Response::default() });
    }
    let closed = is_closed(&mut stream).await;
    Ok((responses, closed))
}
