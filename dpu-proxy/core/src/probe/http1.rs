//! An `httpGet` probe: one `GET` of its path, and nothing behind the head.

use super::{Known, Verdict};

/// Longest head; a kubelet's is a few hundred bytes.
const MAX_HEAD: usize = 16 * 1024;
const END: &[u8] = b"\r\n\r\n";

pub(super) fn judge<'p>(mut paths: impl Iterator<Item = &'p str>, bytes: &[u8]) -> Verdict {
    // Not a byte more than needed is waited for: others may be waiting for an answer.
    if !paths.any(|path| begins_with_line(path, bytes)) || !has_plain_lines(bytes) || bytes.len() > MAX_HEAD {
        return Verdict::Other;
    }
    match bytes.windows(END.len()).position(|window| window == END) {
        None => Verdict::More,
        Some(at) if at + END.len() == bytes.len() => Verdict::Probe(Known::Http),
        Some(_) => Verdict::Other,
    }
}

/// Whether `bytes` are the beginning of a request for the path, or begin with one.
fn begins_with_line(path: &str, bytes: &[u8]) -> bool {
    let parts: [&[u8]; 3] = [b"GET ", path.as_bytes(), b" HTTP/1."];
    let wanted = parts.iter().copied().flatten();
    wanted.zip(bytes).all(|(wanted, byte)| wanted == byte)
}

/// Lines end with CRLF only: what another parser takes for the end of a line must not hide a second request.
fn has_plain_lines(bytes: &[u8]) -> bool {
    let is_plain = |(at, byte): (usize, &u8)| match byte {
        b'\n' => at > 0 && bytes[at - 1] == b'\r',
        b'\r' => bytes.get(at + 1).is_none_or(|next| *next == b'\n'),
        byte => *byte != 0,
    };
    bytes.iter().enumerate().all(is_plain)
}
