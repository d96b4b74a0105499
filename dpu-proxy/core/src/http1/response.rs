//! Heads of responses.

use super::connection::{Gathered, Keep};
use super::lines::header;
use super::{Framing, HeadError, HeadReader};
use crate::head::{ResponseHead, Version};

/// What a response's head means for the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseMeta {
    pub framing: Framing,
    /// The server takes another request on this connection.
    pub keep_alive: bool,
    /// 101, or a 2xx to CONNECT: what follows is another protocol.
    pub upgrade: bool,
}

/// What a response answers, because its framing depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    Head,
    Connect,
    #[default]
    Other,
}

/// Reads a whole head, found by `reader`, into `head`, which is cleared first.
pub fn parse(
    reader: &HeadReader,
    buffer: &[u8],
    answers: Answers,
    head: &mut ResponseHead,
) -> Result<ResponseMeta, HeadError> {
    head.clear();
    let mut lines = reader.lines(buffer);
    (head.version, head.status) = status_line(lines.next().ok_or(HeadError::FirstLine)?)?;
    let mut gathered = Gathered::default();
    for line in lines {
        let (name, value) = header(line)?;
        if gathered.look(name, value)? == Keep::Yes {
            head.headers.append(name, value);
        }
    }
    let asked = gathered.framing(&mut head.headers, false)?;
    let upgrade = head.status == 101 || (answers == Answers::Connect && head.status / 100 == 2);
    if !upgrade {
        head.headers.remove(b"connection");
    }
    let framing = match (head.status, answers) {
        _ if upgrade => Framing::UntilClose,
        (100..200 | 204 | 304, _) | (_, Answers::Head) => Framing::None,
        _ => asked.unwrap_or(Framing::UntilClose),
    };
    let keep_alive = gathered.is_kept(head.version) && framing != Framing::UntilClose;
    Ok(ResponseMeta { framing, keep_alive, upgrade })
}

fn status_line(line: &[u8]) -> Result<(Version, u16), HeadError> {
    let (version, rest) = line.split_at_checked(8).ok_or(HeadError::FirstLine)?;
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        _ => return Err(HeadError::FirstLine),
    };
    match rest {
        [b' ', a @ b'1'..=b'9', b, c, rest @ ..]
            if b.is_ascii_digit() && c.is_ascii_digit() && matches!(rest.first(), None | Some(b' ')) =>
        {
            Ok((version, [a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(**digit - b'0'))))
        }
        _ => Err(HeadError::FirstLine),
    }
}
