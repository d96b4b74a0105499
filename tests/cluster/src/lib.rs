//! A real cluster on one machine: Kubernetes, an unmodified istiod, two nodes and their DPUs, and the product installed
//! on it from its images and chart.
//!
//! `layout` says who is where; `machine` makes nodes and DPUs out of namespaces; `control`, `node` and `dpu` start what
//! runs on them; `tools` and `images` provide it; `kubectl` asks.

#![forbid(unsafe_code)]
// Output for a person and the first failure is what matters in a test program.
#![allow(missing_debug_implementations)]

pub mod bookinfo;
pub mod checks;
pub mod cluster;
pub mod comparison;
pub mod control;
pub mod demo;
pub mod dpu;
pub mod images;
pub mod install;
pub mod kubectl;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod node;
pub mod pki;
pub mod pod;
pub mod product;
pub mod record;
pub mod sidecar;
pub mod state;
pub mod tools;
pub mod usage;
