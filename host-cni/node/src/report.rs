//! What the controller is told of this node and its pods, for people to see: the state of each
//! attachment, an ADD that failed with its words, and how the host is.
//!
//! In: records, states of ports, failures. Out: reports, each the whole truth of its object at that moment.

use crate::daemon::Daemon;
use crate::forwarding::Ports;
use crate::mesh::Mesh;
use crate::record::{Phase, Pod, Record};
use istio_dpu_cni::error::CniError;
use mesh_api::dataplane::PortState;
use mesh_api::report::workload_report::Part;
use mesh_api::report::{Attachment, AttachmentState, HostStatus, NodeReport, WorkloadReport, node_report};
use service::report::Reporter;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What nobody announces (VFs, a pod that left) is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a failure of a pod that the controller does not tell of is kept.
const FORGET: Duration = Duration::from_secs(60);

/// ADDs that failed, by `NAMESPACE/POD`, until the pod is attached or leaves.
#[derive(Debug, Default)]
pub struct Failures {
    all: Mutex<BTreeMap<String, Failed>>,
}

#[derive(Clone, Debug)]
struct Failed {
    pod: Pod,
    reason: String,
    at: Instant,
}

impl Failures {
    /// An ADD came to its end.
    pub fn note(&self, pod: &Pod, failure: Option<&CniError>) {
        if pod.name.is_empty() {
            return;
        }
        let mut all = self.lock();
        match failure {
            None => drop(all.remove(&name(pod))),
            Some(error) => {
                let failed = Failed { pod: pod.clone(), reason: words(error), at: Instant::now() };
                all.insert(name(pod), failed);
            }
        }
    }

    /// Those that still matter.
    fn current(&self, mesh: &Mesh) -> BTreeMap<String, Failed> {
        let mut all = self.lock();
        all.retain(|_, failed| {
            let pod = &failed.pod;
            failed.at.elapsed() < FORGET || mesh.treatment(&pod.namespace, &pod.name, &pod.uid).is_some()
        });
        all.clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Failed>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn words(error: &CniError) -> String {
    match error.details.is_empty() {
        true => error.msg.clone(),
        false => format!("{}; {}", error.msg, error.details),
    }
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

impl Daemon {
    /// Reports what changes until `shutdown`.
    pub async fn report(self: Arc<Self>, reporter: Reporter, shutdown: CancellationToken) {
        let mut ports = self.forwarding.ports();
        let mut told = BTreeSet::new();
        loop {
            self.report_once(&reporter, &mut told).await;
            tokio::select! {
                _ = ports.changed() => {}
                () = self.news.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn report_once(&self, reporter: &Reporter, told: &mut BTreeSet<String>) {
        let reports = self.workload_reports();
        told.iter().filter(|name| !reports.contains_key(*name)).for_each(|name| reporter.remove(name));
        *told = reports.keys().cloned().collect();
        reports.into_values().for_each(|report| reporter.workload(report));
        let host = self.host_status().await;
        reporter.node(NodeReport { part: Some(node_report::Part::Host(host)) });
    }

    fn workload_reports(&self) -> BTreeMap<String, WorkloadReport> {
        let failures = self.failures.current(&self.mesh.borrow());
        let ports = self.forwarding.ports().borrow().clone();
        workloads(&self.records.list(), &ports, &failures)
    }

    async fn host_status(&self) -> HostStatus {
        let vfs = self.vfs().await;
        let (free, used) = vfs.clone().unwrap_or_default();
        let ports = self.forwarding.ports().borrow().clone();
        let underlay_address = ports.underlay_address;
        let refusals = some_of(ports.refusals).into_iter().map(|refusal| format!("the dataplane refused {refusal}"));
        let troubles = self.records.list().into_iter().filter(|record| !record.trouble.is_empty());
        let troubles =
            troubles.map(|record| format!("pod {} is not wholly detached: {}", name(&record.pod), record.trouble));
        let installed = self.health.reason(crate::install::CONDITION);
        let conditions = [self.dataplane().err(), vfs.err(), installed, self.pod_routes.problem()];
        HostStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            vfs_total: (free + used) as u32,
            vfs_free: free as u32,
            dataplane_connected: self.dataplane().is_ok(),
            underlay_address,
            problems: conditions.into_iter().flatten().chain(troubles).chain(refusals).collect(),
        }
    }
}

/// A screen's worth.
fn some_of(mut all: Vec<String>) -> Vec<String> {
    const SHOWN: usize = 10;
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    all.extend((more > 0).then(|| format!("{more} others")));
    all
}

/// One report for each pod. Of several attachments of a pod (a sandbox that was made again) the one
/// that is not being removed counts.
fn workloads(
    records: &[Record],
    ports: &Ports,
    failures: &BTreeMap<String, Failed>,
) -> BTreeMap<String, WorkloadReport> {
    let mut all: BTreeMap<String, WorkloadReport> = BTreeMap::new();
    let (going, live): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.phase == Phase::Removing);
    for record in going {
        all.insert(name(&record.pod), report(&record.pod, attachment(record, ports)));
    }
    for (name, failed) in failures {
        let failure = Attachment {
            state: AttachmentState::Failed.into(),
            reason: failed.reason.clone(),
            ..Attachment::default()
        };
        all.insert(name.clone(), report(&failed.pod, failure));
    }
    for record in live {
        all.insert(name(&record.pod), report(&record.pod, attachment(record, ports)));
    }
    all
}

fn report(pod: &Pod, attachment: Attachment) -> WorkloadReport {
    WorkloadReport {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        part: Some(Part::Attachment(attachment)),
    }
}

fn attachment(record: &Record, ports: &Ports) -> Attachment {
    let (state, reason) = state(record, ports);
    let mut attachment = Attachment { state: state.into(), reason, vf: record.vf.id.clone(), ..Attachment::default() };
    if let Some(port) = &record.port {
        attachment.port_id.clone_from(&port.id);
        attachment.addresses = port.addresses.iter().map(IpAddr::to_string).collect();
        attachment.mac = port.mac.to_string();
        attachment.network.clone_from(&port.network);
        attachment.governed = !port.ungoverned;
    }
    attachment
}

fn state(record: &Record, ports: &Ports) -> (AttachmentState, String) {
    let status = record.port.as_ref().and_then(|port| ports.statuses.get(&port.id));
    let status = status.filter(|status| status.workload_uid == record.pod.uid);
    let of_port = || match (&ports.connected, status) {
        (Err(reason), _) => reason.clone(),
        (Ok(()), Some(status)) => status.reason.clone(),
        (Ok(()), None) => String::new(),
    };
    match record.phase {
        Phase::Removing => (AttachmentState::Detaching, record.trouble.clone()),
        Phase::Adding => (AttachmentState::Attaching, of_port()),
        // While the dataplane is away, its ports are as it last said.
        Phase::Attached if status.is_some_and(|status| status.state() == PortState::Open) => {
            (AttachmentState::Open, String::new())
        }
        Phase::Attached => (AttachmentState::Closed, of_port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;
    use istio_dpu_cni::error::code;
    use mesh_api::dataplane::PortStatus;
    use mesh_api::type_url;
    use mesh_api::workload::Workload;
    use mesh_model::MacAddress;
    use xds::Resource;

    fn with_port(id: &str, phase: Phase) -> Record {
        let port = crate::record::Port {
            id: "vf1".to_owned(),
            representor: "pf0vf1".to_owned(),
            mac: MacAddress([2, 0, 0, 0, 0, 9]),
            addresses: vec!["10.1.0.9".parse().expect("address")],
            vni: 0,
            network: String::new(),
            ungoverned: false,
            bypass_on_failure: false,
        };
        Record { phase, port: Some(port), ..record(id, 1) }
    }

    fn ports(state: PortState, reason: &str, uid: &str) -> Ports {
        let status = PortStatus {
            id: "vf1".to_owned(),
            state: state.into(),
            reason: reason.to_owned(),
            workload_uid: uid.to_owned(),
        };
        Ports {
            connected: Ok(()),
            statuses: [("vf1".to_owned(), status)].into(),
            underlay_address: String::new(),
            host_interface: None,
            refusals: Vec::new(),
        }
    }

    fn told(records: &[Record], ports: &Ports, failures: &BTreeMap<String, Failed>) -> (AttachmentState, String) {
        let reports = workloads(records, ports, failures);
        let Some(Part::Attachment(attachment)) = reports["n/a"].part.clone() else { panic!("no attachment") };
        (attachment.state(), attachment.reason)
    }

    #[test]
    fn an_attachment_is_told_as_the_record_and_its_port_say() {
        let none = BTreeMap::new();
        let (closed, open) =
            (ports(PortState::Closed, "no configuration", "uid-a"), ports(PortState::Open, "", "uid-a"));
        let attached = [with_port("a", Phase::Attached)];
        let adding = [with_port("a", Phase::Adding)];
        assert_eq!(told(&adding, &closed, &none), (AttachmentState::Attaching, "no configuration".to_owned()));
        assert_eq!(told(&attached, &open, &none), (AttachmentState::Open, String::new()));
        assert_eq!(told(&attached, &closed, &none), (AttachmentState::Closed, "no configuration".to_owned()));
        let others = ports(PortState::Open, "", "uid-b");
        assert_eq!(told(&attached, &others, &none).0, AttachmentState::Closed, "the port is another pod's");
        let mut going = with_port("a", Phase::Removing);
        going.trouble = "no dataplane".to_owned();
        assert_eq!(told(&[going.clone()], &open, &none), (AttachmentState::Detaching, "no dataplane".to_owned()));
        let again = Record {
            key: crate::record::Key { container_id: "0".to_owned(), ifname: "eth0".to_owned() },
            ..adding[0].clone()
        };
        assert_eq!(told(&[again, going], &closed, &none).0, AttachmentState::Attaching, "a sandbox made again");
    }

    #[test]
    fn a_failure_is_told_with_its_words_until_the_pod_is_attached_or_leaves() {
        let failures = Failures::default();
        let pod = Pod { namespace: "n".to_owned(), name: "a".to_owned(), uid: "uid-a".to_owned() };
        let mut mesh = Mesh::default();
        let workload = Workload { uid: "uid-a".to_owned(), ..Workload::default() };
        mesh.apply(type_url::WORKLOAD, &[Resource::new("n/a", &workload)], &[]).expect("valid");
        let error = CniError::new(code::VF_NOT_FREE, "no VF is free").hint("make more");
        failures.note(&pod, Some(&error));
        failures.note(&Pod::default(), Some(&error));
        let ports = ports(PortState::Closed, "", "uid-a");
        let current = failures.current(&mesh);
        assert_eq!(current.len(), 1);
        assert_eq!(told(&[], &ports, &current), (AttachmentState::Failed, "no VF is free; make more".to_owned()));
        assert_eq!(told(&[with_port("a", Phase::Adding)], &ports, &current).0, AttachmentState::Attaching);
        assert_eq!(told(&[with_port("a", Phase::Removing)], &ports, &current).0, AttachmentState::Failed);
        failures.note(&pod, None);
        assert!(failures.current(&mesh).is_empty());
    }

    #[test]
    fn a_failure_of_a_pod_that_left_is_forgotten() {
        let failures = Failures::default();
        let pod = Pod { namespace: "n".to_owned(), name: "a".to_owned(), uid: "uid-a".to_owned() };
        failures.note(&pod, Some(&CniError::new(code::IO, "x")));
        let Some(long_ago) = Instant::now().checked_sub(FORGET) else { return };
        failures.lock().values_mut().for_each(|failed| failed.at = long_ago);
        assert!(failures.current(&Mesh::default()).is_empty());
    }
}
