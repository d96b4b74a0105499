//! What a DPU needs: certificates of its two programs, their static pods, and the proxy's bootstrap.

pub mod authority;
pub mod certificates;
pub mod files;
pub mod manifest;
pub mod settings;
