//! VFs of the lab: one end of a veth pair in the host's namespace, the other is the representor.

use super::{Recovered, Vf, VfError, VfProvider, number_after};
use crate::sys::{Device, Link, Namespace};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mesh_model::MacAddress;
use std::path::PathBuf;

/// VFs by name: `vf3` belongs to `pf0vf3`.
#[derive(Clone, Debug)]
pub struct Emulated {
    /// Name of a VF without its number.
    pub vf_prefix: String,
    /// Name of a representor without its number.
    pub representor_prefix: String,
    /// The DPU's namespace, to make a pair again that died with a pod's namespace. Hardware
    /// outlives a namespace; a veth pair does not.
    pub representor_netns: Option<PathBuf>,
}

impl VfProvider for Emulated {
    fn list<'a>(&'a self, host: &'a Namespace) -> BoxFuture<'a, Result<Vec<Vf>, VfError>> {
        async { Ok(host.links().await?.into_iter().filter_map(|link| self.vf(link)).collect()) }.boxed()
    }

    fn program<'a>(&'a self, _: &'a Namespace, _: &'a Vf, _: MacAddress) -> BoxFuture<'a, Result<(), VfError>> {
        // A veth pair has no filter of its own: the dataplane checks the source.
        async { Ok(()) }.boxed()
    }

    fn reset<'a>(&'a self, _: &'a Namespace, _: &'a Vf) -> BoxFuture<'a, Result<(), VfError>> {
        async { Ok(()) }.boxed()
    }

    fn recover<'a>(&'a self, host: &'a Namespace, vf: &'a Vf) -> BoxFuture<'a, Result<Recovered, VfError>> {
        async move {
            match &self.representor_netns {
                None if host.link(&vf.name).await?.is_some() => Ok(Recovered::Back),
                None => Ok(Recovered::Lost),
                Some(path) => self.make_again(host, &Namespace::open(path).await?, vf).await.map(|()| Recovered::Back),
            }
        }
        .boxed()
    }
}

impl Emulated {
    fn vf(&self, link: Link) -> Option<Vf> {
        let number = number_after(&link.name, &self.vf_prefix)?;
        Some(Vf {
            id: link.name.clone(),
            mac: link.mac?,
            mtu: link.mtu,
            device: link.device.filter(|device| matches!(device, Device::VethPeer(_)))?,
            number,
            representor: format!("{}{number}", self.representor_prefix),
            name: link.name,
        })
    }

    /// Each step is skipped when an interrupted attempt has done it already.
    async fn make_again(&self, host: &Namespace, dpu: &Namespace, vf: &Vf) -> Result<(), VfError> {
        if host.link(&vf.name).await?.is_none() {
            // The old pair dies some time after its namespace: taking one end away ends both now.
            if let Some(stale) = dpu.link(&vf.representor).await? {
                dpu.remove(stale.index).await?;
            }
            host.add_veth(&vf.name, &vf.representor).await?;
        }
        if let Some(representor) = host.link(&vf.representor).await? {
            host.move_to(representor.index, dpu).await?;
        }
        let representor = dpu.expect_link(&vf.representor).await?;
        dpu.up(representor.index).await?;
        let link = host.expect_link(&vf.name).await?;
        host.set_mac(link.index, vf.mac).await?;
        Ok(host.set_mtu(link.index, vf.mtu).await?)
    }
}
