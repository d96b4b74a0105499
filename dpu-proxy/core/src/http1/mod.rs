//! The HTTP/1.1 codec, without I/O.
//!
//! In: bytes of a connection, from the beginning of a message. Out: heads with what their framing
//! headers mean (`request`, `response`), pieces of bodies (`body`), and the bytes to send (`encode`).
//! Strict where two readers of a message might disagree on where it ends: each refusal has Envoy's
//! response code details.

pub mod body;
pub mod connection;
pub mod encode;
pub mod error;
pub mod lines;
pub mod request;
pub mod response;

#[cfg(test)]
mod tests;

pub use body::{BodyDecoder, Step};
pub use error::{BodyError, HeadError};
pub use lines::HeadReader;
pub use request::{RequestMeta, RequestOptions};
pub use response::ResponseMeta;

/// Where a message's body ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    #[default]
    None,
    Length(u64),
    Chunked,
    /// Ends with the connection (responses), or never (tunnels).
    UntilClose,
}

/// How much of a head is read before it is refused.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_bytes: usize,
    pub max_headers: usize,
}

impl Default for Limits {
    /// Envoy's defaults.
    fn default() -> Self {
        Self { max_bytes: 60 * 1024, max_headers: 100 }
    }
}
