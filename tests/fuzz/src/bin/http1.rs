//! HTTP/1.1 heads and bodies: no input panics, and where the bytes are split makes no difference.

#![no_main]

use dpu_proxy_core::head::{RequestHead, ResponseHead};
use dpu_proxy_core::http1::response::Answers;
use dpu_proxy_core::http1::{BodyDecoder, Framing, HeadReader, Limits, RequestOptions, Step, request, response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&split, bytes)) = input.split_first() else { return };
    let split = usize::from(split).min(bytes.len());
    assert_eq!(head(bytes, bytes.len()), head(bytes, split), "split at {split}");
    read_response(bytes);
    let whole = body(&[bytes]);
    assert_eq!(whole, body(&[&bytes[..split], &bytes[split..]]), "split at {split}");
});

/// Length of the head and whether it was accepted; `None` when more is needed.
fn head(bytes: &[u8], first: usize) -> Option<(usize, bool)> {
    let mut reader = HeadReader::default();
    for available in [first, bytes.len()] {
        match reader.advance(&bytes[..available], &Limits::default()) {
            Ok(Some(length)) => {
                let mut head = RequestHead::default();
                let parsed = request::parse(&reader, &bytes[..available], &RequestOptions::default(), &mut head);
                return Some((length, parsed.is_ok()));
            }
            Ok(None) => {}
            Err(_) => return Some((0, false)),
        }
    }
    None
}

fn read_response(bytes: &[u8]) {
    let mut reader = HeadReader::default();
    if let Ok(Some(_)) = reader.advance(bytes, &Limits::default()) {
        let mut head = ResponseHead::default();
        // Accepted or refused: it only must not panic.
        let _ = response::parse(&reader, bytes, Answers::default(), &mut head);
    }
}

/// Data of a chunked body, and whether it ended; `None` when it was refused.
fn body(pieces: &[&[u8]]) -> Option<(Vec<u8>, bool)> {
    let mut decoder = BodyDecoder::default();
    decoder.begin(Framing::Chunked);
    let (mut buffer, mut data) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.step(&buffer) {
                Ok(Step::Data { skip, len }) => {
                    data.extend_from_slice(&buffer[skip..skip + len]);
                    buffer.drain(..skip + len);
                }
                Ok(Step::More { skip }) => {
                    buffer.drain(..skip);
                    break;
                }
                Ok(Step::End { .. }) => return Some((data, true)),
                Err(_) => return None,
            }
        }
    }
    Some((data, decoder.is_ended()))
}
