//! `istio-dpu-adapter`: an ordinary client of the mesh's control plane for the pods of its host.
//!
//! In: the controller's view of this node, what the node daemon has attached, and one discovery
//! stream per governed pod from the control plane. Out: shared configuration for `dpu-proxy`, each
//! distinct resource once, and certificates for identities that are attached here. `translate` is
//! the pure core; `shell` holds the sockets.

#![forbid(unsafe_code)]

pub mod membership;
pub mod node;
pub mod pod;
pub mod quiet;
pub mod shell;
pub mod translate;
