//! Behaviour over whole bootstraps and over what istiod was recorded to send.

mod assembly;
mod bootstraps;
mod conformance;
mod extensions;
mod garbage;
mod recordings;

use super::assemble::Assembler;
use super::report::ConfigError;
use super::resource::{self, Accepted};
use mesh_api::Any;
use prost::{Message, Name};
use std::io;

/// A file system with one file.
pub(crate) fn one_file(path: &str) -> io::Result<Vec<u8>> {
    match path {
        "/files/body" => Ok(b"from a file".to_vec()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// A message of Envoy's API from YAML, as a resource's body.
pub(crate) fn body<M: Message + Name + Default>(yaml: &str) -> Any {
    let subject = super::report::Subject::new("test", &one_file);
    let message: M = super::json::message(subject.root(), yaml).expect("valid text");
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Converts a resource that is given as YAML under its own name.
pub(crate) fn accept<M: Message + Name + Default>(name: &str, yaml: &str) -> Result<Accepted, ConfigError> {
    let body = body::<M>(yaml);
    resource::accept(&body.type_url.clone(), name, &body, &one_file)
}

/// Applies one resource.
pub(crate) fn apply(assembler: &mut Assembler, name: &str, body: &Any) -> Result<(), Vec<super::assemble::Rejection>> {
    assembler.apply(&body.type_url.clone(), [(name, body)], [], &one_file)
}
