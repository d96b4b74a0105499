//! Write-ahead records: what was done for each attachment, and what is about to be done.
//!
//! One file per container and interface, replaced atomically and synced before the step that it
//! announces. Whatever dies, the record says what there is to undo.

use crate::vf::Vf;
use istio_dpu_cni::environment::Arguments;
use istio_dpu_cni::result::IpamResult;
use mesh_api::dataplane::{OnFailure, Steering};
use mesh_model::MacAddress;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Extension of a record that is being written.
const DRAFT: &str = "draft";

/// Names one attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub container_id: String,
    pub ifname: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.container_id, self.ifname)
    }
}

/// Where an attachment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// ADD is under way.
    Adding,
    /// ADD succeeded.
    Attached,
    /// It is being undone; what could not be undone yet is still in the record.
    Removing,
}

/// Whose attachment it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl From<&Arguments> for Pod {
    fn from(arguments: &Arguments) -> Self {
        let Arguments { pod_namespace, pod_name, pod_uid, .. } = arguments.clone();
        Self { namespace: pod_namespace, name: pod_name, uid: pod_uid }
    }
}

/// What the runtime passed, as delegates need it again to undo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Name of the network in the runtime's configuration.
    pub network: String,
    /// Path of the pod's namespace.
    pub netns: String,
    pub cni_path: String,
    pub cni_args: String,
    pub netconf: Map<String, Value>,
}

/// The delegated address management.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ipam {
    pub plugin: String,
    /// CNI version that it is spoken to in.
    pub version: String,
    /// `None` until it answered.
    pub result: Option<IpamResult>,
}

/// The dataplane port that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub id: String,
    pub representor: String,
    pub mac: MacAddress,
    pub addresses: Vec<IpAddr>,
    pub vni: u32,
    /// Name of the mesh network; empty: the default one.
    pub network: String,
    /// Outside the mesh: nothing is steered.
    pub ungoverned: bool,
    /// Forwarded when it cannot be governed.
    pub bypass_on_failure: bool,
}

impl Port {
    /// On the wire.
    pub fn to_wire(&self, pod: &Pod) -> mesh_api::dataplane::Port {
        let steering = if self.ungoverned { Steering::None } else { Steering::Tcp };
        let on_failure = if self.bypass_on_failure { OnFailure::Bypass } else { OnFailure::Closed };
        mesh_api::dataplane::Port {
            id: self.id.clone(),
            representor: self.representor.clone(),
            mac: self.mac.to_string(),
            addresses: self.addresses.iter().map(IpAddr::to_string).collect(),
            vni: self.vni,
            workload_uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            steering: steering.into(),
            on_failure: on_failure.into(),
        }
    }
}

/// One attachment. A part is present from just before it is made until it is known to be undone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub key: Key,
    pub phase: Phase,
    pub pod: Pod,
    pub call: Call,
    /// Leased for as long as the record exists.
    pub vf: Vf,
    pub ipam: Option<Ipam>,
    pub port: Option<Port>,
    /// The VF may be in the pod's namespace.
    pub moved: bool,
    /// Bytes.
    pub mtu: u32,
    /// Why it could not be undone yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trouble: String,
}

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} record {path}: {source}")]
pub struct RecordError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    all: Mutex<BTreeMap<Key, Record>>,
}

impl Records {
    /// Reads the folder, making it if need be. A file that is no record is set aside by name.
    pub fn open(folder: &Path) -> Result<Self, RecordError> {
        let failed = |source| RecordError { action: "open the folder of", path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                all.extend(read(&path).map(|record| (record.key.clone(), record)));
            } else if path.extension().is_some_and(|extension| extension == DRAFT) {
                // A write that a crash cut short: the step that it announces was never begun.
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(Self { folder: folder.to_owned(), all: Mutex::new(all) })
    }

    /// One record.
    pub fn get(&self, key: &Key) -> Option<Record> {
        self.lock().get(key).cloned()
    }

    /// All records, in key order.
    pub fn list(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    /// Makes a record out of all others, so that two callers cannot choose the same VF.
    pub fn create<E: From<RecordError>>(
        &self,
        make: impl FnOnce(&BTreeMap<Key, Record>) -> Result<Record, E>,
    ) -> Result<Record, E> {
        let mut all = self.lock();
        let record = make(&all)?;
        self.write(&record)?;
        all.insert(record.key.clone(), record.clone());
        Ok(record)
    }

    /// Changes a record, on disk first. `None` when there is none.
    pub fn update(&self, key: &Key, change: impl FnOnce(&mut Record)) -> Result<Option<Record>, RecordError> {
        let mut all = self.lock();
        let Some(mut record) = all.get(key).cloned() else { return Ok(None) };
        change(&mut record);
        if all.get(key) != Some(&record) {
            self.write(&record)?;
            all.insert(key.clone(), record.clone());
        }
        Ok(Some(record))
    }

    /// Forgets a record.
    pub fn remove(&self, key: &Key) -> Result<(), RecordError> {
        let mut all = self.lock();
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(RecordError { action: "remove", path, source });
            }
            _ => {}
        }
        self.sync_folder()?;
        all.remove(key);
        Ok(())
    }

    fn write(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.key);
        let draft = path.with_extension(DRAFT);
        let write = || -> io::Result<()> {
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        };
        write().map_err(|source| RecordError { action: "write", path: path.clone(), source })?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), RecordError> {
        let sync = || File::open(&self.folder)?.sync_all();
        sync().map_err(|source| RecordError { action: "sync the folder of", path: self.folder.clone(), source })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Record>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Option<Record> {
    let parsed = fs::read(path).map_err(|error| error.to_string());
    let parsed = parsed.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
    match parsed {
        Ok(record) => Some(record),
        Err(reason) => {
            let aside = path.with_extension("unreadable");
            tracing::error!(path = %path.display(), reason, aside = %aside.display(), "not a record; set aside");
            // It stays where it is when it cannot be renamed: nothing is lost either way.
            let _ = fs::rename(path, aside);
            None
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sys::Device;

    pub(crate) fn record(id: &str, vf_number: u32) -> Record {
        Record {
            key: Key { container_id: id.to_owned(), ifname: "eth0".to_owned() },
            phase: Phase::Adding,
            pod: Pod { namespace: "n".to_owned(), name: id.to_owned(), uid: format!("uid-{id}") },
            call: Call {
                network: "mesh".to_owned(),
                netns: "/run/netns/x".to_owned(),
                cni_path: String::new(),
                cni_args: String::new(),
                netconf: Map::new(),
            },
            vf: Vf {
                id: format!("vf{vf_number}"),
                name: format!("vf{vf_number}"),
                mac: MacAddress([2, 0, 0, 0, 0, 9]),
                mtu: 1500,
                device: Device::VethPeer(7),
                number: vf_number,
                representor: format!("pf0vf{vf_number}"),
            },
            ipam: None,
            port: None,
            moved: false,
            mtu: 1500,
            trouble: String::new(),
        }
    }

    #[test]
    fn records_survive_a_restart_as_they_were_last_written() {
        let folder = tempfile::tempdir().expect("folder");
        let records = Records::open(folder.path()).expect("open");
        let made = records.create::<RecordError>(|_| Ok(record("a", 1))).expect("create");
        records.update(&made.key, |record| record.phase = Phase::Attached).expect("update");
        let again = Records::open(folder.path()).expect("open");
        assert_eq!(again.list(), records.list());
        assert_eq!(again.get(&made.key).expect("there").phase, Phase::Attached);
        again.remove(&made.key).expect("remove");
        again.remove(&made.key).expect("twice");
        assert!(Records::open(folder.path()).expect("open").list().is_empty());
    }

    #[test]
    fn a_file_that_is_no_record_is_set_aside_and_the_rest_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let records = Records::open(folder.path()).expect("open");
        records.create::<RecordError>(|_| Ok(record("a", 1))).expect("create");
        fs::write(folder.path().join("b@eth0.json"), "{").expect("write");
        fs::write(folder.path().join("c@eth0.draft"), "half").expect("write");
        assert_eq!(Records::open(folder.path()).expect("open").list().len(), 1);
        assert!(folder.path().join("b@eth0.unreadable").exists());
        assert!(!folder.path().join("c@eth0.draft").exists(), "its step was never begun");
    }

    #[test]
    fn a_record_that_cannot_be_written_is_not_kept_in_memory() {
        let folder = tempfile::tempdir().expect("folder");
        let records = Records::open(&folder.path().join("records")).expect("open");
        fs::remove_dir_all(folder.path().join("records")).expect("remove");
        assert!(records.create::<RecordError>(|_| Ok(record("a", 1))).is_err());
        assert!(records.list().is_empty());
    }
}
