//! `dpumesh`: the tool for people. It reads the API server with the caller's own rights, and changes nothing there.
//!
//! `cluster` fetches, the rest is pure: `status`, `describe` and `check` judge what was fetched and say what to do;
//! `dpu` makes the files of a DPU. The outcome is the exit code: 0 good, 1 something is wrong, 2 it cannot be told.

#![forbid(unsafe_code)]

pub mod arguments;
pub mod check;
pub mod cluster;
pub mod describe;
pub mod dpu;
pub mod problem;
pub mod run;
pub mod seen;
pub mod status;
pub mod table;
