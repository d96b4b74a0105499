//! The lab: two emulated hosts with their DPUs on one machine, the real programs on them, bookinfo in pods.
//!
//! `topology` makes namespaces and links, `programs` runs what the product consists of, `replay` plays
//! the control plane from recordings, `apps` are the pods' applications, `checks` say what must hold,
//! `report` tells a person. `Lab` (in `lab`) is one running lab; dropping it removes everything.

#![forbid(unsafe_code)]
// Output for a person and the first failure is what matters in a test program.
#![allow(missing_debug_implementations)]

pub mod apps;
pub mod capture;
pub mod checks;
pub mod cni;
pub mod fabric;
pub mod hops;
pub mod lab;
pub mod load;
pub mod manifests;
pub mod pods;
pub mod probe;
pub mod programs;
pub mod replay;
pub mod report;
pub mod shell;
pub mod state;
pub mod topology;
pub mod traffic;
