//! What the framing and connection headers of a head say, gathered while its lines are read.

use super::lines::trim;
use super::{Framing, HeadError};
use crate::head::{HeaderBlock, Version};

/// Most headers that a connection header may name.
const MAX_NOMINATED: usize = 10;

/// Gathers them.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    length: Option<u64>,
    has_chunked: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade_token: bool,
    pub(super) has_upgrade: bool,
    pub(super) expects_continue: bool,
    nominates: bool,
}

/// What becomes of a header after it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    /// Hop by hop: it is known now, and not passed on.
    No,
}

impl Gathered {
    /// Looks at one header.
    pub(super) fn look(&mut self, name: &[u8], value: &[u8]) -> Result<Keep, HeadError> {
        match name.len() {
            6 if is(name, b"expect") => self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            7 if is(name, b"upgrade") => self.has_upgrade = true,
            10 if is(name, b"connection") => self.connection(value),
            10 if is(name, b"keep-alive") => return Ok(Keep::No),
            14 if is(name, b"content-length") => self.content_length(value)?,
            16 if is(name, b"proxy-connection") => return Ok(Keep::No),
            17 if is(name, b"transfer-encoding") => {
                self.transfer_encoding(value)?;
                return Ok(Keep::No);
            }
            _ => {}
        }
        Ok(Keep::Yes)
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|byte| *byte == b',').map(trim) {
            match token {
                _ if is(token, b"close") => self.close = true,
                _ if is(token, b"keep-alive") => self.keep_alive = true,
                _ if is(token, b"upgrade") => self.upgrade_token = true,
                [] => {}
                _ => self.nominates = true,
            }
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), HeadError> {
        let is_number = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
        if !is_number || self.length.is_some() {
            return Err(HeadError::ContentLength);
        }
        self.length = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), HeadError> {
        if self.has_chunked || !is(value, b"chunked") {
            return Err(HeadError::TransferEncoding);
        }
        self.has_chunked = true;
        Ok(())
    }

    /// The framing that the headers ask for; `None` when they say nothing. With `allow_both`, chunked
    /// wins over a content length, which is dropped.
    pub(super) fn framing(&self, headers: &mut HeaderBlock, allow_both: bool) -> Result<Option<Framing>, HeadError> {
        match (self.has_chunked, self.length) {
            (true, Some(_)) if !allow_both => Err(HeadError::LengthAndChunked),
            (true, length) => {
                if length.is_some() {
                    headers.remove(b"content-length");
                }
                Ok(Some(Framing::Chunked))
            }
            (false, Some(length)) => Ok(Some(Framing::Length(length))),
            (false, None) => Ok(None),
        }
    }

    /// True when the connection may carry another message.
    pub(super) fn is_kept(&self, version: Version) -> bool {
        !self.close && (version != Version::Http10 || self.keep_alive)
    }

    /// True when the message asks for (or grants) another protocol on this connection.
    pub(super) fn is_upgrade(&self) -> bool {
        self.upgrade_token && self.has_upgrade
    }

    /// Drops the connection header, what it names, and an upgrade that is none.
    pub(super) fn sanitise(&self, headers: &mut HeaderBlock) -> Result<(), HeadError> {
        if self.nominates {
            drop_nominated(headers)?;
        }
        if !self.is_upgrade() && (self.close || self.keep_alive || self.upgrade_token || self.nominates) {
            headers.remove(b"connection");
        }
        Ok(())
    }
}

fn is(text: &[u8], lower: &[u8]) -> bool {
    text.eq_ignore_ascii_case(lower)
}

fn drop_nominated(headers: &mut HeaderBlock) -> Result<(), HeadError> {
    let tokens = headers.get_all(b"connection").flat_map(|value| value.split(|byte| *byte == b',')).map(trim);
    let named: Vec<Vec<u8>> = tokens.map(<[u8]>::to_ascii_lowercase).filter(|name| !is_option(name)).collect();
    if named.len() > MAX_NOMINATED || named.iter().any(|name| must_stay(name)) {
        return Err(HeadError::ConnectionHeader);
    }
    for name in &named {
        let keeps_trailers = name == b"te" && headers.get(b"te").is_some_and(has_trailers);
        headers.remove(name);
        if keeps_trailers {
            headers.append(b"te", b"trailers");
        }
    }
    Ok(())
}

fn is_option(name: &[u8]) -> bool {
    matches!(name, b"close" | b"keep-alive" | b"upgrade" | b"http2-settings" | b"")
}

fn must_stay(name: &[u8]) -> bool {
    matches!(name, b"host" | b"x-forwarded-for" | b"x-forwarded-host" | b"x-forwarded-proto" | b"content-length")
        || name.starts_with(b":")
}

fn has_trailers(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').map(trim).any(|token| is(token, b"trailers"))
}
