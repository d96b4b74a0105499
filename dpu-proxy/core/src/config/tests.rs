//! Behaviour over whole bootstraps and over what istiod was recorded to send.

mod bootstraps;
mod recordings;

use std::io;

/// A file system with one file.
pub(crate) fn one_file(path: &str) -> io::Result<Vec<u8>> {
    match path {
        "/files/body" => Ok(b"from a file".to_vec()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}
