//! Request and response heads, shared by every codec.
//!
//! A head is one byte buffer and a list of spans into it: parsing a request of the wire allocates
//! nothing when the head is reused, and forwarding it copies each byte once. Header names are lower
//! case. Pseudo-headers of HTTP/2 are fields of `RequestHead`, not list entries.

use std::ops::Range;

/// Where a piece of text lies in the buffer of its `HeaderBlock`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.len as usize
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    value: Span,
}

/// Ordered headers over one buffer. Reusable: `clear` keeps the memory.
#[derive(Clone, Debug, Default)]
pub struct HeaderBlock {
    buffer: Vec<u8>,
    entries: Vec<Entry>,
}

impl HeaderBlock {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.entries.clear();
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Copies `text` into the buffer.
    pub fn intern(&mut self, text: &[u8]) -> Span {
        let start = self.buffer.len() as u32;
        self.buffer.extend_from_slice(text);
        Span { start, len: text.len() as u32 }
    }

    /// Copies `name` into the buffer in lower case.
    pub fn intern_lower(&mut self, name: &[u8]) -> Span {
        let span = self.intern(name);
        self.buffer[span.range()].make_ascii_lowercase();
        span
    }

    /// The bytes of a span of this block.
    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.buffer[span.range()]
    }

    /// Appends a header; `name` is made lower case.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        let name = self.intern_lower(name);
        let value = self.intern(value);
        self.entries.push(Entry { name, value });
    }

    /// Replaces every header of that (lower-case) name by one.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.position(name) {
            Some(first) => {
                let value = self.intern(value);
                self.entries[first].value = value;
                self.remove_after(name, first + 1);
            }
            None => self.append(name, value),
        }
    }

    /// Removes every header of that (lower-case) name; true if there was one.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        // Most names that are removed are not there.
        let Some(first) = self.position(name) else { return false };
        self.remove_after(name, first);
        true
    }

    /// First value of that (lower-case) name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.position(name).map(|index| self.bytes(self.entries[index].value))
    }

    /// First value as text, if it is UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name.as_bytes()).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Every value of that (lower-case) name, in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.iter().filter(move |(other, _)| *other == name).map(|(_, value)| value)
    }

    /// All headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|entry| (self.bytes(entry.name), self.bytes(entry.value)))
    }

    /// Keeps the headers for which `keep(name, value)`.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let buffer = &self.buffer;
        self.entries.retain(|entry| keep(&buffer[entry.name.range()], &buffer[entry.value.range()]));
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name.len as usize == name.len() && self.bytes(entry.name) == name)
    }

    fn remove_after(&mut self, name: &[u8], from: usize) {
        let buffer = &self.buffer;
        let mut index = 0;
        self.entries.retain(|entry| {
            index += 1;
            index <= from || &buffer[entry.name.range()] != name
        });
    }
}

/// HTTP version of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

/// Head of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    pub version: Version,
    method: Span,
    /// Path with query, as `:path`.
    path: Span,
    /// Host header or `:authority`.
    authority: Span,
    /// "http" or "https".
    scheme: Span,
    /// Everything else; neither `host` nor pseudo-headers.
    pub headers: HeaderBlock,
}

macro_rules! head_text {
    ($($get:ident, $set:ident, $field:ident;)*) => {
        $(
            #[doc = concat!("The ", stringify!($field), ".")]
            pub fn $get(&self) -> &[u8] {
                self.headers.bytes(self.$field)
            }

            #[doc = concat!("Replaces the ", stringify!($field), ".")]
            pub fn $set(&mut self, text: &[u8]) {
                self.$field = self.headers.intern(text);
            }
        )*
    };
}

impl RequestHead {
    head_text! {
        method, set_method, method;
        path, set_path, path;
        authority, set_authority, authority;
        scheme, set_scheme, scheme;
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        (self.method, self.path, self.authority, self.scheme) = Default::default();
    }

    /// The path without query and fragment.
    pub fn path_only(&self) -> &[u8] {
        let path = self.path();
        let end = path.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(path.len());
        &path[..end]
    }

    /// The query without `?`, if any.
    pub fn query(&self) -> Option<&[u8]> {
        let path = self.path();
        path.iter().position(|byte| *byte == b'?').map(|at| &path[at + 1..])
    }

    /// A header or pseudo-header (`:method`, `:path`, `:authority`, `:scheme`; `host` is the authority).
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        match name {
            ":method" => Some(self.method()),
            ":path" => Some(self.path()),
            ":authority" | "host" => Some(self.authority()),
            ":scheme" => Some(self.scheme()),
            _ => self.headers.get(name.as_bytes()),
        }
    }
}

/// Head of a response.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    pub version: Version,
    pub status: u16,
    pub headers: HeaderBlock,
}

impl ResponseHead {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.status = 0;
        self.headers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_every_header_of_the_name_and_keeps_the_place_of_the_first() {
        let mut block = HeaderBlock::default();
        for (name, value) in [("A", "1"), ("b", "2"), ("a", "3")] {
            block.append(name.as_bytes(), value.as_bytes());
        }
        block.set(b"a", b"9");
        let all: Vec<_> = block.iter().collect();
        assert_eq!(all, [(&b"a"[..], &b"9"[..]), (&b"b"[..], &b"2"[..])]);
    }

    #[test]
    fn a_head_names_its_path_without_the_query() {
        let mut head = RequestHead::default();
        head.set_path(b"/a/b?c=d");
        assert_eq!(head.path_only(), b"/a/b");
        assert_eq!(head.query(), Some(&b"c=d"[..]));
        assert_eq!(head.header(":path"), Some(&b"/a/b?c=d"[..]));
    }
}
