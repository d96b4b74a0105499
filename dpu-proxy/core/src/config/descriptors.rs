//! Descriptors of Envoy's API, by which text is read (`json`) and unread fields are found (`census`).
//!
//! `descriptors/envoy.binpb` is made by `descriptors/generate.py`.

use prost_reflect::DescriptorPool;
use std::sync::OnceLock;

static ENVOY: &[u8] = include_bytes!("../../descriptors/envoy.binpb");

/// The pool, decoded at first use.
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(ENVOY).expect("the descriptor set is part of the program"))
}
