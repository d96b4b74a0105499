//! `HeadReader`: finds the lines of a head as its bytes arrive, each byte looked at once.

use super::{HeadError, Limits};
use crate::head::HeaderBlock;

/// Where the lines of a head lie. Reusable: `reset` keeps the memory.
#[derive(Clone, Debug, Default)]
pub struct HeadReader {
    scanned: usize,
    line_start: usize,
    /// Start and end of each line, without CRLF.
    lines: Vec<(u32, u32)>,
}

impl HeadReader {
    /// Begins with another head.
    pub fn reset(&mut self) {
        (self.scanned, self.line_start) = (0, 0);
        self.lines.clear();
    }

    /// Looks at `buffer`, which begins with the head and has grown since the last call. The length of
    /// the head when it is whole. Empty lines before the first line are passed over.
    pub fn advance(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
        let whole = self.scan(buffer, limits, false)?;
        // What does not begin like a message need not come to its end, wherever its bytes were split.
        let begin = self.lines.first().map_or(self.line_start, |(start, _)| *start as usize);
        match buffer.get(begin) {
            Some(byte) if *byte != b'\r' && !is_token(*byte) => Err(HeadError::FirstLine),
            _ => Ok(whole),
        }
    }

    /// The same for trailers, which have no first line and may be empty.
    pub fn advance_trailers(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
        self.scan(buffer, limits, true)
    }

    fn scan(&mut self, buffer: &[u8], limits: &Limits, may_be_empty: bool) -> Result<Option<usize>, HeadError> {
        while let Some(at) = memchr::memchr(b'\n', &buffer[self.scanned..]) {
            let feed = self.scanned + at;
            if feed == self.line_start || buffer[feed - 1] != b'\r' {
                return Err(HeadError::BareLineFeed);
            }
            let (start, end) = (self.line_start, feed - 1);
            (self.scanned, self.line_start) = (feed + 1, feed + 1);
            if start < end {
                self.lines.push((start as u32, end as u32));
                if self.lines.len() > limits.max_headers + 1 {
                    return Err(HeadError::TooMany);
                }
            } else if may_be_empty || !self.lines.is_empty() {
                return within(feed + 1, limits).map(|()| Some(feed + 1));
            }
        }
        self.scanned = buffer.len();
        within(buffer.len(), limits).map(|()| None)
    }

    /// The lines, first line first.
    pub fn lines<'a>(&'a self, buffer: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.lines.iter().map(|(start, end)| &buffer[*start as usize..*end as usize])
    }

    /// The first line, as soon as it is there.
    pub fn first<'a>(&self, buffer: &'a [u8]) -> Option<&'a [u8]> {
        self.lines.first().map(|(start, end)| &buffer[*start as usize..*end as usize])
    }
}

fn within(length: usize, limits: &Limits) -> Result<(), HeadError> {
    if length > limits.max_bytes { Err(HeadError::TooLarge) } else { Ok(()) }
}

/// Name and value of a header line, checked.
pub(super) fn header(line: &[u8]) -> Result<(&[u8], &[u8]), HeadError> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(HeadError::Folded);
    }
    let colon = memchr::memchr(b':', line).ok_or(HeadError::HeaderLine)?;
    let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(if name.iter().any(|byte| is_forbidden(*byte)) {
            HeadError::InvalidCharacter
        } else {
            HeadError::HeaderLine
        });
    }
    if value.iter().any(|byte| is_forbidden(*byte)) {
        return Err(HeadError::InvalidCharacter);
    }
    Ok((name, value))
}

/// Reads trailer lines into `trailers`.
pub(super) fn trailers(reader: &HeadReader, buffer: &[u8], trailers: &mut HeaderBlock) -> Result<(), HeadError> {
    for line in reader.lines(buffer) {
        let (name, value) = header(line)?;
        trailers.append(name, value);
    }
    Ok(())
}

/// Without leading and trailing blanks.
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().position(|byte| !is_blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let c = byte as u8;
        table[byte] = c.is_ascii_alphanumeric()
            || matches!(
                c,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        byte += 1;
    }
    table
};

/// RFC 9110 `tchar`.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

/// Not allowed in a field value: controls but the tab.
fn is_forbidden(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}
