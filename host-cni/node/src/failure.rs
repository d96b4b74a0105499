//! What went wrong, as a CNI error: the code that tells the runtime what to do, and what a person can do.

use crate::forwarding::ForwardingError;
use crate::ipam::IpamError;
use crate::record::RecordError;
use crate::sys::KernelError;
use crate::vf::{ChooseError, VfError};
use istio_dpu_cni::error::{CniError, code};

/// Any failed step of a call.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Cni(#[from] CniError),
    #[error("{0}")]
    Choose(#[from] ChooseError),
    #[error("{0}")]
    Ipam(#[from] IpamError),
    #[error("{0}")]
    Forwarding(#[from] ForwardingError),
    #[error("{0}")]
    Kernel(#[from] KernelError),
    #[error("{0}")]
    Vf(#[from] VfError),
    #[error("{0}")]
    Record(#[from] RecordError),
}

impl From<Failure> for CniError {
    fn from(failure: Failure) -> Self {
        let (code, hint) = match &failure {
            Failure::Cni(error) => return error.clone(),
            Failure::Choose(error) => choose(error),
            Failure::Ipam(IpamError::NotStatic { .. }) => {
                (code::IPAM, "install the statically linked build of the plugin (as the CNI project ships it)")
            }
            Failure::Ipam(_) => {
                (code::IPAM, "check ipam in the network configuration, and install containernetworking-plugins")
            }
            Failure::Forwarding(error) => forwarding(error),
            Failure::Kernel(error) | Failure::Vf(VfError::Kernel(error)) => kernel(error),
            Failure::Vf(VfError::Sysfs { .. }) => {
                (code::KERNEL, "check --vf-provider and the name of the physical function")
            }
            Failure::Record(_) => (code::RECORDS, "check --state-dir and the space on its file system"),
        };
        CniError::new(code, failure.to_string()).hint(hint)
    }
}

fn choose(error: &ChooseError) -> (u32, &'static str) {
    match error {
        ChooseError::Unknown { .. } => {
            (code::UNKNOWN_VF, "check deviceID in the network configuration and --vf-prefix of the daemon")
        }
        ChooseError::Busy { .. } => (code::VF_NOT_FREE, "see /attachments of the daemon for who has it"),
        ChooseError::NoneFree { total: 0 } => (
            code::VF_NOT_FREE,
            "make VFs (sriov_numvfs of the physical function), and check --vf-provider and --vf-prefix of the daemon",
        ),
        ChooseError::NoneFree { .. } => (
            code::VF_NOT_FREE,
            "the pod starts when another one leaves; make more VFs, or let this node take fewer pods (the kubelet's maxPods)",
        ),
    }
}

fn forwarding(error: &ForwardingError) -> (u32, &'static str) {
    match error {
        ForwardingError::Unreachable { .. } => (
            code::TRY_AGAIN_LATER,
            "check the dataplane on this node's DPU and the link to it; the kubelet tries again",
        ),
        ForwardingError::Refused { .. } => (code::DATAPLANE, "see the dataplane's log"),
        ForwardingError::NotOpen { .. } => (
            code::NOT_READY,
            "`kubectl describe dpuworkload` of the pod tells what istiod, the adapter and the proxy say of it",
        ),
    }
}

fn kernel(error: &KernelError) -> (u32, &'static str) {
    match error {
        KernelError::NamespaceGone { .. } => {
            (code::INVALID_ENVIRONMENT, "CNI_NETNS must be the path of the pod's network namespace")
        }
        KernelError::NotNamespace { .. } => (
            code::KERNEL,
            "mount the folder into the daemon's container with mountPropagation HostToContainer, so that new pods are seen",
        ),
        KernelError::HostNamespace { .. } => {
            (code::INVALID_ENVIRONMENT, "pods in the host's network need no attachment")
        }
        KernelError::Refused { .. } => (code::KERNEL, "see `ip link` in the pod and on the host"),
    }
}
