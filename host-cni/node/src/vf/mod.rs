//! Virtual functions of this host: what there is, which one a pod gets, and how it is cleaned.
//!
//! `VfProvider` is the only thing that differs between the lab (`emulated`, veth pairs) and real
//! hardware (`sriov`). Moving and naming a VF is the same for both and is not its affair.

mod emulated;
mod sriov;

pub use emulated::Emulated;
pub use sriov::Sriov;

use crate::sys::{Device, KernelError, Namespace};
use futures_util::future::BoxFuture;
use mesh_model::MacAddress;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A virtual function that is in the host's namespace, free to be given to a pod or reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vf {
    /// Unique on this host, e.g. `vf3`; also the id of its dataplane port.
    pub id: String,
    /// Name of its link in the host's namespace.
    pub name: String,
    pub mac: MacAddress,
    /// Bytes.
    pub mtu: u32,
    pub device: Device,
    /// Number under its physical function.
    pub number: u32,
    /// Name of its representor on the DPU.
    pub representor: String,
}

impl Vf {
    /// PCI address, for hardware.
    pub fn pci(&self) -> Option<&str> {
        match &self.device {
            Device::Pci(address) => Some(address),
            Device::VethPeer(_) => None,
        }
    }

    /// Whether a person or the device plugin means this one.
    pub fn is_named(&self, device_id: &str) -> bool {
        self.id == device_id || self.name == device_id || self.pci() == Some(device_id)
    }
}

/// Why VFs cannot be listed or programmed.
#[derive(Debug, thiserror::Error)]
pub enum VfError {
    #[error("cannot read {path}: {source}")]
    Sysfs { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Kernel(#[from] KernelError),
}

/// What became of a VF whose namespace is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// It is in the host's namespace.
    Back,
    /// The device does not exist any more.
    Lost,
}

/// Where VFs come from.
pub trait VfProvider: std::fmt::Debug + Send + Sync {
    /// Those that are in the host's namespace now.
    fn list<'a>(&'a self, host: &'a Namespace) -> BoxFuture<'a, Result<Vec<Vf>, VfError>>;
    /// Before a VF goes to a pod: makes its port of the NIC accept this MAC only, without VLAN.
    fn program<'a>(&'a self, host: &'a Namespace, vf: &'a Vf, mac: MacAddress) -> BoxFuture<'a, Result<(), VfError>>;
    /// After it came back: nothing of the pod is left on the NIC.
    fn reset<'a>(&'a self, host: &'a Namespace, vf: &'a Vf) -> BoxFuture<'a, Result<(), VfError>>;
    /// The namespace that held it is gone: where is it now?
    fn recover<'a>(&'a self, host: &'a Namespace, vf: &'a Vf) -> BoxFuture<'a, Result<Recovered, VfError>>;
}

/// Why no VF can be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    #[error("{asked} is no VF of this host; it has {present}")]
    Unknown { asked: String, present: String },
    #[error("VF {asked} is in use")]
    Busy { asked: String },
    #[error("{}", none_free(*total))]
    NoneFree { total: usize },
}

fn none_free(total: usize) -> String {
    match total {
        0 => "this node has no VF".to_owned(),
        _ => format!("no VF is free on this node: all {total} are in use"),
    }
}

/// Picks the VF that is asked for, or the free one with the lowest number. `leased` ones belong to
/// pods, whether they are in `present` or not.
pub fn choose<'a>(present: &'a [Vf], asked: Option<&str>, leased: &[Vf]) -> Result<&'a Vf, ChooseError> {
    let is_leased = |vf: &Vf| leased.iter().any(|other| other.id == vf.id);
    let Some(asked) = asked else {
        let free = present.iter().filter(|vf| !is_leased(vf)).min_by_key(|vf| vf.number);
        return free.ok_or(ChooseError::NoneFree { total: leased.len() });
    };
    if leased.iter().any(|vf| vf.is_named(asked)) {
        return Err(ChooseError::Busy { asked: asked.to_owned() });
    }
    present.iter().find(|vf| vf.is_named(asked)).ok_or_else(|| unknown(asked, present, leased))
}

fn unknown(asked: &str, present: &[Vf], leased: &[Vf]) -> ChooseError {
    let mut names: Vec<&str> = present.iter().chain(leased).map(|vf| vf.id.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let present = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    ChooseError::Unknown { asked: asked.to_owned(), present }
}

/// The number in a name like `vf12`.
fn number_after(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vf(number: u32) -> Vf {
        Vf {
            id: format!("vf{number}"),
            name: format!("vf{number}"),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            device: Device::VethPeer(number + 10),
            number,
            representor: format!("pf0vf{number}"),
        }
    }

    #[test]
    fn the_free_vf_with_the_lowest_number_is_chosen() {
        let all = [vf(10), vf(2), vf(1)];
        assert_eq!(choose(&all, None, &[vf(1)]).expect("free").id, "vf2");
        assert_eq!(choose(&all[..1], None, &[vf(10)]), Err(ChooseError::NoneFree { total: 1 }));
    }

    #[test]
    fn the_vf_that_is_asked_for_is_chosen_or_the_reason_is_told() {
        let all = [vf(1), vf(2)];
        assert_eq!(choose(&all, Some("vf2"), &[]).expect("free").id, "vf2");
        assert!(matches!(choose(&all, Some("vf2"), &[vf(2)]), Err(ChooseError::Busy { .. })));
        let error = choose(&all, Some("vf9"), &[vf(3)]).expect_err("unknown");
        assert!(error.to_string().contains("vf1, vf2, vf3"), "{error}");
    }

    #[test]
    fn only_digits_number_a_vf() {
        assert_eq!(number_after("vf12", "vf"), Some(12));
        assert_eq!(number_after("vf", "vf"), None);
        assert_eq!(number_after("vfx", "vf"), None);
        assert_eq!(number_after("eth0", "vf"), None);
    }
}
