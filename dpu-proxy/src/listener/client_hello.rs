//! The TLS inspector's parser: server name and ALPN of a ClientHello, from bytes that may not all be there yet.
//!
//! RFC 8446 §4.1.2 and §5.1: a ClientHello may be spread over several records.

/// Largest ClientHello that is looked at, in bytes; Envoy's default limit is the same.
const MAX_CLIENT_HELLO: usize = 16 * 1024;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const CONTENT_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Lower case; empty when none.
    pub server_name: String,
    pub protocols: Vec<String>,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspected {
    NeedMore,
    NotTls,
    Tls(ClientHello),
}

/// Looks at the first bytes of a connection.
pub fn inspect(bytes: &[u8]) -> Inspected {
    match handshake(bytes) {
        Gathered::NeedMore => Inspected::NeedMore,
        Gathered::NotTls => Inspected::NotTls,
        Gathered::Message(body) => parse(&body).map_or(Inspected::NotTls, Inspected::Tls),
    }
}

enum Gathered {
    NeedMore,
    NotTls,
    Message(Vec<u8>),
}

/// Joins the fragments of the first handshake message; the message without its header.
fn handshake(mut bytes: &[u8]) -> Gathered {
    let mut message = Vec::new();
    loop {
        if !may_be_record(bytes) {
            return Gathered::NotTls;
        }
        if bytes.len() < RECORD_HEADER {
            return Gathered::NeedMore;
        }
        let length = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
        let rest = &bytes[RECORD_HEADER..];
        message.extend_from_slice(&rest[..length.min(rest.len())]);
        if message.first().is_some_and(|kind| *kind != HANDSHAKE_CLIENT_HELLO) || length == 0 {
            return Gathered::NotTls;
        }
        if let Some(needed) = message_length(&message) {
            if needed > MAX_CLIENT_HELLO {
                return Gathered::NotTls;
            }
            if message.len() >= HANDSHAKE_HEADER + needed {
                return Gathered::Message(message[HANDSHAKE_HEADER..HANDSHAKE_HEADER + needed].to_vec());
            }
        }
        if rest.len() <= length {
            return Gathered::NeedMore;
        }
        bytes = &rest[length..];
    }
}

fn may_be_record(bytes: &[u8]) -> bool {
    let type_fits = bytes.first().is_none_or(|kind| *kind == CONTENT_HANDSHAKE);
    let major_fits = bytes.get(1).is_none_or(|major| *major == 3);
    type_fits && major_fits
}

fn message_length(message: &[u8]) -> Option<usize> {
    let header = message.get(1..HANDSHAKE_HEADER)?;
    Some(usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]))
}

fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    let mut hello = ClientHello::default();
    if reader.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(content)?,
            EXTENSION_ALPN => hello.protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(content: &[u8]) -> Option<String> {
    let mut names = Reader(Reader(content).vector16()?);
    let kind = names.take(1)?[0];
    let name = std::str::from_utf8(names.vector16()?).ok()?;
    Some(if kind == 0 { name.to_ascii_lowercase() } else { String::new() })
}

fn protocols(content: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(Reader(content).vector16()?);
    let mut found = Vec::new();
    while !list.0.is_empty() {
        found.push(String::from_utf8_lossy(list.vector8()?).into_owned());
    }
    Some(found)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use std::sync::Arc;

    fn hello(alpn: &[&str]) -> Vec<u8> {
        let builder = rustls::ClientConfig::builder_with_provider(crate::tls::provider());
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("Reviews.Example.com").expect("name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("hello");
        bytes
    }

    /// The same handshake message in records of `size` bytes.
    fn fragmented(record: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in record[RECORD_HEADER..].chunks(size) {
            bytes.extend_from_slice(&[22, 3, 1]);
            bytes.extend_from_slice(&(part.len() as u16).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    fn expected() -> Inspected {
        let protocols = vec!["h2".to_owned(), "http/1.1".to_owned()];
        Inspected::Tls(ClientHello { server_name: "reviews.example.com".to_owned(), protocols })
    }

    #[test]
    fn a_client_hello_is_read_at_every_split() {
        let bytes = hello(&["h2", "http/1.1"]);
        for end in 0..bytes.len() {
            assert_eq!(inspect(&bytes[..end]), Inspected::NeedMore, "at {end}");
        }
        assert_eq!(inspect(&bytes), expected());
    }

    #[test]
    fn a_client_hello_in_many_records_is_read() {
        let bytes = hello(&["h2", "http/1.1"]);
        for size in [1, 3, 4, 100] {
            assert_eq!(inspect(&fragmented(&bytes, size)), expected(), "records of {size}");
        }
    }

    #[test]
    fn what_is_no_client_hello_is_told_apart_early() {
        assert_eq!(inspect(b"G"), Inspected::NotTls);
        assert_eq!(inspect(&[22, 2]), Inspected::NotTls);
        assert_eq!(inspect(&[22, 3, 1, 0, 4, 2]), Inspected::NotTls);
        assert_eq!(inspect(&[22, 3, 1, 0, 0]), Inspected::NotTls);
        assert_eq!(inspect(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Inspected::NotTls, "longer than any hello");
    }

    #[test]
    fn a_damaged_client_hello_never_panics() {
        let bytes = hello(&["h2"]);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                let _ = inspect(&damaged);
            }
        }
    }
}
