//! The resources in force.

use crate::shared::Report;
use crate::tls::secrets::{KeyPair, Roots};
use dpu_proxy_core::model::Snapshot;
use std::collections::HashMap;
use std::sync::Arc;
use xds::Rejected;
use xds::client::Update;

/// TEMPORARY
#[derive(Clone, Debug, serde::Serialize)]
pub struct Unsupported {
    pub resource: String,
    pub path: String,
    pub reason: String,
}

/// Names of a type that are wanted from now on, and no longer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterestChange {
    pub type_url: &'static str,
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Configuration {
    snapshot: Arc<Snapshot>,
}

impl Configuration {
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot)
    }
    pub fn is_complete(&self) -> bool {
        true
    }
    pub fn wait_no_longer(&mut self) {}
    pub fn update(&mut self, _update: &Update) -> Vec<Rejected> {
        Vec::new()
    }
    pub fn changes_of_interest(&mut self) -> Vec<InterestChange> {
        Vec::new()
    }
    pub fn secrets(&self) -> (HashMap<String, KeyPair>, HashMap<String, Roots>) {
        Default::default()
    }
    pub fn describe(&self, _report: &mut Report) {}
}
