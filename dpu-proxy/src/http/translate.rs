//! Heads between HTTP/2 (the `http` crate's types) and ours.

use bytes::Bytes;
use dpu_proxy_core::head::{HeaderBlock, RequestHead, ResponseHead, Version};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

/// Reads a request of HTTP/2. `scheme` is that of requests that do not say.
pub fn request_in(parts: &http::request::Parts, scheme: &[u8], head: &mut RequestHead) {
    head.clear();
    head.version = Version::Http2;
    head.set_method(parts.method.as_str().as_bytes());
    let path = parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    head.set_path(path.as_bytes());
    head.set_scheme(parts.uri.scheme_str().map_or(scheme, str::as_bytes));
    let host = || parts.headers.get(http::header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let authority = parts.uri.authority().map_or_else(host, |authority| authority.as_str().as_bytes());
    head.set_authority(authority);
    block_in(&parts.headers, &mut head.headers);
    join_cookies(&mut head.headers);
}

/// Reads a response of HTTP/2.
pub fn response_in(parts: &http::response::Parts, head: &mut ResponseHead) {
    head.clear();
    head.version = Version::Http2;
    head.status = parts.status.as_u16();
    block_in(&parts.headers, &mut head.headers);
}

/// Appends the headers of a map, without host.
pub fn block_in(map: &HeaderMap, block: &mut HeaderBlock) {
    for (name, value) in map {
        if name != http::header::HOST {
            block.append(name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// RFC 9113 section 8.2.3: cookies may come in pieces, and are one header elsewhere.
fn join_cookies(block: &mut HeaderBlock) {
    if block.get_all(b"cookie").nth(1).is_none() {
        return;
    }
    let joined = block.get_all(b"cookie").collect::<Vec<_>>().join(&b"; "[..]);
    block.set(b"cookie", &joined);
}

/// A request for HTTP/2. `None` when it has a target that HTTP/2 can't carry.
pub fn request_out(head: &RequestHead) -> Option<http::Request<()>> {
    let mut request = http::Request::new(());
    *request.version_mut() = http::Version::HTTP_2;
    *request.method_mut() = Method::from_bytes(head.method()).ok()?;
    *request.uri_mut() = uri(head)?;
    *request.headers_mut() = map(&head.headers, is_hop_by_hop);
    Some(request)
}

fn uri(head: &RequestHead) -> Option<Uri> {
    let authority = Bytes::copy_from_slice(head.authority());
    if head.method() == b"CONNECT" {
        return Uri::builder().authority(&authority[..]).build().ok();
    }
    Uri::builder().scheme(head.scheme()).authority(&authority[..]).path_and_query(head.path()).build().ok()
}

/// A response for HTTP/2.
pub fn response_out(head: &ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = map(&head.headers, is_hop_by_hop);
    response
}

/// Trailers for HTTP/2.
pub fn trailers_out(block: &HeaderBlock) -> HeaderMap {
    map(block, is_hop_by_hop)
}

fn map(block: &HeaderBlock, is_dropped: fn(&[u8], &[u8]) -> bool) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(block.len());
    for (name, value) in block.iter().filter(|(name, value)| !is_dropped(name, value)) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}

/// RFC 9113 section 8.2.2.
fn is_hop_by_hop(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => true,
        b"te" => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}
