//! The codec as a whole: what it accepts, what it refuses, and that splits of the bytes don't matter.

use super::encode::ResponseExtras;
use super::response::Answers;
use super::*;
use crate::head::{RequestHead, ResponseHead};
use proptest::prelude::*;

fn request(text: &[u8]) -> Result<(RequestHead, RequestMeta, usize), HeadError> {
    let mut reader = HeadReader::default();
    let length = reader.advance(text, &Limits::default())?.expect("a whole head");
    let mut head = RequestHead::default();
    let meta = request::parse(&reader, text, &RequestOptions::default(), &mut head)?;
    Ok((head, meta, length))
}

fn response(text: &[u8], answers: Answers) -> Result<(ResponseHead, ResponseMeta), HeadError> {
    let mut reader = HeadReader::default();
    reader.advance(text, &Limits::default())?.expect("a whole head");
    let mut head = ResponseHead::default();
    let meta = response::parse(&reader, text, answers, &mut head)?;
    Ok((head, meta))
}

/// Data, trailers, and whether the body ended.
type Decoded = (Vec<u8>, Vec<(String, String)>, bool);

/// Decodes a body that comes in the given pieces.
fn body(framing: Framing, pieces: &[&[u8]]) -> Result<Decoded, BodyError> {
    let mut decoder = BodyDecoder::default();
    decoder.begin(framing);
    let (mut buffer, mut data) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.step(&buffer)? {
                Step::Data { skip, len } => {
                    data.extend_from_slice(&buffer[skip..skip + len]);
                    buffer.drain(..skip + len);
                }
                Step::More { skip } => {
                    buffer.drain(..skip);
                    break;
                }
                Step::End { skip } => {
                    buffer.drain(..skip);
                    break;
                }
            }
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let trailers = decoder.trailers.iter().map(|(name, value)| (text(name), text(value))).collect();
    Ok((data, trailers, decoder.is_ended()))
}

#[test]
fn a_request_is_read_with_lower_case_names_and_without_hop_by_hop_headers() {
    let text = b"\r\nPOST /a?b HTTP/1.1\r\nHost: h\r\nX-A:  1 \r\nConnection: keep-alive, x-b\r\nX-B: 2\r\nKeep-Alive: 5\r\nContent-Length: 3\r\n\r\nabc";
    let (head, meta, length) = request(text).expect("valid");
    assert_eq!(
        (head.method(), head.path(), head.authority(), head.scheme()),
        (&b"POST"[..], &b"/a?b"[..], &b"h"[..], &b"http"[..])
    );
    let headers: Vec<_> = head.headers.iter().collect();
    assert_eq!(headers, [(&b"x-a"[..], &b"1"[..]), (&b"content-length"[..], &b"3"[..])]);
    assert_eq!(&text[length..], b"abc");
    assert_eq!(meta.framing, Framing::Length(3));
    assert!(meta.keep_alive && meta.has_host && !meta.upgrade);
}

#[test]
fn garbage_is_refused_at_its_first_byte_however_much_of_it_came_at_once() {
    let garbage = b"\0\x0bA\xb7\r\n7;\xff\xff";
    for length in 1..=garbage.len() {
        let refused = HeadReader::default().advance(&garbage[..length], &Limits::default());
        assert_eq!(refused, Err(HeadError::FirstLine), "{length} bytes");
    }
}

#[test]
fn ambiguous_framing_and_malformed_heads_are_refused_with_envoys_details() {
    let cases: [(&[u8], &str, u16); 19] = [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "http1.content_length_and_chunked_not_allowed", 400),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", "http1.codec_error", 400),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", "http1.codec_error", 400),
        (b"Content-Length: 5, 5\r\n", "http1.codec_error", 400),
        (b"Content-Length: +5\r\n", "http1.codec_error", 400),
        (b"Content-Length: \r\n", "http1.codec_error", 400),
        (b"Content-Length: 9999999999999999999999\r\n", "http1.codec_error", 400),
        (b"Transfer-Encoding: gzip, chunked\r\n", "http1.invalid_transfer_encoding", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "http1.invalid_transfer_encoding", 501),
        (b"Transfer-Encoding: xchunked\r\n", "http1.invalid_transfer_encoding", 501),
        (b"X-A: 1\r\n folded\r\n", "http1.codec_error", 400),
        (b"X-A: 1\nX-B: 2\r\n", "http1.codec_error", 400),
        (b"X-A : 1\r\n", "http1.codec_error", 400),
        (b"no colon\r\n", "http1.codec_error", 400),
        (b": empty\r\n", "http1.codec_error", 400),
        (b"X-A: a\0b\r\n", "http1.invalid_characters", 400),
        (b"X-A: a\rb\r\n", "http1.invalid_characters", 400),
        (b"Host: other\r\n", "http1.codec_error", 400),
        (b"Connection: host\r\n", "http1.connection_header_rejected", 400),
    ];
    for (lines, details, status) in cases {
        let text = [b"POST / HTTP/1.1\r\nHost: h\r\n", lines, b"\r\n"].concat();
        let error = request(&text).expect_err(&String::from_utf8_lossy(lines));
        assert_eq!((error.details(), error.status()), (details, status), "{}", String::from_utf8_lossy(lines));
    }
}

#[test]
fn malformed_request_lines_are_refused() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/2.0",
        "get / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET a HTTP/1.1",
        "CONNECT /x HTTP/1.1",
        "GET http:///x HTTP/1.1",
    ] {
        request(format!("{line}\r\nHost: h\r\n\r\n").as_bytes()).expect_err(line);
    }
}

#[test]
fn heads_beyond_the_limits_are_refused_before_they_are_whole() {
    let mut reader = HeadReader::default();
    let large = [b"GET / HTTP/1.1\r\nx: ", &vec![b'a'; 61 * 1024][..]].concat();
    assert_eq!(reader.advance(&large, &Limits::default()), Err(HeadError::TooLarge));
    let many = format!("GET / HTTP/1.1\r\n{}", "x: 1\r\n".repeat(101));
    reader.reset();
    assert_eq!(reader.advance(many.as_bytes(), &Limits::default()), Err(HeadError::TooMany));
}

#[test]
fn targets_of_every_form_set_authority_and_path() {
    let cases = [
        ("GET http://abs.test/x?y", "abs.test", "/x?y", "http"),
        ("GET https://abs.test?q", "abs.test", "/?q", "https"),
        ("GET http://abs.test", "abs.test", "/", "http"),
        ("OPTIONS *", "h", "*", "http"),
        ("CONNECT c.test:443", "c.test:443", "", "http"),
    ];
    for (line, authority, path, scheme) in cases {
        let (head, _, _) = request(format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).expect(line);
        assert_eq!(
            (head.authority(), head.path(), head.scheme()),
            (authority.as_bytes(), path.as_bytes(), scheme.as_bytes()),
            "{line}"
        );
    }
}

#[test]
fn an_upgrade_needs_both_headers_and_h2c_is_served_as_it_is() {
    let upgrade = |lines: &str| request(format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n").as_bytes()).expect(lines);
    let (head, meta, _) = upgrade("Connection: Upgrade\r\nUpgrade: websocket\r\n");
    assert!(meta.upgrade && head.headers.get(b"upgrade") == Some(b"websocket"));
    for lines in
        ["Upgrade: websocket\r\n", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"]
    {
        let (head, meta, _) = upgrade(lines);
        assert!(!meta.upgrade && head.headers.is_empty(), "{lines}");
    }
}

#[test]
fn a_response_is_framed_by_what_it_answers() {
    let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(response(text, Answers::Other).expect("valid").1.framing, Framing::Length(5));
    assert_eq!(response(text, Answers::Head).expect("valid").1.framing, Framing::None);
    assert_eq!(response(text, Answers::Connect).expect("valid").1.framing, Framing::UntilClose);
    for status in ["100 Continue", "204 No Content", "304 Not Modified"] {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(response(text.as_bytes(), Answers::Other).expect("valid").1.framing, Framing::None, "{status}");
    }
    let (_, meta) = response(b"HTTP/1.1 200\r\n\r\n", Answers::Other).expect("valid");
    assert!(meta.framing == Framing::UntilClose && !meta.keep_alive);
    let (_, meta) = response(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", Answers::Other).expect("valid");
    assert!(!meta.keep_alive);
}

#[test]
fn malformed_status_lines_are_refused() {
    for line in ["HTTP/1.1", "HTTP/1.1 20", "HTTP/1.1 2000 OK", "HTTP/1.1 099 No", "HTTP/2 200 OK", "ICY 200 OK"] {
        response(format!("{line}\r\n\r\n").as_bytes(), Answers::Other).expect_err(line);
    }
}

#[test]
fn chunks_are_decoded_with_extensions_and_trailers() {
    let text = b"5;a=b\r\nhello\r\n6 \r\n world\r\n0\r\nX-T: 1\r\n\r\nnext";
    let (data, trailers, is_ended) = body(Framing::Chunked, &[text]).expect("valid");
    assert_eq!((&data[..], is_ended), (&b"hello world"[..], true));
    assert_eq!(trailers, [("x-t".to_owned(), "1".to_owned())]);
}

#[test]
fn malformed_chunks_are_refused() {
    for text in [
        "zz\r\n",
        "\r\n",
        "5\nhello",
        "5\r\nhelloX",
        "5\r\nhello\rX",
        "-1\r\n",
        "0x5\r\n",
        "10000000000000000\r\n",
        "5;a\nhello",
        "0\r\nX\r\n\r\n",
        "0\r\n\n",
    ] {
        body(Framing::Chunked, &[text.as_bytes()]).expect_err(text);
    }
    let long = [b"5;", &[b'x'; 5000][..]].concat();
    assert_eq!(body(Framing::Chunked, &[&long]), Err(BodyError::ChunkExtension));
}

#[test]
fn heads_are_written_as_they_were_read() {
    let (head, _, _) = request(b"POST /a HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n").expect("valid");
    let mut out = Vec::new();
    encode::request(&head, Framing::Chunked, false, &mut out);
    assert_eq!(out, b"POST /a HTTP/1.1\r\nhost: h\r\nx-a: 1\r\ntransfer-encoding: chunked\r\n\r\n");
    out.clear();
    encode::request(&head, Framing::None, true, &mut out);
    assert_eq!(out, b"POST /a HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n");
    out.clear();
    let mut head = ResponseHead { status: 404, ..ResponseHead::default() };
    head.headers.append(b"server", b"envoy");
    encode::response(&head, ResponseExtras { zero_length: true, close: true, ..Default::default() }, &mut out);
    assert_eq!(out, b"HTTP/1.1 404 Not Found\r\nserver: envoy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), prefix in 0usize..4) {
        let prefixes: [&[u8]; 4] = [b"", b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", b"POST http://"];
        let text = [prefixes[prefix], &bytes, b"\r\n\r\n"].concat();
        let mut reader = HeadReader::default();
        if let Ok(Some(_)) = reader.advance(&text, &Limits::default()) {
            let _ = request::parse(&reader, &text, &RequestOptions::default(), &mut RequestHead::default());
            let _ = response::parse(&reader, &text, Answers::Other, &mut ResponseHead::default());
        }
        let _ = body(Framing::Chunked, &[&bytes]);
    }

    #[test]
    fn a_chunked_body_survives_any_split(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
        cuts in proptest::collection::vec(0usize..400, 0..8),
        with_trailers in any::<bool>(),
    ) {
        let mut encoded = Vec::new();
        parts.iter().for_each(|part| encode::chunk(part, &mut encoded));
        let mut trailers = crate::head::HeaderBlock::default();
        if with_trailers {
            trailers.append(b"x-t", b"value");
        }
        encode::last_chunk(&trailers, &mut encoded);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % encoded.len()).chain([0, encoded.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &encoded[pair[0]..pair[1]]).collect();
        let (data, got, is_ended) = body(Framing::Chunked, &pieces).expect("valid");
        prop_assert_eq!(data, parts.concat());
        prop_assert_eq!(got.len(), usize::from(with_trailers));
        prop_assert!(is_ended);
    }

    #[test]
    fn a_head_is_found_whatever_the_split(cuts in proptest::collection::vec(0usize..80, 0..6)) {
        let text = b"GET /path HTTP/1.1\r\nHost: example.test\r\nX-A: 1\r\nAccept: */*\r\n\r\nrest";
        let whole = request(text).expect("valid");
        let mut reader = HeadReader::default();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([text.len()]).collect();
        cuts.sort_unstable();
        let mut found = None;
        for cut in cuts {
            if let Some(length) = reader.advance(&text[..cut], &Limits::default()).expect("valid") {
                found = Some(length);
                break;
            }
        }
        prop_assert_eq!(found, Some(whole.2));
    }
}
