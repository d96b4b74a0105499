//! `BodyDecoder`: where the bytes of a body lie in what was read, whatever its framing.

use super::lines::{self, HeadReader};
use super::{BodyError, Framing, Limits};
use crate::head::HeaderBlock;

/// Most bytes of extensions in one chunk's size line.
const MAX_EXTENSION: u32 = 4096;

/// What a look at the buffer gave. The caller takes `skip` bytes of framing away, then the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `len` bytes of body, at least one, behind `skip` bytes of framing.
    Data { skip: usize, len: usize },
    /// Nothing yet; `skip` bytes of framing are done with.
    More { skip: usize },
    /// The message ends behind `skip` bytes.
    End { skip: usize },
}

/// Decodes one body. Reusable: `begin` keeps the memory.
#[derive(Clone, Debug, Default)]
pub struct BodyDecoder {
    state: State,
    trailer_lines: HeadReader,
    /// Trailers of a chunked body, once it ended.
    pub trailers: HeaderBlock,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    Length(u64),
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        value: u64,
        length: u32,
    },
    SizeFeed {
        value: u64,
    },
    Chunk(u64),
    ChunkReturn,
    ChunkFeed,
    Trailers,
    UntilClose,
    #[default]
    Ended,
}

impl BodyDecoder {
    /// Begins with a body of that framing.
    pub fn begin(&mut self, framing: Framing) {
        self.trailers.clear();
        self.trailer_lines.reset();
        self.state = match framing {
            Framing::None | Framing::Length(0) => State::Ended,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
    }

    /// True when the body ended.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// True when the end of the connection is the regular end of the body.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::UntilClose | State::Ended)
    }

    /// Looks at what was read and not yet taken.
    pub fn step(&mut self, buffer: &[u8]) -> Result<Step, BodyError> {
        let mut skip = 0;
        loop {
            let rest = &buffer[skip..];
            match self.state {
                State::Ended => return Ok(Step::End { skip }),
                State::Trailers => return self.trailers(rest, skip),
                _ if rest.is_empty() => return Ok(Step::More { skip }),
                State::UntilClose => return Ok(Step::Data { skip, len: rest.len() }),
                State::Length(left) => {
                    let len = self.take(left, rest);
                    self.state = if left == len as u64 { State::Ended } else { State::Length(left - len as u64) };
                    return Ok(Step::Data { skip, len });
                }
                State::Chunk(left) => {
                    let len = self.take(left, rest);
                    self.state = if left == len as u64 { State::ChunkReturn } else { State::Chunk(left - len as u64) };
                    return Ok(Step::Data { skip, len });
                }
                _ => {
                    self.state = self.framing(rest[0])?;
                    skip += 1;
                }
            }
        }
    }

    fn take(&self, left: u64, rest: &[u8]) -> usize {
        usize::try_from(left).unwrap_or(usize::MAX).min(rest.len())
    }

    /// One byte of chunk framing.
    fn framing(&self, byte: u8) -> Result<State, BodyError> {
        match self.state {
            State::Size { value, digits } => size(value, digits, byte),
            State::Extension { value, .. } if byte == b'\r' => Ok(State::SizeFeed { value }),
            State::Extension { length: MAX_EXTENSION.., .. } => Err(BodyError::ChunkExtension),
            State::Extension { .. } if byte == b'\n' => Err(BodyError::ChunkSize),
            State::Extension { value, length } => Ok(State::Extension { value, length: length + 1 }),
            State::SizeFeed { value: 0 } if byte == b'\n' => Ok(State::Trailers),
            State::SizeFeed { value } if byte == b'\n' => Ok(State::Chunk(value)),
            State::SizeFeed { .. } => Err(BodyError::ChunkSize),
            State::ChunkReturn if byte == b'\r' => Ok(State::ChunkFeed),
            State::ChunkFeed if byte == b'\n' => Ok(State::Size { value: 0, digits: 0 }),
            _ => Err(BodyError::ChunkEnd),
        }
    }

    /// Trailers are taken once they are whole.
    fn trailers(&mut self, rest: &[u8], skip: usize) -> Result<Step, BodyError> {
        match self.trailer_lines.advance_trailers(rest, &Limits::default())? {
            None => {
                // What is skipped moves the buffer, and lines are counted from its beginning.
                if skip > 0 {
                    self.trailer_lines.reset();
                }
                Ok(Step::More { skip })
            }
            Some(length) => {
                lines::trailers(&self.trailer_lines, rest, &mut self.trailers)?;
                self.state = State::Ended;
                Ok(Step::End { skip: skip + length })
            }
        }
    }
}

fn size(value: u64, digits: u8, byte: u8) -> Result<State, BodyError> {
    match (byte as char).to_digit(16) {
        Some(digit) if digits < 15 => Ok(State::Size { value: value * 16 + u64::from(digit), digits: digits + 1 }),
        None if digits == 0 => Err(BodyError::ChunkSize),
        None if byte == b'\r' => Ok(State::SizeFeed { value }),
        None if matches!(byte, b';' | b' ' | b'\t') => Ok(State::Extension { value, length: 0 }),
        _ => Err(BodyError::ChunkSize),
    }
}
