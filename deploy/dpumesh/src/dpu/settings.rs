//! What the installation chose and a DPU must know: the ConfigMap that the chart writes.

use serde::Deserialize;
use std::net::IpAddr;

/// Key of the ConfigMap.
pub const KEY: &str = "settings.json";

/// Choices of the chart's values, with their names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    pub image: Image,
    pub management: Management,
    pub istiod: Istiod,
    pub dpu: Dpu,
    pub log: Log,
    pub ca_secret: String,
}

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// With the slash at its end.
    pub registry: String,
    pub tag: String,
    pub pull_policy: String,
}

/// The two ends of the link between host and DPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Management {
    pub host_address: IpAddr,
    pub dpu_address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Istiod {
    pub cluster_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dpu {
    pub uplink: String,
    /// To the host; empty: none.
    #[serde(default)]
    pub host_interface: String,
    /// Worker threads of the proxy; 0: one for each core.
    pub proxy_concurrency: u16,
    /// How long connections of a proxy that is replaced may go on.
    #[serde(default = "proxy_drain_seconds")]
    pub proxy_drain_seconds: u32,
}

/// As the chart's: an installation of an older chart says nothing of it.
fn proxy_drain_seconds() -> u32 {
    600
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Log {
    pub level: String,
    pub format: String,
}

impl Settings {
    /// Reads the ConfigMap's text.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}
