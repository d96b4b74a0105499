//! The client: `core` decides, `shell` talks.

pub mod core;
mod shell;

pub use self::core::{Interest, Mode, Token, Update};
pub use shell::{Connect, Event, Handle, Options, describe, spawn};
