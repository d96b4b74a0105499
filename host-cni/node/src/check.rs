//! CHECK: the pod, the dataplane and IPAM are as ADD left them.

use crate::call::Asked;
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::intent;
use crate::ipam;
use crate::plumbing;
use crate::record::{Ipam, Phase, Port, Record};
use crate::sys::Namespace;
use istio_dpu_cni::error::{CniError, code};
use istio_dpu_cni::result::IpamResult;
use serde_json::Value;
use std::path::Path;

impl Daemon {
    /// An error names everything that differs.
    pub async fn check(&self, asked: &Asked) -> Result<(), CniError> {
        let _held = self.locks.lock(&asked.key.container_id).await;
        let record = self.records.get(&asked.key).filter(|record| record.phase == Phase::Attached);
        let record = record.ok_or_else(|| failed(&[format!("{} is not attached", asked.key)]))?;
        let (Some(port), Some(delegate)) = (&record.port, &record.ipam) else {
            return Err(failed(&[format!("the record of {} is incomplete", asked.key)]));
        };
        let result = delegate.result.clone().unwrap_or_default();
        let pod = Namespace::open(Path::new(&asked.call.netns)).await.map_err(Failure::from)?;
        let mut all = plumbing::differences(&pod, &record, port, &result).await.map_err(Failure::from)?;
        all.extend(told_otherwise(asked.conf.previous_result.as_ref(), &result));
        all.extend(self.port_differs(&record, port).await?);
        self.check_ipam(asked, delegate).await?;
        if all.is_empty() { Ok(()) } else { Err(failed(&all)) }
    }

    async fn port_differs(&self, record: &Record, port: &Port) -> Result<Option<String>, CniError> {
        let held = self.forwarding.get_port(&port.id).await.map_err(Failure::from)?;
        let wanted = intent::port(record, &self.mesh.borrow());
        Ok(match held {
            None => Some(format!("the dataplane has no port {}", port.id)),
            Some(held) if Some(&held) != wanted.as_ref() => {
                Some(format!("port {} of the dataplane is another's", port.id))
            }
            Some(_) => None,
        })
    }

    async fn check_ipam(&self, asked: &Asked, delegate: &Ipam) -> Result<(), CniError> {
        let Some(previous) = &asked.conf.previous_result else { return Ok(()) };
        Ok(ipam::check(delegate, &asked.key, &asked.call, previous).await.map_err(Failure::from)?)
    }
}

/// Whether the runtime remembers other addresses.
fn told_otherwise(previous: Option<&Value>, ipam: &IpamResult) -> Option<String> {
    let remembered: IpamResult = serde_json::from_value(previous?.clone()).ok()?;
    let addresses = |result: &IpamResult| result.ips.iter().map(|ip| ip.address.addr()).collect::<Vec<_>>();
    let (theirs, ours) = (addresses(&remembered), addresses(ipam));
    (theirs != ours).then(|| format!("prevResult has addresses {theirs:?} and the record {ours:?}"))
}

fn failed(differences: &[String]) -> CniError {
    CniError::new(code::CHECK_FAILED, differences.join("; ")).hint("delete the pod, so that it is attached anew")
}
