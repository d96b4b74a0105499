//! Why a message is refused, with Envoy's response code details and the status of the answer.

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the first line is malformed: it must be `METHOD TARGET HTTP/1.x` or `HTTP/1.x STATUS REASON`")]
    FirstLine,
    #[error("the method is unknown")]
    Method,
    #[error("the request target is neither a path, an absolute URL, nor `*`")]
    Target,
    #[error("a line does not end with CRLF")]
    BareLineFeed,
    #[error("a header is continued on the next line, which is obsolete")]
    Folded,
    #[error("a header line is malformed: it must be `name: value`")]
    HeaderLine,
    #[error("a header name or value has a character that is not allowed")]
    InvalidCharacter,
    #[error("the head is larger than the limit")]
    TooLarge,
    #[error("there are more headers than the limit")]
    TooMany,
    #[error("content-length is not one number")]
    ContentLength,
    #[error("content-length and transfer-encoding: chunked contradict one another")]
    LengthAndChunked,
    #[error("the transfer encoding is not `chunked` alone")]
    TransferEncoding,
    #[error("a CONNECT request must not have a transfer encoding")]
    TransferEncodingNotAllowed,
    #[error("a CONNECT request must not have a content length")]
    LengthNotAllowed,
    #[error("there are several host headers")]
    SeveralHosts,
    #[error("the connection header names a header that must not be dropped")]
    ConnectionHeader,
}

impl HeadError {
    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        match self {
            Self::TooLarge => "http1.headers_too_large",
            Self::TooMany => "http1.too_many_headers",
            Self::InvalidCharacter => "http1.invalid_characters",
            Self::LengthAndChunked => "http1.content_length_and_chunked_not_allowed",
            Self::TransferEncoding => "http1.invalid_transfer_encoding",
            Self::TransferEncodingNotAllowed => "http1.transfer_encoding_not_allowed",
            Self::LengthNotAllowed => "http1.content_length_not_allowed",
            Self::ConnectionHeader => "http1.connection_header_rejected",
            Self::FirstLine
            | Self::Method
            | Self::Target
            | Self::BareLineFeed
            | Self::Folded
            | Self::HeaderLine
            | Self::ContentLength
            | Self::SeveralHosts => "http1.codec_error",
        }
    }

    /// Status of the answer, when it is a request that is refused.
    pub fn status(self) -> u16 {
        match self {
            Self::TooLarge | Self::TooMany => 431,
            Self::TransferEncoding => 501,
            _ => 400,
        }
    }
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("a chunk size is malformed")]
    ChunkSize,
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
    #[error("the extensions of a chunk are larger than the limit")]
    ChunkExtension,
    #[error("the trailers are malformed: {0}")]
    Trailers(#[from] HeadError),
}

impl BodyError {
    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        match self {
            Self::Trailers(error) => error.details(),
            Self::ChunkSize | Self::ChunkEnd | Self::ChunkExtension => "http1.codec_error",
        }
    }
}
