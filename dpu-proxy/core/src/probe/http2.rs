//! A `grpc` probe: a health check on the first stream of an HTTP/2 connection, and no other call.
//!
//! RFC 9113 for frames, RFC 7541 for what is in HEADERS. Of the latter only so much is read as tells method and
//! path: a kubelet writes both in one way, and whatever is written in another is no probe.

use super::{Known, Verdict};
use std::ops::Range;

/// Empty SETTINGS: what a client waits for that speaks only when it is spoken to.
pub const SETTINGS: [u8; 9] = [0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0];

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// The default of SETTINGS_MAX_FRAME_SIZE, which no probe raises.
const MAX_FRAME: usize = 16 * 1024;
/// The call's stream: the first that a client may open.
const STREAM: u32 = 1;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const CONTINUATION: u8 = 9;
}

mod flag {
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

const PATH: &[u8] = b"/grpc.health.v1.Health/Check";
/// The same in Huffman's code (RFC 7541, appendix B).
const PATH_HUFFMAN: &[u8] = &[
    0x62, 0x6b, 0x2b, 0x22, 0xf3, 0x94, 0x74, 0x26, 0x75, 0xfb, 0x85, 0x7c, 0x65, 0x1d, 0x09, 0x9d, 0x8b, 0xd3, 0x94,
    0x9d, 0x7f,
];
/// Entries of the static table: `:path` twice, `:method` twice, of which the second is POST.
const PATHS: Range<u32> = 4..6;
const METHODS: Range<u32> = 2..4;
const POST: u32 = 3;
/// The last of the static table; an entry behind it is the connection's own.
const STATIC: u32 = 61;

/// Whether these may be the first bytes of an HTTP/2 connection.
pub fn may_begin(bytes: &[u8]) -> bool {
    PREFACE.iter().zip(bytes).all(|(wanted, byte)| wanted == byte)
}

/// Judges what a client sent so far, beginning with the preface.
pub(super) fn judge(bytes: &[u8], is_greeted: bool) -> Verdict {
    let Some(frames) = bytes.get(PREFACE.len()..) else { return Verdict::More };
    let mut call = None;
    for frame in whole(frames) {
        match frame {
            Err(TooLarge) => return Verdict::Other,
            Ok(frame) if frame.kind == kind::HEADERS => call = call.or(Some(frame.is_health_check())),
            Ok(_) => {}
        }
    }
    match call {
        // Whoever is greeted says so, and nobody else may hear that.
        Some(_) if is_greeted && acknowledgement(bytes).is_none() => Verdict::More,
        Some(true) => Verdict::Probe(Known::Grpc),
        Some(false) => Verdict::Other,
        None if is_greeted => Verdict::More,
        None => Verdict::Greet,
    }
}

/// Where the client says that it has taken `SETTINGS`.
pub fn acknowledgement(bytes: &[u8]) -> Option<Range<usize>> {
    let mut at = PREFACE.len();
    for frame in whole(bytes.get(at..)?).map_while(Result::ok) {
        let end = at + FRAME_HEADER + frame.payload.len();
        if frame.kind == kind::SETTINGS && frame.flags & flag::ACK != 0 {
            return Some(at..end);
        }
        at = end;
    }
    None
}

/// What a client may send on a connection that a health check was called on.
#[derive(Debug, Default)]
pub struct Guard {
    has_begun: bool,
    has_called: bool,
}

/// The client wants something else, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl Guard {
    /// How many of these bytes, the next of the connection, may go on: whole frames.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, Refused> {
        let mut passed = if self.has_begun { 0 } else { PREFACE.len() };
        if passed > bytes.len() {
            return Ok(0);
        }
        self.has_begun = true;
        for frame in whole(&bytes[passed..]) {
            let frame = frame.map_err(|TooLarge| Refused)?;
            self.check(frame)?;
            passed += FRAME_HEADER + frame.payload.len();
        }
        Ok(passed)
    }

    fn check(&mut self, frame: Frame<'_>) -> Result<(), Refused> {
        let may_pass = match frame.kind {
            kind::HEADERS => !std::mem::replace(&mut self.has_called, true) && frame.is_health_check(),
            kind::DATA => frame.stream == STREAM,
            kind::PUSH_PROMISE | kind::CONTINUATION => false,
            _ => true,
        };
        if may_pass { Ok(()) } else { Err(Refused) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Frame<'b> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'b [u8],
}

struct TooLarge;

/// The whole frames among these bytes.
fn whole(mut bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, TooLarge>> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_at_checked(FRAME_HEADER)?;
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        if length > MAX_FRAME {
            bytes = &[];
            return Some(Err(TooLarge));
        }
        let (payload, after) = rest.split_at_checked(length)?;
        bytes = after;
        let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
        Some(Ok(Frame { kind: header[3], flags: header[4], stream, payload }))
    })
}

impl Frame<'_> {
    /// Whether its HEADERS, all in this frame, call the health check.
    fn is_health_check(&self) -> bool {
        self.stream == STREAM
            && self.flags & flag::END_HEADERS != 0
            && self.block().is_some_and(|block| calls_health_check(block).unwrap_or(false))
    }

    fn block(&self) -> Option<&[u8]> {
        let mut block = self.payload;
        let mut padding = 0;
        if self.flags & flag::PADDED != 0 {
            padding = usize::from(*block.first()?);
            block = &block[1..];
        }
        if self.flags & flag::PRIORITY != 0 {
            block = block.get(5..)?;
        }
        block.get(..block.len().checked_sub(padding)?)
    }
}

/// Exactly one method and one path, and those of the check. `None`: it cannot be read.
fn calls_health_check(mut block: &[u8]) -> Option<bool> {
    let (mut methods, mut paths) = (0, 0);
    while let Some(first) = block.first() {
        if first & 0x80 != 0 {
            let index = integer(&mut block, 7)?;
            methods += usize::from(index == POST);
            if index == 0 || index > STATIC || index != POST && METHODS.contains(&index) || PATHS.contains(&index) {
                return Some(false);
            }
        } else if first & 0xe0 == 0x20 {
            integer(&mut block, 5)?;
        } else {
            let name = integer(&mut block, if first & 0x40 != 0 { 6 } else { 4 })?;
            let is_pseudo = name == 0 && is_pseudo(text(&mut block)?);
            let value = text(&mut block)?;
            paths += usize::from(PATHS.contains(&name));
            let is_other_path = PATHS.contains(&name) && !is_path(value);
            if is_pseudo || name > STATIC || METHODS.contains(&name) || is_other_path {
                return Some(false);
            }
        }
    }
    Some((methods, paths) == (1, 1))
}

/// A text as it is written: whether in Huffman's code, and its bytes.
type Text<'b> = (bool, &'b [u8]);

fn is_path(value: Text<'_>) -> bool {
    value == (false, PATH) || value == (true, PATH_HUFFMAN)
}

/// Whether a name begins with a colon (in Huffman's code the seven bits 1011100).
fn is_pseudo((is_huffman, name): Text<'_>) -> bool {
    match name.first() {
        Some(first) if is_huffman => first >> 1 == 0b101_1100,
        first => first == Some(&b':'),
    }
}

/// RFC 7541, 5.1.
fn integer(block: &mut &[u8], prefix: u32) -> Option<u32> {
    let (first, rest) = block.split_first()?;
    *block = rest;
    let limit = (1 << prefix) - 1;
    let mut value = u32::from(*first) & limit;
    if value < limit {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let (next, rest) = block.split_first()?;
        *block = rest;
        value += u32::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// RFC 7541, 5.2.
fn text<'b>(block: &mut &'b [u8]) -> Option<Text<'b>> {
    let is_huffman = block.first()? & 0x80 != 0;
    let length = integer(block, 7)? as usize;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some((is_huffman, text))
}
