//! Path normalisation of a connection manager: escaped slashes, dot segments (RFC 3986), double slashes.
//!
//! The query is left alone. The same steps and order as Envoy, whose canonical form is Chromium's.

use crate::model::EscapedSlashes;

/// What normalisation made of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Normalised {
    Unchanged,
    Changed(Vec<u8>),
    /// 307 to this path, with details `path_with_escaped_slashes_action`.
    Redirect(Vec<u8>),
    /// 400, `path_normalization_failed`.
    Rejected,
}

/// What a connection manager asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PathOptions {
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
}

/// Normalises `:path`.
pub fn normalise(path: &[u8], options: PathOptions) -> Normalised {
    if !needs_work(path, options) {
        return Normalised::Unchanged;
    }
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let (plain, query) = path.split_at(end);
    let unescaped = unescape_slashes(plain, options.escaped_slashes);
    if unescaped.is_some() && options.escaped_slashes == EscapedSlashes::RejectRequest {
        return Normalised::Rejected;
    }
    let redirect = unescaped.is_some() && options.escaped_slashes == EscapedSlashes::UnescapeAndRedirect;
    let mut text = unescaped.unwrap_or_else(|| plain.to_vec());
    if options.normalize {
        match canonical(&text) {
            Some(canonical) => text = canonical,
            None => return Normalised::Rejected,
        }
    }
    if options.merge_slashes {
        text = merged(&text);
    }
    text.extend_from_slice(query);
    match (redirect, text == path) {
        (true, _) => Normalised::Redirect(text),
        (false, true) => Normalised::Unchanged,
        (false, false) => Normalised::Changed(text),
    }
}

/// Most paths are plain: told without allocation.
fn needs_work(path: &[u8], options: PathOptions) -> bool {
    let escapes = options.normalize || options.escaped_slashes != EscapedSlashes::KeepUnchanged;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'~');
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let path = &path[..end];
    (escapes && (!path.starts_with(b"/") || !path.iter().all(|byte| is_plain(*byte))))
        || (options.merge_slashes && path.windows(2).any(|pair| pair == b"//"))
}

/// `%2F` and `%5C` decoded; `None` when there are none, or they are kept.
fn unescape_slashes(path: &[u8], action: EscapedSlashes) -> Option<Vec<u8>> {
    if action == EscapedSlashes::KeepUnchanged {
        return None;
    }
    let mut output = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match rest {
            [b'%', b'2', b'f' | b'F', tail @ ..] => {
                output.push(b'/');
                rest = tail;
            }
            [b'%', b'5', b'c' | b'C', tail @ ..] => {
                output.push(b'\\');
                rest = tail;
            }
            _ => {
                output.push(*first);
                rest = tail;
            }
        }
    }
    (output.len() != path.len()).then_some(output)
}

fn merged(path: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(path.len());
    for byte in path {
        if *byte != b'/' || output.last() != Some(&b'/') {
            output.push(*byte);
        }
    }
    output
}

/// Chromium's canonical path. `None` when it has a byte that no path may have.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    let mut output = Vec::with_capacity(path.len() + 1);
    if !matches!(path.first(), Some(b'/' | b'\\')) {
        output.push(b'/');
    }
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        match byte {
            b'/' | b'\\' => {
                output.push(b'/');
                rest = dot_segments(tail, &mut output);
            }
            b'%' => rest = escape(tail, &mut output)?,
            _ => {
                push(*byte, &mut output)?;
                rest = tail;
            }
        }
    }
    Some(output)
}

/// After a slash: drops `.` and takes back a segment for `..`, as often as they follow.
fn dot_segments<'a>(mut rest: &'a [u8], output: &mut Vec<u8>) -> &'a [u8] {
    loop {
        let (dots, tail) = dots(rest);
        let ended = match tail.first() {
            None => true,
            Some(b'/' | b'\\') => false,
            Some(_) => return rest,
        };
        match dots {
            1 => {}
            2 => drop_segment(output),
            _ => return rest,
        }
        rest = if ended { tail } else { &tail[1..] };
        if ended {
            return rest;
        }
    }
}

/// Number of leading dots (`.` or `%2e`), and what follows.
fn dots(mut rest: &[u8]) -> (usize, &[u8]) {
    let mut count = 0;
    loop {
        rest = match rest {
            [b'.', tail @ ..] | [b'%', b'2', b'e' | b'E', tail @ ..] => tail,
            _ => return (count, rest),
        };
        count += 1;
    }
}

fn drop_segment(output: &mut Vec<u8>) {
    if output.len() > 1 {
        output.pop();
        let slash = output.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        output.truncate(slash + 1);
    }
}

/// After `%`: what needs no escape is decoded, a bad escape stays.
fn escape<'a>(rest: &'a [u8], output: &mut Vec<u8>) -> Option<&'a [u8]> {
    let [high, low, tail @ ..] = rest else {
        output.push(b'%');
        return Some(rest);
    };
    let (Some(high_digit), Some(low_digit)) = (digit(*high), digit(*low)) else {
        output.push(b'%');
        return Some(rest);
    };
    let value = high_digit * 16 + low_digit;
    match value {
        0 => return None,
        value if is_unreserved(value) => output.push(value),
        _ => output.extend([b'%', *high, *low]),
    }
    Some(tail)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn push(byte: u8, output: &mut Vec<u8>) -> Option<()> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    match byte {
        0 => return None,
        b' ' | b'"' | b'#' | b'<' | b'>' | b'`' | b'{' | b'}' | b'^' | b'|' | ..=0x1f | 0x7f.. => {
            output.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        _ => output.push(byte),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: PathOptions =
        PathOptions { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::KeepUnchanged };

    fn normalised(path: &str, options: PathOptions) -> String {
        match normalise(path.as_bytes(), options) {
            Normalised::Unchanged => path.into(),
            Normalised::Changed(path) => String::from_utf8(path).expect("text"),
            Normalised::Redirect(path) => format!("to {}", String::from_utf8(path).expect("text")),
            Normalised::Rejected => "rejected".into(),
        }
    }

    #[test]
    fn the_canonical_path_is_what_envoy_makes_of_it() {
        let normalize = PathOptions { normalize: true, ..PathOptions::default() };
        for (path, expected) in [
            ("/a/../b/./c%7Ed", "/b/c~d"),
            ("//a///b", "//a///b"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/../..", "/"),
            ("/a/b/../..", "/"),
            ("/a//../b", "/a/b"),
            ("/%2e%2e/a", "/a"),
            ("/a/.%2e/c", "/c"),
            ("/a\\b", "/a/b"),
            ("/a%2fb", "/a%2fb"),
            ("/a%5cb", "/a%5cb"),
            ("/a%zz", "/a%zz"),
            ("/a%", "/a%"),
            ("/%41%2d%5f%20", "/A-_%20"),
            ("/a|b^c\"d", "/a%7Cb%5Ec%22d"),
            ("/a<b>`{c}", "/a%3Cb%3E%60%7Bc%7D"),
            ("/a[b]'!$&()*+:@;=,", "/a[b]'!$&()*+:@;=,"),
            ("/%00", "rejected"),
            ("/%c3%A9", "/%c3%A9"),
            ("/a/.../b", "/a/.../b"),
            ("/a/..b", "/a/..b"),
            ("/.a", "/.a"),
            ("/a?x=/../y", "/a?x=/../y"),
            ("/a/../../../c?q", "/c?q"),
            ("/%3f%23", "/%3f%23"),
        ] {
            assert_eq!(normalised(path, normalize), expected, "{path}");
        }
    }

    #[test]
    fn slashes_are_merged_outside_the_query() {
        assert_eq!(normalised("//a///b?c=//d", ALL), "/a/b?c=//d");
        assert_eq!(normalised("//a", PathOptions::default()), "//a");
    }

    #[test]
    fn escaped_slashes_are_refused_redirected_or_decoded() {
        let with = |escaped_slashes| PathOptions { escaped_slashes, ..ALL };
        assert_eq!(normalised("/a%2Fb%5cc", with(EscapedSlashes::RejectRequest)), "rejected");
        assert_eq!(normalised("/a%2Fb%5cc", with(EscapedSlashes::UnescapeAndRedirect)), "to /a/b/c");
        assert_eq!(normalised("/a%2F/b?%2F", with(EscapedSlashes::UnescapeAndForward)), "/a/b?%2F");
        assert_eq!(normalised("/a%2Fb", ALL), "/a%2Fb");
        assert_eq!(normalised("/ab", with(EscapedSlashes::RejectRequest)), "/ab");
    }
}
