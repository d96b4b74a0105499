//! A recording in files.

use crate::stream::Recording;
use anyhow::{Context, Result};
use istio_dpu_adapter::node::{self, MeshSettings};
use istio_dpu_adapter::pod::Pod;
use mesh_api::envoy::service::discovery::v3::DiscoveryResponse;
use mesh_api::{Any, type_url};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Types by the names of their files.
const FILES: [(&str, &str); 7] = [
    ("CDS", type_url::CLUSTER),
    ("EDS", type_url::CLUSTER_LOAD_ASSIGNMENT),
    ("LDS", type_url::LISTENER),
    ("RDS", type_url::ROUTE_CONFIGURATION),
    ("ECDS", type_url::EXTENSION_CONFIG),
    ("NDS", type_url::NAME_TABLE),
    ("PCDS", type_url::PROXY_CONFIG),
];

/// Writes what differs from `since`; returns what was written, for a person.
pub fn write(
    out: &Path,
    since: Option<&Path>,
    pod: &Pod,
    settings: &MeshSettings,
    recording: &Recording,
) -> Result<String> {
    let name = &pod.workload.name;
    let folder = out.join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let metadata = serde_json::to_string_pretty(&node::metadata(pod, settings))?;
    put(&folder.join("node-metadata.json"), (metadata + "\n").as_bytes())?;
    let pool = dpu_proxy_core::config::descriptors::everything();
    let mut written = Vec::new();
    for (file, kind) in FILES {
        let resources = recording.get(kind).cloned().unwrap_or_default();
        let encoded = response(kind, &resources).encode_to_vec();
        let before = since.map(|since| std::fs::read(since.join(name).join(format!("{file}.pb"))));
        if before.is_some_and(|before| before.is_ok_and(|before| before == encoded)) {
            continue;
        }
        put(&folder.join(format!("{file}.pb")), &encoded)?;
        put(&folder.join(format!("{file}.json")), text(&pool, &resources)?.as_bytes())?;
        written.push(format!("{} {file}", resources.len()));
    }
    Ok(written.join(", "))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn response(kind: &str, resources: &BTreeMap<String, Any>) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: "1".to_owned(),
        resources: resources.values().cloned().collect(),
        type_url: kind.to_owned(),
        nonce: "1".to_owned(),
        ..DiscoveryResponse::default()
    }
}

/// An array with a line for each resource.
fn text(pool: &DescriptorPool, resources: &BTreeMap<String, Any>) -> Result<String> {
    let lines: Vec<String> = resources.iter().map(|(name, body)| line(pool, name, body)).collect::<Result<_>>()?;
    Ok(format!("[\n{}\n]\n", lines.join(",\n")))
}

fn line(pool: &DescriptorPool, name: &str, body: &Any) -> Result<String> {
    let described = described(pool, body).unwrap_or_else(|| json!({ "name": name, "see": "the .pb file" }));
    let Value::Object(mut fields) = described else { anyhow::bail!("{name} is no message") };
    fields.insert("@type".to_owned(), json!(body.type_url));
    Ok(serde_json::to_string(&fields)?)
}

/// Proto JSON, where the type is known.
fn described(pool: &DescriptorPool, body: &Any) -> Option<Value> {
    let message = pool.get_message_by_name(body.type_url.rsplit('/').next()?)?;
    let message = DynamicMessage::decode(message, body.value.as_slice()).ok()?;
    serde_json::to_value(&message).ok()
}
