//! VFs of an SR-IOV network card: found in sysfs under the physical function, programmed through it.

use super::{Recovered, Vf, VfError, VfProvider, number_after};
use crate::sys::{Device, Namespace};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mesh_model::MacAddress;
use netlink_packet_route::link::{
    LinkAttribute, LinkVfInfo, VfInfo, VfInfoMac, VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan,
};
use rtnetlink::LinkUnspec;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the kernel gets to give a device back after its namespace died.
const RETURN_ATTEMPTS: u32 = 20;
const RETURN_INTERVAL: Duration = Duration::from_millis(100);

/// VFs of one physical function.
#[derive(Clone, Debug)]
pub struct Sriov {
    /// Name of the physical function's link.
    pub physical_function: String,
    /// Name of a representor without the VF's number.
    pub representor_prefix: String,
    /// `/sys`, or a copy of it.
    pub sysfs: PathBuf,
}

struct Function {
    number: u32,
    pci: String,
}

impl VfProvider for Sriov {
    fn list<'a>(&'a self, host: &'a Namespace) -> BoxFuture<'a, Result<Vec<Vf>, VfError>> {
        async move {
            let mut all = Vec::new();
            for function in self.functions()? {
                let device = Device::Pci(function.pci.clone());
                let Some(name) = self.netdev(&function.pci) else { continue };
                let Some(link) = host.link(&name).await? else { continue };
                let Some(mac) = link.mac else { continue };
                all.push(Vf {
                    id: format!("{}vf{}", self.physical_function, function.number),
                    mac,
                    mtu: link.mtu,
                    device,
                    number: function.number,
                    representor: format!("{}{}", self.representor_prefix, function.number),
                    name,
                });
            }
            Ok(all)
        }
        .boxed()
    }

    fn program<'a>(&'a self, host: &'a Namespace, vf: &'a Vf, mac: MacAddress) -> BoxFuture<'a, Result<(), VfError>> {
        self.set(host, vf, mac).boxed()
    }

    fn reset<'a>(&'a self, host: &'a Namespace, vf: &'a Vf) -> BoxFuture<'a, Result<(), VfError>> {
        // An all-zero MAC takes the administrative one away.
        self.set(host, vf, MacAddress([0; 6])).boxed()
    }

    fn recover<'a>(&'a self, host: &'a Namespace, vf: &'a Vf) -> BoxFuture<'a, Result<Recovered, VfError>> {
        async move {
            for _ in 0..RETURN_ATTEMPTS {
                if host.find(&vf.device, &vf.name).await?.is_some() {
                    return Ok(Recovered::Back);
                }
                tokio::time::sleep(RETURN_INTERVAL).await;
            }
            Ok(Recovered::Lost)
        }
        .boxed()
    }
}

impl Sriov {
    /// `device/virtfnN` of the physical function, each a link to a PCI device.
    fn functions(&self) -> Result<Vec<Function>, VfError> {
        let path = self.sysfs.join("class/net").join(&self.physical_function).join("device");
        let failed = |source| VfError::Sysfs { path: path.clone(), source };
        let mut functions = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(number) = number_after(&entry.file_name().to_string_lossy(), "virtfn") else { continue };
            let target = std::fs::read_link(entry.path()).map_err(failed)?;
            functions.extend(last_part(&target).map(|pci| Function { number, pci }));
        }
        functions.sort_by_key(|function| function.number);
        Ok(functions)
    }

    /// Name of the function's link, if it is in this namespace.
    fn netdev(&self, pci: &str) -> Option<String> {
        let mut entries = std::fs::read_dir(self.sysfs.join("bus/pci/devices").join(pci).join("net")).ok()?;
        entries.next()?.ok().map(|entry| entry.file_name().to_string_lossy().into_owned())
    }

    async fn set(&self, host: &Namespace, vf: &Vf, mac: MacAddress) -> Result<(), VfError> {
        let physical = host.expect_link(&self.physical_function).await?;
        let settings = LinkVfInfo(vec![
            VfInfo::Mac(VfInfoMac::new(vf.number, &padded(mac))),
            VfInfo::Vlan(VfInfoVlan::new(vf.number, 0, 0)),
            VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf.number, true)),
            VfInfo::Trust(VfInfoTrust::new(vf.number, false)),
        ]);
        let message = LinkUnspec::new_with_index(physical.index)
            .append_extra_attribute(LinkAttribute::VfInfoList(vec![settings]));
        let action = format!("program VF {} of {} with MAC {mac}", vf.number, self.physical_function);
        Ok(host.change(&action, message).await?)
    }
}

/// The kernel's `ifla_vf_mac` holds 32 octets.
fn padded(mac: MacAddress) -> [u8; 32] {
    let mut octets = [0; 32];
    octets[..6].copy_from_slice(&mac.0);
    octets
}

fn last_part(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn functions_are_read_from_sysfs_in_the_order_of_their_numbers() {
        let sysfs = tempfile::tempdir().expect("folder");
        let device = sysfs.path().join("class/net/p0/device");
        std::fs::create_dir_all(&device).expect("folder");
        symlink("../0000:03:00.4", device.join("virtfn2")).expect("link");
        symlink("../0000:03:00.2", device.join("virtfn0")).expect("link");
        std::fs::create_dir_all(sysfs.path().join("bus/pci/devices/0000:03:00.2/net/ens1v0")).expect("folder");
        let sriov = Sriov {
            physical_function: "p0".to_owned(),
            representor_prefix: "pf0vf".to_owned(),
            sysfs: sysfs.path().to_owned(),
        };
        let found: Vec<(u32, String)> =
            sriov.functions().expect("readable").into_iter().map(|one| (one.number, one.pci)).collect();
        assert_eq!(found, [(0, "0000:03:00.2".to_owned()), (2, "0000:03:00.4".to_owned())]);
        assert_eq!(sriov.netdev("0000:03:00.2").as_deref(), Some("ens1v0"));
        assert_eq!(sriov.netdev("0000:03:00.4"), None, "it is in a pod's namespace");
    }

    #[test]
    fn a_physical_function_that_is_missing_is_named() {
        let sriov = Sriov {
            physical_function: "p9".to_owned(),
            representor_prefix: "x".to_owned(),
            sysfs: "/nonexistent".into(),
        };
        let error = sriov.functions().map(|_| ()).expect_err("missing");
        assert!(error.to_string().contains("p9"), "{error}");
    }
}
