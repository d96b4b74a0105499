//! The HTTP inspector's parser: which HTTP a plain connection begins with.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest request line that is looked at, in bytes; Envoy's inspector buffers as much at most.
const MAX_LINE: usize = 64 * 1024;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspected {
    NeedMore,
    NotHttp,
    /// "http/1.0", "http/1.1" or "h2c".
    Http(&'static str),
}

/// Looks at the first bytes of a connection.
pub fn inspect(bytes: &[u8]) -> Inspected {
    let compared = bytes.len().min(PREFACE.len());
    if bytes[..compared] == PREFACE[..compared] {
        return if compared == PREFACE.len() { Inspected::Http("h2c") } else { Inspected::NeedMore };
    }
    match memchr::memchr(b'\n', bytes) {
        Some(end) => request_line(&bytes[..end]),
        None if bytes.len() < MAX_LINE && may_begin(bytes) => Inspected::NeedMore,
        None => Inspected::NotHttp,
    }
}

/// A token (the method), then a space, then printable text.
fn may_begin(bytes: &[u8]) -> bool {
    let method = memchr::memchr(b' ', bytes).unwrap_or(bytes.len());
    let rest_fits = bytes[method..].iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\r');
    method <= 32 && (method > 0 || bytes.is_empty()) && bytes[..method].iter().all(|byte| is_token(*byte)) && rest_fits
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn request_line(line: &[u8]) -> Inspected {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [_, target, version] = parts[..] else { return Inspected::NotHttp };
    // What would not be waited for is no request when it is whole, so that splits make no difference.
    if target.is_empty() || !may_begin(line) {
        return Inspected::NotHttp;
    }
    match version {
        b"HTTP/1.1" => Inspected::Http("http/1.1"),
        b"HTTP/1.0" => Inspected::Http("http/1.0"),
        _ => Inspected::NotHttp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_told_by_its_first_line_at_every_split() {
        for (text, protocol) in [
            (&b"GET / HTTP/1.1\r\n"[..], "http/1.1"),
            (b"POST /a?b HTTP/1.0\r\n", "http/1.0"),
            (b"PATCH * HTTP/1.1\n", "http/1.1"),
            (PREFACE, "h2c"),
        ] {
            for end in 0..text.len() {
                assert_eq!(inspect(&text[..end]), Inspected::NeedMore, "{protocol} at {end}");
            }
            assert_eq!(inspect(text), Inspected::Http(protocol));
        }
    }

    #[test]
    fn other_protocols_are_not_taken_for_http() {
        for text in [&b"\x16\x03\x01"[..], b" GET", b"GET / HTTP/2.0\r\n", b"hello\r\n", b"GET /\x00", b"\r\n"] {
            assert_eq!(inspect(text), Inspected::NotHttp, "{text:?}");
        }
    }

    #[test]
    fn a_control_character_in_the_target_is_no_http_whole_or_in_part() {
        assert_eq!(inspect(b"GET \x12, HT"), Inspected::NotHttp);
        assert_eq!(inspect(b"GET \x12, HTTP/1.0\r\n"), Inspected::NotHttp);
    }
}
