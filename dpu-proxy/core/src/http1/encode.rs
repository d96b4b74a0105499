//! Heads and chunks as bytes, appended to a buffer that is used again and again.

use super::Framing;
use crate::head::{HeaderBlock, RequestHead, ResponseHead};

/// The framing of a message of which it is known whether a body follows, as Envoy chooses it: what
/// `content-length` says, else nothing, else chunks.
pub fn request_framing(head: &RequestHead, has_body: bool) -> Framing {
    match content_length(&head.headers) {
        Some(length) => Framing::Length(length),
        None if has_body => Framing::Chunked,
        None => Framing::None,
    }
}

/// The number in `content-length`.
pub fn content_length(headers: &HeaderBlock) -> Option<u64> {
    std::str::from_utf8(headers.get(b"content-length")?).ok()?.parse().ok()
}

/// Appends a request's head. `framing` says what is added: `transfer-encoding: chunked`, or, for a
/// method that usually has a body and has none, `content-length: 0`.
pub fn request(head: &RequestHead, framing: Framing, proper_case: bool, out: &mut Vec<u8>) {
    let method = head.method();
    out.extend_from_slice(method);
    out.push(b' ');
    let is_connect = method == b"CONNECT";
    out.extend_from_slice(if is_connect { head.authority() } else { head.path() });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    header(b"host", head.authority(), proper_case, out);
    headers(&head.headers, proper_case, out);
    match framing {
        Framing::Chunked => header(b"transfer-encoding", b"chunked", proper_case, out),
        Framing::None if !usually_bodyless(method) => header(b"content-length", b"0", proper_case, out),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

fn usually_bodyless(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT")
}

/// What is added to a response's head for this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseExtras {
    pub chunked: bool,
    pub zero_length: bool,
    pub close: bool,
    /// Of an HTTP/1.0 client that asked for it.
    pub keep_alive: bool,
    pub proper_case: bool,
}

/// Appends a response's head.
pub fn response(head: &ResponseHead, extras: ResponseExtras, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    status(head.status, out);
    out.push(b' ');
    out.extend_from_slice(reason(head.status).as_bytes());
    out.extend_from_slice(b"\r\n");
    headers(&head.headers, extras.proper_case, out);
    let add = [
        (extras.chunked, &b"transfer-encoding"[..], &b"chunked"[..]),
        (extras.zero_length, b"content-length", b"0"),
        (extras.close, b"connection", b"close"),
        (extras.keep_alive, b"connection", b"keep-alive"),
    ];
    for (_, name, value) in add.iter().filter(|(is_added, ..)| *is_added) {
        header(name, value, extras.proper_case, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends an informational response without headers.
pub fn informational(status: u16, out: &mut Vec<u8>) {
    let head = ResponseHead { status, ..ResponseHead::default() };
    response(&head, ResponseExtras::default(), out);
}

/// Appends one chunk.
pub fn chunk(data: &[u8], out: &mut Vec<u8>) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = data.len();
    while left > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left % 16];
        left /= 16;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk, with trailers.
pub fn last_chunk(trailers: &HeaderBlock, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    headers(trailers, false, out);
    out.extend_from_slice(b"\r\n");
}

fn headers(block: &HeaderBlock, proper_case: bool, out: &mut Vec<u8>) {
    for (name, value) in block.iter() {
        header(name, value, proper_case, out);
    }
}

fn header(name: &[u8], value: &[u8], proper_case: bool, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(name);
    if proper_case {
        capitalise(&mut out[start..]);
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn capitalise(name: &mut [u8]) {
    let mut is_first = true;
    for byte in name {
        if is_first {
            byte.make_ascii_uppercase();
        }
        is_first = !byte.is_ascii_alphanumeric();
    }
}

fn status(status: u16, out: &mut Vec<u8>) {
    let mut text = itoa::Buffer::new();
    out.extend_from_slice(text.format(status).as_bytes());
}

/// Envoy's reason phrases.
pub fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}
