//! Moves bytes between two streams, both ways, with half-close, until both have ended.
//!
//! A worker has one scratch buffer for all relays: a connection holds memory only for what its
//! receiver does not take at once, so thousands of idle connections cost nothing.

use crate::io::Stream;
use bytes::{Buf, BytesMut};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes per read. Smaller ones cost throughput: 8 KiB gives a third of this.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Reads of one direction before the worker's other connections have their turn.
const READS_PER_TURN: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// When to give up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Nothing passed either way.
    pub idle: Option<Duration>,
    /// From now.
    pub total: Option<Duration>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both ends closed.
    Closed,
    /// One of them was reset, or TLS failed.
    Failed,
    IdleTimeout,
    TotalTimeout,
}

/// What was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Bytes from the first stream to the second.
    pub forward: u64,
    /// Bytes from the second stream to the first.
    pub backward: u64,
    pub ended: Ended,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// Read but not yet written.
    rest: BytesMut,
    bytes: u64,
    unflushed: bool,
    ended: bool,
    done: bool,
}

/// Relays until both ends have closed, one fails, or a limit is reached.
pub async fn relay(mut first: Stream, mut second: Stream, limits: Limits) -> Passed {
    let (mut forward, mut backward) = (Half::default(), Half::default());
    let total = tokio::time::sleep(limits.total.unwrap_or_default());
    let idle = tokio::time::sleep(limits.idle.unwrap_or_default());
    tokio::pin!(total, idle);
    let ended = poll_fn(|cx| {
        let before = forward.bytes + backward.bytes;
        let moved = poll_both(cx, &mut first, &mut second, &mut forward, &mut backward);
        if let Poll::Ready(result) = moved {
            return Poll::Ready(if result.is_ok() { Ended::Closed } else { Ended::Failed });
        }
        if let Some(limit) = limits.idle {
            let progressed = forward.bytes + backward.bytes != before;
            if poll_idle(cx, idle.as_mut(), progressed.then(|| Instant::now() + limit)).is_ready() {
                return Poll::Ready(Ended::IdleTimeout);
            }
        }
        if limits.total.is_some() && total.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ended::TotalTimeout);
        }
        Poll::Pending
    })
    .await;
    Passed { forward: forward.bytes, backward: backward.bytes, ended }
}

use std::future::Future;

fn poll_idle(cx: &mut Context<'_>, mut idle: Pin<&mut Sleep>, deadline: Option<Instant>) -> Poll<()> {
    if let Some(deadline) = deadline {
        idle.as_mut().reset(deadline);
    }
    idle.poll(cx)
}

fn poll_both(
    cx: &mut Context<'_>,
    first: &mut Stream,
    second: &mut Stream,
    forward: &mut Half,
    backward: &mut Half,
) -> Poll<io::Result<()>> {
    let there = forward.poll(cx, first, second);
    if let Poll::Ready(Err(error)) = there {
        return Poll::Ready(Err(error));
    }
    let back = backward.poll(cx, second, first);
    if let Poll::Ready(Err(error)) = back {
        return Poll::Ready(Err(error));
    }
    match there.is_ready() && back.is_ready() {
        true => Poll::Ready(Ok(())),
        false => Poll::Pending,
    }
}

impl Half {
    /// Ready when the source has ended and the receiver was told.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<io::Result<()>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            for _ in 0..READS_PER_TURN {
                ready!(self.poll_rest(cx, to))?;
                if self.ended {
                    ready!(self.poll_end(cx, to))?;
                    return Poll::Ready(Ok(()));
                }
                ready!(self.poll_step(cx, from, to, scratch))?;
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.advance(written);
            self.unflushed = true;
        }
        if self.rest.capacity() > 0 {
            self.rest = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        // A receiver that is gone already cannot be told that nothing more comes.
        let _ = ready!(Pin::new(to).poll_shutdown(cx));
        self.done = true;
        Poll::Ready(Ok(()))
    }

    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        scratch: &mut [u8],
    ) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(from).poll_read(cx, &mut buffer) {
            Poll::Ready(result) => result?,
            Poll::Pending => {
                // Nothing more to send now: what TLS holds back must go.
                if std::mem::take(&mut self.unflushed) && Pin::new(to).poll_flush(cx)?.is_pending() {
                    self.unflushed = true;
                }
                return Poll::Pending;
            }
        }
        let bytes = buffer.filled();
        self.bytes += bytes.len() as u64;
        self.ended = bytes.is_empty();
        self.write(cx, to, bytes).into()
    }

    /// Writes what goes at once; keeps the rest.
    fn write(&mut self, cx: &mut Context<'_>, to: &mut Stream, mut bytes: &[u8]) -> Ready {
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => return Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.unflushed = true;
                    bytes = &bytes[written..];
                }
                Poll::Ready(Err(error)) => return Ready(Err(error)),
                Poll::Pending => {
                    self.rest.extend_from_slice(bytes);
                    break;
                }
            }
        }
        Ready(Ok(()))
    }
}

/// A result that is never pending.
struct Ready(io::Result<()>);

impl From<Ready> for Poll<io::Result<()>> {
    fn from(ready: Ready) -> Self {
        Self::Ready(ready.0)
    }
}

#[cfg(test)]
mod tests;
