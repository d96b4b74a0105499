//! ADD: each step is announced in the record before it is done, and undone from it when a later one fails.

use crate::call::Asked;
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::ipam::{self, IpamError};
use crate::mesh::Treatment;
use crate::plumbing;
use crate::record::{Ipam, Key, Phase, Pod, Port, Record};
use crate::sys::Namespace;
use crate::vf::{ChooseError, Vf, choose};
use istio_dpu_cni::error::{CniError, code};
use istio_dpu_cni::result::{AddResult, Address, IpamResult, Route};
use mesh_model::MacAddress;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is decided before anything is done.
struct Plan {
    pod: Pod,
    treatment: Treatment,
    network: String,
    vni: u32,
    mtu: Option<u32>,
    mac: Option<MacAddress>,
}

/// Undoes an ADD that did not come to its end: at once when a step fails, and by the recovery task
/// when the call was dropped (timeout, panic).
struct Undo<'a> {
    daemon: &'a Daemon,
    committed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.daemon.leftover.notify_one();
        }
    }
}

impl Daemon {
    /// Attaches a pod, or leaves nothing behind.
    pub async fn add(&self, asked: &Asked) -> Result<AddResult, CniError> {
        asked.require_pod()?;
        let deadline = Instant::now() + asked.conf.ready_timeout;
        let _held = self.locks.lock(&asked.key.container_id).await;
        self.clear(&asked.key).await?;
        // Before anything is made, so that there is nothing to undo.
        let pod_namespace = Namespace::open(Path::new(&asked.call.netns)).await.map_err(Failure::from)?;
        let plan = self.plan(asked, deadline).await?;
        let mut undo = Undo { daemon: self, committed: false };
        let record = self.lease(asked, &plan).await?;
        match self.steps(asked, &plan, &record, &pod_namespace, deadline).await {
            Ok(result) => {
                undo.committed = true;
                Ok(result)
            }
            Err(failure) => {
                let error = CniError::from(failure);
                undo.committed = self.undo(&asked.key).await.is_ok_and(|left| left.is_none());
                Err(error)
            }
        }
    }

    /// An attachment of that name must not be there; what is left of an earlier attempt is undone.
    async fn clear(&self, key: &Key) -> Result<(), CniError> {
        let Some(record) = self.records.get(key) else { return Ok(()) };
        if record.phase == Phase::Attached {
            let error =
                CniError::new(code::ALREADY_ATTACHED, format!("{key} is attached already, with VF {}", record.vf.id));
            return Err(error.hint("DEL comes first"));
        }
        match self.undo(key).await? {
            None => Ok(()),
            Some(trouble) => {
                let error = CniError::new(
                    code::TRY_AGAIN_LATER,
                    format!("an earlier ADD of {key} is still being undone: {trouble}"),
                );
                Err(error.hint("see /attachments of the daemon"))
            }
        }
    }

    async fn plan(&self, asked: &Asked, deadline: Instant) -> Result<Plan, CniError> {
        let treatment = self.known(&asked.pod, deadline).await?;
        let mesh = self.mesh.borrow();
        let workload = mesh.workload(&asked.pod.namespace, &asked.pod.name);
        let of_pod = workload.map(|workload| workload.network.clone()).unwrap_or_default();
        let of_conf = of_pod.is_empty();
        let network = if of_conf { asked.conf.network.clone() } else { of_pod };
        let who = match of_conf {
            true => format!("the network configuration {}", asked.conf.name),
            false => format!("pod {}/{}", asked.pod.namespace, asked.pod.name),
        };
        let (vni, network_mtu) = mesh.network(&network, &who)?;
        let mut pod = asked.pod.clone();
        if pod.uid.is_empty() {
            // Older runtimes do not pass it; the sandbox is as unique.
            let told = workload.map(|workload| workload.uid.clone()).unwrap_or_default();
            pod.uid = if told.is_empty() { asked.key.container_id.clone() } else { told };
        }
        let mac = asked.conf.mac.as_deref().map(str::parse).transpose();
        let mac = mac.map_err(|error: mesh_model::MacError| {
            CniError::new(code::INVALID_CONFIG, format!("runtimeConfig.mac: {error}"))
        })?;
        Ok(Plan { pod, treatment, network, vni, mtu: asked.conf.mtu.or(network_mtu), mac })
    }

    /// Waits until the controller tells of the pod: it says whether the pod is in the mesh.
    async fn known(&self, pod: &Pod, deadline: Instant) -> Result<Treatment, CniError> {
        let mut mesh = self.mesh.clone();
        let told = mesh.wait_for(|mesh| mesh.treatment(&pod.namespace, &pod.name, &pod.uid).is_some());
        let told = tokio::time::timeout_at(deadline.into(), told).await;
        let told = told.is_ok_and(|told| told.is_ok());
        let treatment = told.then(|| self.mesh.borrow().treatment(&pod.namespace, &pod.name, &pod.uid)).flatten();
        treatment.ok_or_else(|| self.unknown(pod))
    }

    fn unknown(&self, pod: &Pod) -> CniError {
        let Pod { namespace, name, uid } = pod;
        let (msg, hint) = match (self.controller(), self.mesh.borrow().workload(namespace, name)) {
            (Err(reason), _) => {
                (reason, "check the connection to the controller, and /readyz of this daemon".to_owned())
            }
            (Ok(()), None) => (
                format!("the controller does not know pod {namespace}/{name} on this node"),
                "it must be scheduled to this node; see the controller's log and /refusals".to_owned(),
            ),
            (Ok(()), Some(other)) => (
                format!("the controller knows pod {namespace}/{name} with uid {} and not {uid}", other.uid),
                "a pod of that name is being replaced".to_owned(),
            ),
        };
        CniError::new(code::TRY_AGAIN_LATER, msg).hint(hint)
    }

    /// Chooses a VF and writes that it belongs to this container, before anything else.
    async fn lease(&self, asked: &Asked, plan: &Plan) -> Result<Record, Failure> {
        let present = self.provider.list(&self.host).await?;
        self.records.create::<Failure>(|all| {
            let leased: Vec<Vf> = all.values().map(|record| record.vf.clone()).collect();
            let chosen = choose(&present, asked.conf.device_id.as_deref(), &leased);
            let vf = chosen.map_err(|error| with_users(error, all))?.clone();
            Ok(Record {
                key: asked.key.clone(),
                phase: Phase::Adding,
                pod: plan.pod.clone(),
                call: asked.call.clone(),
                ipam: None,
                port: None,
                moved: false,
                mtu: plan.mtu.unwrap_or(vf.mtu),
                vf,
                trouble: String::new(),
            })
        })
    }

    async fn steps(
        &self,
        asked: &Asked,
        plan: &Plan,
        record: &Record,
        pod: &Namespace,
        deadline: Instant,
    ) -> Result<AddResult, Failure> {
        let addresses = self.address(asked).await?;
        let port = self.port(plan, record, &addresses).await?;
        self.move_in(record, &port, pod, &addresses).await?;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.forwarding.wait_open(&port.id, &record.pod.uid, left).await?;
        self.records.update(&record.key, |record| record.phase = Phase::Attached)?;
        Ok(result(record, &port, &addresses))
    }

    async fn address(&self, asked: &Asked) -> Result<IpamResult, Failure> {
        let plugin = asked.conf.ipam_type.clone().ok_or_else(|| {
            CniError::new(code::INVALID_CONFIG, "network configuration: ipam is missing")
                .hint("e.g. \"ipam\": {\"type\": \"host-local\", …}")
        })?;
        let version = ipam::negotiate(&plugin, asked.conf.version, &asked.call).await?;
        let delegate = Ipam { plugin, version: version.as_str().to_owned(), result: None };
        self.records.update(&asked.key, |record| record.ipam = Some(delegate.clone()))?;
        let result = match ipam::add(&delegate, &asked.key, &asked.call).await {
            Err(refused @ IpamError::Refused { .. }) => {
                self.forget_refused(asked, &delegate).await?;
                return Err(refused.into());
            }
            other => other?,
        };
        let answered = Ipam { result: Some(result.clone()), ..delegate };
        self.records.update(&asked.key, |record| record.ipam = Some(answered))?;
        Ok(result)
    }

    /// A plugin that refuses ADD holds nothing. It is told DEL once, as the specification wants; what
    /// it says to that cannot keep the VF for ever (a bad ipam section is refused in DEL too).
    async fn forget_refused(&self, asked: &Asked, delegate: &Ipam) -> Result<(), Failure> {
        if let Err(error) = ipam::delete(delegate, &asked.key, &asked.call).await {
            tracing::warn!(key = %asked.key, %error, "after the refused ADD");
        }
        self.records.update(&asked.key, |record| record.ipam = None)?;
        Ok(())
    }

    async fn port(&self, plan: &Plan, record: &Record, addresses: &IpamResult) -> Result<Port, Failure> {
        let port = Port {
            id: record.vf.id.clone(),
            representor: record.vf.representor.clone(),
            mac: plan.mac.unwrap_or(record.vf.mac),
            addresses: addresses.ips.iter().map(|ip| ip.address.addr()).collect(),
            vni: plan.vni,
            network: plan.network.clone(),
            ungoverned: !plan.treatment.governed,
            bypass_on_failure: plan.treatment.bypass_on_failure,
        };
        self.records.update(&record.key, |record| record.port = Some(port.clone()))?;
        self.forwarding.put_port(port.to_wire(&record.pod)).await?;
        // From here the adapter may fetch what the pod needs, so that the port can open.
        self.publisher.refresh();
        Ok(port)
    }

    async fn move_in(
        &self,
        record: &Record,
        port: &Port,
        pod: &Namespace,
        addresses: &IpamResult,
    ) -> Result<(), Failure> {
        self.records.update(&record.key, |record| record.moved = true)?;
        self.provider.program(&self.host, &record.vf, port.mac).await?;
        let link = plumbing::give(&self.host, pod, &record.vf, &record.key.ifname).await?;
        Ok(plumbing::set_up(pod, &link, port.mac, record.mtu, addresses).await?)
    }
}

/// Who has the VFs, for whoever gets none.
fn with_users(error: ChooseError, all: &BTreeMap<Key, Record>) -> Failure {
    const SHOWN: usize = 8;
    let is_full = matches!(error, ChooseError::NoneFree { total } if total > 0);
    let error = CniError::from(Failure::from(error));
    if !is_full {
        return error.into();
    }
    let mut users: Vec<String> =
        all.values().take(SHOWN).map(|record| format!("{}/{}", record.pod.namespace, record.pod.name)).collect();
    if all.len() > SHOWN {
        users.push(format!("{} more", all.len() - SHOWN));
    }
    CniError { msg: format!("{}, by {}", error.msg, users.join(", ")), ..error }.into()
}

fn result(record: &Record, port: &Port, ipam: &IpamResult) -> AddResult {
    let addresses = plumbing::host_addresses(ipam).into_iter();
    let routes = plumbing::routes(ipam).into_iter();
    AddResult {
        ifname: record.key.ifname.clone(),
        mac: port.mac.to_string(),
        sandbox: record.call.netns.clone(),
        mtu: record.mtu,
        pci_id: record.vf.pci().map(str::to_owned),
        addresses: addresses
            .map(|address| Address { gateway: Some(plumbing::gateway(address.addr().is_ipv4())), address })
            .collect(),
        routes: routes.map(|route| Route { dst: route.destination, gw: route.gateway }).collect(),
        dns: ipam.dns.clone(),
    }
}
