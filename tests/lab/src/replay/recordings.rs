//! The recorded responses, by workload and scenario; loaded and checked once.

use super::{Scenario, derived};
use anyhow::{Context, Result, bail};
use mesh_api::Any;
use mesh_api::envoy::service::discovery::v3::DiscoveryResponse;
use mesh_api::type_url;
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Resources of one type by name.
pub type Table = BTreeMap<String, Any>;
/// All types of one workload.
pub type Tables = BTreeMap<&'static str, Table>;

/// Recorded files and their types, in the order in which istiod pushes.
const TYPES: [(&str, &str); 6] = [
    ("CDS", type_url::CLUSTER),
    ("EDS", type_url::CLUSTER_LOAD_ASSIGNMENT),
    ("LDS", type_url::LISTENER),
    ("RDS", type_url::ROUTE_CONFIGURATION),
    ("ECDS", type_url::EXTENSION_CONFIG),
    ("NDS", type_url::NAME_TABLE),
];

/// The order of a push.
pub const PUSH_ORDER: [&str; 6] = [TYPES[0].1, TYPES[1].1, TYPES[2].1, TYPES[3].1, TYPES[4].1, TYPES[5].1];

/// Everything that was recorded.
#[derive(Clone, Debug)]
pub struct Recordings {
    workloads: BTreeMap<String, BTreeMap<&'static str, Arc<Tables>>>,
}

impl Recordings {
    /// Reads all workloads of `0-demo` and the changes to them.
    pub fn load(folder: &Path) -> Result<Self> {
        let base = folder.join(Scenario::Demo.as_str());
        let entries = std::fs::read_dir(&base).with_context(|| format!("no recordings in {}", base.display()))?;
        let mut workloads = BTreeMap::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            workloads.insert(name.clone(), scenarios(folder, &name)?);
        }
        Ok(Self { workloads })
    }

    /// What a workload is served.
    pub fn tables(&self, pod: &str, scenario: Scenario) -> Option<Arc<Tables>> {
        self.workloads.get(pod)?.get(scenario.as_str()).cloned()
    }

    /// Names of the workloads.
    pub fn workloads(&self) -> impl Iterator<Item = &str> {
        self.workloads.keys().map(String::as_str)
    }
}

fn scenarios(folder: &Path, pod: &str) -> Result<BTreeMap<&'static str, Arc<Tables>>> {
    let demo = read(&folder.join(Scenario::Demo.as_str()).join(pod))?;
    let mut shift = demo.clone();
    for (kind, table) in read(&folder.join(Scenario::Shift.as_str()).join(pod))? {
        shift.entry(kind).or_default().extend(table);
    }
    Ok(BTreeMap::from([
        (Scenario::Shift.as_str(), Arc::new(shift)),
        (Scenario::Open.as_str(), Arc::new(derived::open(&demo)?)),
        (Scenario::Broken.as_str(), Arc::new(derived::broken(&demo))),
        (Scenario::Dangling.as_str(), Arc::new(derived::dangling(&demo))),
        (Scenario::Misplaced.as_str(), Arc::new(derived::misplaced(&demo)?)),
        (Scenario::Demo.as_str(), Arc::new(demo)),
    ]))
}

/// The files of one folder; a file that is absent has no resources.
fn read(folder: &Path) -> Result<Tables> {
    let mut tables = Tables::new();
    for (file, kind) in TYPES {
        let path = folder.join(format!("{file}.pb"));
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let response = DiscoveryResponse::decode(bytes.as_slice())
            .with_context(|| format!("{} is no response", path.display()))?;
        let table = response.resources.into_iter().map(|resource| Ok((name_of(kind, &resource)?, resource)));
        tables.insert(kind, table.collect::<Result<_>>()?);
    }
    Ok(tables)
}

/// Field 1 of Envoy's discovery types. A name table has no name.
fn name_of(kind: &str, resource: &Any) -> Result<String> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    if kind == type_url::NAME_TABLE {
        return Ok(String::new());
    }
    match Named::decode(resource.value.as_slice())?.name {
        name if name.is_empty() => bail!("a recorded {kind} has no name"),
        name => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::fixtures;

    #[test]
    fn each_scenario_changes_one_type_only() {
        let recordings = Recordings::load(&fixtures()).expect("fixtures");
        assert_eq!(recordings.workloads().count(), 8);
        let of = |scenario| recordings.tables("ratings-v1", scenario).expect("recorded");
        let (demo, shift, open) = (of(Scenario::Demo), of(Scenario::Shift), of(Scenario::Open));
        let differing = |other: &Tables| -> Vec<&str> {
            PUSH_ORDER.into_iter().filter(|kind| demo.get(kind) != other.get(kind)).collect()
        };
        assert_eq!(differing(&shift), [type_url::ROUTE_CONFIGURATION]);
        assert_eq!(differing(&open), [type_url::LISTENER]);
        assert_eq!(demo[type_url::LISTENER].len(), open[type_url::LISTENER].len());
        assert_eq!(differing(&of(Scenario::Broken)), [type_url::LISTENER]);
        assert_eq!(differing(&of(Scenario::Dangling)), [type_url::CLUSTER]);
        assert_eq!(differing(&of(Scenario::Misplaced)), [type_url::CLUSTER_LOAD_ASSIGNMENT]);
    }
}
