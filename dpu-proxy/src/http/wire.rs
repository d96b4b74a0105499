//! `Wire`: an HTTP/1.1 connection, downstream or upstream: the codec of the core over a stream.
//!
//! One read and one write where the bytes are there: heads and small bodies are gathered in the output
//! and written together, large pieces of a body go from the input of one wire to the socket of the
//! other without a copy.

use super::buffer::Input;
use super::prefixed::Prefixed;
use crate::io::Stream;
use dpu_proxy_core::head::{HeaderBlock, RequestHead, ResponseHead};
use dpu_proxy_core::http1::encode::{self, ResponseExtras};
use dpu_proxy_core::http1::response::Answers;
use dpu_proxy_core::http1::{
    BodyDecoder, BodyError, Framing, HeadError, HeadReader, Limits, RequestMeta, RequestOptions, ResponseMeta, Step,
    request, response,
};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Output that may wait before more is taken.
const HIGH_WATER: usize = 64 * 1024;
/// Up to this size a piece is copied behind what waits already; a larger one is written from where it is.
const COPY_LIMIT: usize = 8 * 1024;
/// What is read ahead of a response before the client's end is no longer watched.
const MAX_READ_AHEAD: usize = 16 * 1024;

/// How a body is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sink {
    /// As it is: its length is known, or it ends with the connection.
    #[default]
    Raw,
    Chunked,
    /// Answers to HEAD and the like.
    Discard,
}

/// Why there is no head.
#[derive(Debug)]
pub enum HeadFailure {
    /// The peer ended the connection between two messages.
    Closed,
    /// It ended, or failed, within a head.
    Cut,
    Malformed(HeadError),
}

/// Why a body does not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFailure {
    /// The connection failed.
    Cut,
    /// It ended before the body did.
    Ended,
    Malformed(BodyError),
}

/// What there is of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// See `data`.
    Data,
    /// See `trailers`.
    End,
}

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    input: Input,
    output: Vec<u8>,
    written: usize,
    reader: HeadReader,
    decoder: BodyDecoder,
    /// Bytes at the beginning of the input that are body.
    piece: usize,
    sink: Sink,
    is_ended: bool,
}

impl Wire {
    /// Over a stream from which nothing of HTTP was read.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: Input::default(),
            output: Vec::new(),
            written: 0,
            reader: HeadReader::default(),
            decoder: BodyDecoder::default(),
            piece: 0,
            sink: Sink::default(),
            is_ended: false,
        }
    }

    /// The stream, with what was read from it and not used.
    pub fn into_prefixed(self) -> Prefixed {
        Prefixed { first: bytes::Bytes::copy_from_slice(self.input.bytes()), stream: self.stream }
    }

    /// What was read and not yet used.
    pub fn read_ahead(&self) -> &[u8] {
        self.input.bytes()
    }

    /// Reads more. 0 is the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.is_ended {
            return Poll::Ready(Ok(0));
        }
        // An idle connection waits without a buffer; TLS may hold bytes that the socket knows nothing of.
        if !self.input.is_allocated() && !self.stream.is_tls() {
            ready!(self.stream.poll_readable(cx))?;
        }
        let mut target = ReadBuf::new(self.input.space());
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut target))?;
        let count = target.filled().len();
        self.input.filled(count);
        self.is_ended = count == 0;
        Poll::Ready(Ok(count))
    }

    /// Waits for a whole head; its length.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, limits: &Limits) -> Poll<Result<usize, HeadFailure>> {
        loop {
            match self.reader.advance(self.input.bytes(), limits) {
                Ok(Some(length)) => return Poll::Ready(Ok(length)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(HeadFailure::Malformed(error))),
            }
            match ready!(self.poll_fill(cx)) {
                Ok(1..) => {}
                _ if self.input.is_empty() => return Poll::Ready(Err(HeadFailure::Closed)),
                _ => return Poll::Ready(Err(HeadFailure::Cut)),
            }
        }
    }

    /// Reads the request whose head of that length is there; its body follows.
    pub fn take_request(
        &mut self,
        length: usize,
        options: &RequestOptions,
        head: &mut RequestHead,
    ) -> Result<RequestMeta, HeadError> {
        let meta = request::parse(&self.reader, self.input.bytes(), options, head);
        self.head_taken(length);
        self.decoder.begin(meta.map_or(Framing::None, |meta| meta.framing));
        meta
    }

    /// Reads the response whose head of that length is there; its body follows.
    pub fn take_response(
        &mut self,
        length: usize,
        answers: Answers,
        head: &mut ResponseHead,
    ) -> Result<ResponseMeta, HeadError> {
        let meta = response::parse(&self.reader, self.input.bytes(), answers, head);
        self.head_taken(length);
        self.decoder.begin(meta.map_or(Framing::None, |meta| meta.framing));
        meta
    }

    fn head_taken(&mut self, length: usize) {
        self.input.consume(length);
        self.reader.reset();
        self.piece = 0;
    }

    /// What follows is no longer HTTP: everything is data until the end.
    pub fn become_tunnel(&mut self) {
        self.decoder.begin(Framing::UntilClose);
        self.sink = Sink::Raw;
    }

    /// Waits for a piece of the body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, BodyFailure>> {
        loop {
            if self.piece > 0 {
                return Poll::Ready(Ok(Piece::Data));
            }
            match self.decoder.step(self.input.bytes()) {
                Err(error) => return Poll::Ready(Err(BodyFailure::Malformed(error))),
                Ok(Step::Data { skip, len }) => {
                    self.input.consume(skip);
                    self.piece = len;
                    continue;
                }
                Ok(Step::End { skip }) => {
                    self.input.consume(skip);
                    return Poll::Ready(Ok(Piece::End));
                }
                Ok(Step::More { skip }) => self.input.consume(skip),
            }
            match ready!(self.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(_) if self.decoder.ends_with_connection() => return Poll::Ready(Ok(Piece::End)),
                Ok(_) => return Poll::Ready(Err(BodyFailure::Ended)),
                Err(_) => return Poll::Ready(Err(BodyFailure::Cut)),
            }
        }
    }

    /// The piece of the body that is there.
    pub fn data(&self) -> &[u8] {
        &self.input.bytes()[..self.piece]
    }

    /// Uses the first `count` bytes of `data` up.
    pub fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.piece -= count;
    }

    /// Trailers, once the body ended.
    pub fn trailers(&self) -> &HeaderBlock {
        &self.decoder.trailers
    }

    /// True when the whole message was read.
    pub fn is_body_ended(&self) -> bool {
        self.piece == 0 && self.decoder.is_ended()
    }

    /// Appends a request's head to the output.
    pub fn put_request(&mut self, head: &RequestHead, framing: Framing, proper_case: bool) {
        encode::request(head, framing, proper_case, &mut self.output);
        self.sink = if framing == Framing::Chunked { Sink::Chunked } else { Sink::Raw };
    }

    /// Appends a response's head to the output. Without `has_body` what is given as its body is dropped.
    pub fn put_response(&mut self, head: &ResponseHead, extras: ResponseExtras, has_body: bool) {
        encode::response(head, extras, &mut self.output);
        self.sink = match (has_body, extras.chunked) {
            (false, _) => Sink::Discard,
            (true, true) => Sink::Chunked,
            (true, false) => Sink::Raw,
        };
    }

    /// Appends an informational response.
    pub fn put_informational(&mut self, status: u16) {
        encode::informational(status, &mut self.output);
    }

    /// Takes data of a body; how much of it was taken, at least one byte.
    pub fn poll_give(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.waiting() > HIGH_WATER {
            ready!(self.poll_flush(cx))?;
        }
        match self.sink {
            Sink::Discard => Poll::Ready(Ok(data.len())),
            Sink::Raw if data.len() > COPY_LIMIT => self.poll_write_through(cx, data),
            Sink::Raw => {
                self.output.extend_from_slice(data);
                Poll::Ready(Ok(data.len()))
            }
            Sink::Chunked => {
                encode::chunk(data, &mut self.output);
                Poll::Ready(Ok(data.len()))
            }
        }
    }

    /// Writes what waits and the data behind it by one system call.
    fn poll_write_through(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let waiting = self.output.len() - self.written;
            let slices = [IoSlice::new(&self.output[self.written..]), IoSlice::new(data)];
            let slices = if waiting == 0 { &slices[1..] } else { &slices[..] };
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count.min(waiting);
            self.forget_written();
            if count > waiting {
                return Poll::Ready(Ok(count - waiting));
            }
        }
    }

    /// The body is complete.
    pub fn finish(&mut self, trailers: Option<&HeaderBlock>) {
        if self.sink == Sink::Chunked {
            encode::last_chunk(trailers.unwrap_or(&HeaderBlock::default()), &mut self.output);
        }
        self.sink = Sink::Discard;
    }

    /// Writes what waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.output.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.forget_written();
        match self.stream.is_tls() {
            true => Pin::new(&mut self.stream).poll_flush(cx),
            false => Poll::Ready(Ok(())),
        }
    }

    fn forget_written(&mut self) {
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
    }

    fn waiting(&self) -> usize {
        self.output.len() - self.written
    }

    /// Ready when the peer ended the connection or it failed. Reads ahead (a pipelined request stays
    /// in the input), as long as that is little.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.input.bytes().len() < MAX_READ_AHEAD {
            match ready!(self.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    /// Reads and throws away; true at the end.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.input.consume(self.input.bytes().len());
        self.piece = 0;
        self.poll_fill(cx).map(|result| !matches!(result, Ok(1..)))
    }

    /// Between two messages: memory that is not needed goes back.
    pub fn rest(&mut self) {
        self.input.release();
        if self.output.is_empty() && self.output.capacity() > HIGH_WATER {
            self.output = Vec::new();
        }
    }

    /// True when an idle connection is still there: nothing came and it did not end.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let is_silent =
            matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        !self.is_ended && self.input.is_empty() && is_silent
    }

    /// Ends our direction.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
