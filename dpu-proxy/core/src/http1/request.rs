//! Heads of requests.

use super::connection::{Gathered, Keep};
use super::lines::{header, is_token};
use super::{Framing, HeadError, HeadReader};
use crate::head::{RequestHead, Version};

/// What the connection manager says about parsing.
#[derive(Clone, Copy, Debug)]
pub struct RequestOptions {
    pub allow_absolute_url: bool,
    /// Chunked wins over a content length instead of being refused.
    pub allow_chunked_length: bool,
    /// The scheme of requests that do not name one.
    pub is_tls: bool,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { allow_absolute_url: true, allow_chunked_length: false, is_tls: false }
    }
}

/// What a request's head means for the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestMeta {
    pub framing: Framing,
    /// The client takes another response on this connection.
    pub keep_alive: bool,
    /// Asks for another protocol (`connection: upgrade`); the headers stay in the head.
    pub upgrade: bool,
    pub connect: bool,
    pub expects_continue: bool,
    pub has_host: bool,
}

/// Reads a whole head, found by `reader`, into `head`, which is cleared first.
pub fn parse(
    reader: &HeadReader,
    buffer: &[u8],
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<RequestMeta, HeadError> {
    head.clear();
    let mut lines = reader.lines(buffer);
    let (method, target, version) = request_line(lines.next().ok_or(HeadError::FirstLine)?)?;
    head.version = version;
    head.set_method(method);
    let mut gathered = Gathered::default();
    let mut has_host = false;
    for line in lines {
        let (name, value) = header(line)?;
        if name.len() == 4 && name.eq_ignore_ascii_case(b"host") {
            if has_host {
                return Err(HeadError::SeveralHosts);
            }
            has_host = true;
            head.set_authority(value);
        } else if gathered.look(name, value)? == Keep::Yes {
            head.headers.append(name, value);
        }
    }
    let connect = method == b"CONNECT";
    has_host |= set_target(head, target, connect, options)?;
    finish(head, &gathered, connect, has_host, options)
}

fn finish(
    head: &mut RequestHead,
    gathered: &Gathered,
    connect: bool,
    has_host: bool,
    options: &RequestOptions,
) -> Result<RequestMeta, HeadError> {
    let asked = gathered.framing(&mut head.headers, options.allow_chunked_length)?;
    gathered.sanitise(&mut head.headers)?;
    let upgrade = upgrade(head, gathered);
    let framing = match (connect, asked) {
        (true, Some(Framing::Chunked)) => return Err(HeadError::TransferEncodingNotAllowed),
        (true, Some(Framing::Length(1..))) => return Err(HeadError::LengthNotAllowed),
        (true, _) => Framing::UntilClose,
        (false, asked) => asked.unwrap_or(Framing::None),
    };
    let keep_alive = gathered.is_kept(head.version);
    Ok(RequestMeta { framing, keep_alive, upgrade, connect, expects_continue: gathered.expects_continue, has_host })
}

/// h2c by upgrade is not spoken: the request is served as it is.
fn upgrade(head: &mut RequestHead, gathered: &Gathered) -> bool {
    if !gathered.is_upgrade() {
        // An upgrade header that the connection header does not name is hop by hop all the same.
        if gathered.has_upgrade {
            head.headers.remove(b"upgrade");
        }
        return false;
    }
    let is_h2c = head.headers.get(b"upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"h2c"));
    if is_h2c {
        for name in [&b"upgrade"[..], b"connection", b"http2-settings"] {
            head.headers.remove(name);
        }
    }
    !is_h2c
}

fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], Version), HeadError> {
    let space = memchr::memchr(b' ', line).ok_or(HeadError::FirstLine)?;
    let (method, rest) = (&line[..space], &line[space + 1..]);
    let space = memchr::memchr(b' ', rest).ok_or(HeadError::FirstLine)?;
    let (target, version) = (&rest[..space], &rest[space + 1..]);
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        _ => return Err(HeadError::FirstLine),
    };
    if !is_known(method) {
        return Err(HeadError::Method);
    }
    if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err(HeadError::Target);
    }
    Ok((method, target, version))
}

/// Envoy's methods: no custom ones.
fn is_known(method: &[u8]) -> bool {
    const METHODS: [&[u8]; 34] = [
        b"GET",
        b"POST",
        b"PUT",
        b"HEAD",
        b"DELETE",
        b"OPTIONS",
        b"PATCH",
        b"CONNECT",
        b"TRACE",
        b"ACL",
        b"BIND",
        b"CHECKOUT",
        b"COPY",
        b"LINK",
        b"LOCK",
        b"MERGE",
        b"MKACTIVITY",
        b"MKCALENDAR",
        b"MKCOL",
        b"MOVE",
        b"M-SEARCH",
        b"NOTIFY",
        b"PROPFIND",
        b"PROPPATCH",
        b"PURGE",
        b"REBIND",
        b"REPORT",
        b"SEARCH",
        b"SOURCE",
        b"SUBSCRIBE",
        b"UNBIND",
        b"UNLINK",
        b"UNLOCK",
        b"UNSUBSCRIBE",
    ];
    METHODS.contains(&method)
}

/// Sets path, scheme and, from an absolute URL or CONNECT, the authority. True when it set that.
fn set_target(
    head: &mut RequestHead,
    target: &[u8],
    connect: bool,
    options: &RequestOptions,
) -> Result<bool, HeadError> {
    head.set_scheme(if options.is_tls { b"https" } else { b"http" });
    if connect {
        head.set_authority(target);
        return if is_host_port(target) { Ok(true) } else { Err(HeadError::Target) };
    }
    if target.starts_with(b"/") || target == b"*" || (!options.allow_absolute_url && is_token(target[0])) {
        head.set_path(target);
        return Ok(false);
    }
    let (scheme, rest) = split_scheme(target).ok_or(HeadError::Target)?;
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() {
        return Err(HeadError::Target);
    }
    head.set_authority(authority);
    head.set_scheme(scheme);
    match path.first() {
        Some(b'/') => head.set_path(path),
        None => head.set_path(b"/"),
        Some(_) => head.set_path(&[b"/", path].concat()),
    }
    Ok(true)
}

fn split_scheme(target: &[u8]) -> Option<(&'static [u8], &[u8])> {
    let colon = memchr::memchr(b':', target)?;
    let rest = target[colon..].strip_prefix(b"://")?;
    match &target[..colon] {
        scheme if scheme.eq_ignore_ascii_case(b"http") => Some((b"http", rest)),
        scheme if scheme.eq_ignore_ascii_case(b"https") => Some((b"https", rest)),
        _ => None,
    }
}

fn is_host_port(target: &[u8]) -> bool {
    let colon = memchr::memrchr(b':', target);
    colon.is_some_and(|at| at > 0 && at + 1 < target.len() && target[at + 1..].iter().all(u8::is_ascii_digit))
}
