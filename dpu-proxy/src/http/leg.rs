//! `Leg`: one side of a request, downstream or upstream, whatever its protocol; and `Pump`, which
//! moves a body from one leg to the other with backpressure.

use super::translate;
use super::wire::{BodyFailure, Piece, Wire};
use bytes::{Buf, Bytes};
use dpu_proxy_core::head::HeaderBlock;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use std::task::{Context, Poll, ready};

/// Data that is handed to HTTP/2 at once.
const MAX_SEND: usize = 64 * 1024;

/// One side of a request.
#[derive(Debug)]
pub enum Leg {
    H1(Box<Wire>),
    H2(Box<H2Stream>),
}

/// What went wrong on a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegError {
    /// Its connection ended or failed.
    Cut,
    /// Its connection ended within a message.
    Ended,
    /// Its peer reset the stream.
    Reset(h2::Reason),
    /// Its peer broke the protocol; response code details.
    Malformed(&'static str),
}

/// A stream of an HTTP/2 connection, of either role.
#[derive(Debug, Default)]
pub struct H2Stream {
    pub recv: Option<RecvStream>,
    pub send: Option<SendStream<Bytes>>,
    /// Server: to answer by.
    pub respond: Option<SendResponse<Bytes>>,
    /// Client: the answer to come.
    pub response: Option<ResponseFuture>,
    current: Bytes,
    trailers: HeaderBlock,
    is_read: bool,
    is_finished: bool,
}

impl From<h2::Error> for LegError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset(reason),
            _ => Self::Cut,
        }
    }
}

impl From<BodyFailure> for LegError {
    fn from(failure: BodyFailure) -> Self {
        match failure {
            BodyFailure::Cut => Self::Cut,
            BodyFailure::Ended => Self::Ended,
            BodyFailure::Malformed(error) => Self::Malformed(error.details()),
        }
    }
}

impl Leg {
    /// Waits for a piece of the body that comes from this leg.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, LegError>> {
        match self {
            Self::H1(wire) => wire.poll_body(cx).map_err(LegError::from),
            Self::H2(stream) => stream.poll_body(cx),
        }
    }

    /// The piece that is there.
    pub fn data(&self) -> &[u8] {
        match self {
            Self::H1(wire) => wire.data(),
            Self::H2(stream) => &stream.current,
        }
    }

    /// Uses the first bytes of it up.
    pub fn consume(&mut self, count: usize) {
        match self {
            Self::H1(wire) => wire.consume(count),
            Self::H2(stream) => stream.consume(count),
        }
    }

    /// Trailers, once the body ended.
    pub fn trailers(&self) -> &HeaderBlock {
        match self {
            Self::H1(wire) => wire.trailers(),
            Self::H2(stream) => &stream.trailers,
        }
    }

    /// True when the body that comes from this leg was read to its end.
    pub fn is_body_ended(&self) -> bool {
        match self {
            Self::H1(wire) => wire.is_body_ended(),
            Self::H2(stream) => stream.is_body_ended(),
        }
    }

    /// Gives this leg a part of `data`; how much it took.
    pub fn poll_give(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, LegError>> {
        match self {
            Self::H1(wire) => wire.poll_give(cx, data).map_err(|_| LegError::Cut),
            Self::H2(stream) => stream.poll_give(cx, data),
        }
    }

    /// The body that goes to this leg is complete.
    pub fn finish(&mut self, trailers: Option<&HeaderBlock>) -> Result<(), LegError> {
        match self {
            Self::H1(wire) => {
                wire.finish(trailers);
                Ok(())
            }
            Self::H2(stream) => stream.finish(trailers),
        }
    }

    /// Writes what waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        match self {
            Self::H1(wire) => wire.poll_flush(cx).map_err(|_| LegError::Cut),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Downstream: ready when the client is gone.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(wire) => wire.poll_gone(cx),
            Self::H2(stream) => stream.poll_gone(cx),
        }
    }

    /// Ends the stream in error. For HTTP/1.1 dropping the leg closes the connection.
    pub fn reset(&mut self, reason: h2::Reason) {
        if let Self::H2(stream) = self {
            stream.reset(reason);
        }
    }

    /// What follows is another protocol.
    pub fn become_tunnel(&mut self) {
        if let Self::H1(wire) = self {
            wire.become_tunnel();
        }
    }
}

impl H2Stream {
    /// Of a server: a request and how to answer it.
    pub fn server(recv: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self { recv: Some(recv), respond: Some(respond), ..Self::default() }
    }

    fn is_body_ended(&self) -> bool {
        self.current.is_empty() && (self.is_read || self.recv.as_ref().is_none_or(RecvStream::is_end_stream))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, LegError>> {
        let Some(recv) = self.recv.as_mut().filter(|_| !self.is_read) else { return Poll::Ready(Ok(Piece::End)) };
        while self.current.is_empty() {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => self.current = data,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => {
                    let trailers = ready!(recv.poll_trailers(cx))?;
                    self.trailers.clear();
                    if let Some(trailers) = trailers {
                        translate::block_in(&trailers, &mut self.trailers);
                    }
                    self.is_read = true;
                    return Poll::Ready(Ok(Piece::End));
                }
            }
        }
        Poll::Ready(Ok(Piece::Data))
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
        if let Some(recv) = &mut self.recv {
            // Fails only when the stream is gone, which the next read tells.
            let _ = recv.flow_control().release_capacity(count);
        }
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, LegError>> {
        let Some(send) = self.send.as_mut().filter(|_| !self.is_finished) else { return Poll::Ready(Ok(data.len())) };
        let wanted = data.len().min(MAX_SEND);
        send.reserve_capacity(wanted);
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(LegError::Cut)),
            }
        }
        let count = send.capacity().min(wanted);
        send.send_data(Bytes::copy_from_slice(&data[..count]), false)?;
        Poll::Ready(Ok(count))
    }

    fn finish(&mut self, trailers: Option<&HeaderBlock>) -> Result<(), LegError> {
        let Some(send) = self.send.as_mut().filter(|_| !self.is_finished) else { return Ok(()) };
        match trailers.filter(|trailers| !trailers.is_empty()) {
            Some(trailers) => send.send_trailers(translate::trailers_out(trailers))?,
            None => send.send_data(Bytes::new(), true)?,
        }
        self.is_finished = true;
        Ok(())
    }

    /// The head that was sent ended the stream.
    pub fn head_was_all(&mut self) {
        self.is_finished = true;
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match (&mut self.respond, &mut self.send) {
            (_, Some(send)) => send.poll_reset(cx).map(drop),
            (Some(respond), None) => respond.poll_reset(cx).map(drop),
            (None, None) => Poll::Pending,
        };
        if self.is_finished { Poll::Pending } else { reset }
    }

    fn reset(&mut self, reason: h2::Reason) {
        match (&mut self.send, &mut self.respond) {
            (Some(send), _) => send.send_reset(reason),
            (None, Some(respond)) => respond.send_reset(reason),
            (None, None) => {}
        }
    }
}

/// A body on its way from one leg to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pump {
    state: State,
    /// Body bytes that were moved.
    pub bytes: u64,
    /// Trailers of HTTP/1.1 peers are passed on.
    pub with_trailers: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Moving,
    Flushing,
    Done,
}

/// Which leg failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PumpError {
    From(LegError),
    To(LegError),
}

impl Pump {
    /// A body that begins.
    pub fn new(with_trailers: bool) -> Self {
        Self { with_trailers, ..Self::default() }
    }

    /// The same body again, to another leg.
    pub fn restart(&mut self) {
        self.state = State::Moving;
    }

    /// True once everything was moved and written.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// True once everything was read.
    pub fn is_read(&self) -> bool {
        self.state != State::Moving
    }

    /// Moves what can be moved. `copy` is shown every piece.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Leg,
        to: &mut Leg,
        mut copy: impl FnMut(&[u8]),
    ) -> Poll<Result<(), PumpError>> {
        while self.state == State::Moving {
            match from.poll_body(cx) {
                Poll::Ready(Err(error)) => {
                    // What came before goes out, as far as it can.
                    let _ = to.poll_flush(cx);
                    return Poll::Ready(Err(PumpError::From(error)));
                }
                Poll::Ready(Ok(Piece::Data)) => {
                    let count = ready!(to.poll_give(cx, from.data())).map_err(PumpError::To)?;
                    copy(&from.data()[..count]);
                    from.consume(count);
                    self.bytes += count as u64;
                }
                Poll::Ready(Ok(Piece::End)) => {
                    to.finish(Some(from.trailers()).filter(|_| self.with_trailers)).map_err(PumpError::To)?;
                    self.state = State::Flushing;
                }
                Poll::Pending => {
                    // Nothing more now: what is there goes out.
                    ready!(to.poll_flush(cx)).map_err(PumpError::To)?;
                    return Poll::Pending;
                }
            }
        }
        if self.state == State::Flushing {
            ready!(to.poll_flush(cx)).map_err(PumpError::To)?;
            self.state = State::Done;
        }
        Poll::Ready(Ok(()))
    }
}
