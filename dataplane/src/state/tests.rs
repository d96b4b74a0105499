//! Operations in, state and image out.
