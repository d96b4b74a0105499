//! Gives programs the certificates by which the others know them, and the controller its own.
//!
//! In: a token that the API server vouches for, and a signing request. Out: a certificate of a day
//! for exactly the program and node that the token belongs to. The authority's key is in files that
//! only the controller has.

pub mod authority;
mod own;
pub mod review;
pub mod service;

pub use authority::{Authority, AuthorityError, Name};
pub use own::hold;
