//! The state, the kernel that holds it, and who hears of changes. Everything that changes the dataplane
//! goes through here, one at a time.

use crate::state::{
    ApplyError, Change, Code, Device, Devices, Image, OwnRoutes, Port, Probed, State, difference, saved,
};
use crate::sys::KernelError;
use mesh_api::dataplane as wire;
use mesh_api::dataplane::operation::Operation as Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// The kernel as the engine needs it; a fake in tests.
pub trait Door: Send {
    /// The interface of that name.
    fn device(&mut self, name: &str) -> impl Future<Output = Result<Option<Device>, KernelError>> + Send;
    /// The uplink's address, if it has one by now.
    fn uplink_address(&mut self) -> impl Future<Output = Result<Option<IpAddr>, KernelError>> + Send;
    /// Where the DPU's own traffic goes.
    fn own_routes(&mut self) -> impl Future<Output = Result<OwnRoutes, KernelError>> + Send;
    /// One step.
    fn carry_out(&mut self, change: &Change) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Starts the counters of a slot at zero.
    fn zero_counters(&mut self, slot: u32) -> Result<(), KernelError>;
    /// Puts a listening socket where new connections of an interface go.
    fn set_listener(&mut self, ifindex: u32, ip_version: u32, socket: &OwnedFd) -> Result<(), KernelError>;
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Refused(#[from] ApplyError),
    #[error("{0}; everything is as it was")]
    Kernel(#[from] KernelError),
    #[error("cannot save the state to {}: {source}; everything is as it was", path.display())]
    Save { path: PathBuf, source: std::io::Error },
    #[error("there is no port {0:?}")]
    NoPort(String),
    #[error("port {id:?} belongs to workload {has:?}, not {said:?}")]
    OtherWorkload { id: String, has: String, said: String },
    #[error("this dataplane was started without --host-interface: nothing comes from the host")]
    NoHost,
    #[error("a listener is for IP version 4 or 6, not {0}")]
    IpVersion(u32),
}

impl EngineError {
    /// Kind of the refusal, when it is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }
}

/// Where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way<'a> {
    /// The port of that id: its pod opens them.
    Port(&'a str),
    Uplink,
    /// The link to the host.
    Host,
}

/// Ports by id, as they are now.
pub type Ports = Arc<BTreeMap<String, Port>>;

/// The one owner of state and kernel.
#[derive(Debug)]
pub struct Engine<D> {
    state: State,
    image: Image,
    /// The DPU's own routes, as they were last seen.
    own: OwnRoutes,
    door: D,
    uplink: Device,
    host: Option<Device>,
    file: Option<PathBuf>,
    ports: watch::Sender<Ports>,
}

impl<D: Door> Engine<D> {
    /// Nothing is configured. State is saved to `file`.
    pub fn new(door: D, uplink: Device, file: Option<PathBuf>) -> Self {
        let ports = watch::Sender::new(Ports::default());
        Self {
            state: State::default(),
            image: Image::default(),
            own: OwnRoutes::default(),
            door,
            uplink,
            host: None,
            file,
            ports,
        }
    }

    /// With a link to the host.
    pub fn with_host(self, host: Option<Device>) -> Self {
        Self { host, ..self }
    }

    /// What is configured.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The kernel.
    pub fn door(&mut self) -> &mut D {
        &mut self.door
    }

    /// Ports, followed.
    pub fn ports(&self) -> watch::Receiver<Ports> {
        self.ports.subscribe()
    }

    /// What the kernel should hold.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Every link that matters: the uplink, the link to the host and the representors.
    pub fn links(&self) -> BTreeSet<u32> {
        let representors = self.state.ports.values().map(|port| port.device.ifindex);
        let host = self.host.map(|device| device.ifindex);
        representors.chain([self.uplink.ifindex]).chain(host).collect()
    }

    /// Makes the DPU's own routes the pods' ways to the fabric.
    pub async fn follow_routes(&mut self) -> Result<(), EngineError> {
        let own = self.door.own_routes().await?;
        if own != self.own {
            let image = self.state.image(&own);
            self.carry_out(&difference(&self.image, &image)).await?;
            (self.own, self.image) = (own, image);
        }
        Ok(())
    }

    /// Goes on from the saved state, if there is one. Counters and open ports stay as they are.
    pub async fn restore(&mut self) -> Result<(), EngineError> {
        let Some(bytes) = self.file.as_ref().and_then(|path| std::fs::read(path).ok()) else { return Ok(()) };
        let names = saved::representors(&bytes).unwrap_or_default();
        let devices = self.devices(names.iter().map(String::as_str)).await?;
        match saved::restore(&bytes, &devices) {
            Ok(state) => {
                self.resume(state).await;
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the saved state cannot be read; the node daemon will send it again");
                Ok(())
            }
        }
    }

    /// One interface that the kernel refuses must not keep the others back.
    async fn resume(&mut self, whole: State) {
        if self.replace(whole.clone(), false).await.is_ok() {
            return;
        }
        let mut state = State { ports: BTreeMap::new(), ..whole.clone() };
        for (id, port) in whole.ports {
            let mut next = state.clone();
            next.ports.insert(id.clone(), port);
            match self.replace(next.clone(), false).await {
                Ok(()) => state = next,
                Err(error) => tracing::error!(port = id, %error, "not restored"),
            }
        }
    }

    /// All operations or none. Returns the epoch.
    pub async fn apply(&mut self, operations: &[wire::Operation]) -> Result<u64, EngineError> {
        let names = operations.iter().filter_map(|operation| match &operation.operation {
            Some(Kind::PutPort(port)) => Some(port.representor.as_str()),
            _ => None,
        });
        let devices = self.devices(names).await?;
        let next = self.state.applied(operations, &devices)?;
        self.replace(next, true).await?;
        Ok(self.state.epoch)
    }

    /// Links or routes have changed: a representor that was made again gets its port back, and what the kernel
    /// forgot of one that went down and up (its routes) is put there again.
    pub async fn refresh(&mut self, changed: &BTreeSet<u32>) -> Result<(), EngineError> {
        let names: Vec<String> = self.state.ports.values().map(|port| port.wire.representor.clone()).collect();
        let devices = self.devices(names.iter().map(String::as_str)).await?;
        self.replace(self.state.with_devices(&devices), false).await?;
        self.follow_routes().await?;
        let is_uplink = changed.contains(&self.uplink.ifindex);
        let again = self.image.repeated(|ifindex| is_uplink || changed.contains(&ifindex), is_uplink);
        for change in again {
            self.door.carry_out(&change).await?;
        }
        Ok(())
    }

    /// The proxy has taken over a port's workload, and says what it knows of where probes ask, if that counts.
    pub async fn ready(
        &mut self,
        id: &str,
        workload_uid: &str,
        probed: Option<&BTreeMap<Probed, Option<bool>>>,
    ) -> Result<(), EngineError> {
        let port = self.port(id)?;
        let other = || EngineError::OtherWorkload {
            id: id.to_owned(),
            has: port.wire.workload_uid.clone(),
            said: workload_uid.to_owned(),
        };
        let next = self.state.with_readiness(id, Some(workload_uid), Ok(())).ok_or_else(other)?;
        self.replace(probed.into_iter().fold(next, |next, probed| next.with_probed(id, probed)), true).await
    }

    /// The proxy has given it up.
    pub async fn not_ready(&mut self, id: &str, reason: &str) -> Result<(), EngineError> {
        let reason = if reason.is_empty() { "the proxy gave it up without a reason" } else { reason };
        let next = self.state.with_readiness(id, None, Err(reason.to_owned()));
        self.replace(next.ok_or_else(|| EngineError::NoPort(id.to_owned()))?, true).await
    }

    /// Steers new connections that come by `way` to a listening socket. The kernel drops the entry when the
    /// socket dies.
    pub fn set_listener(&mut self, way: Way<'_>, ip_version: u32, socket: &OwnedFd) -> Result<(), EngineError> {
        if ip_version != 4 && ip_version != 6 {
            return Err(EngineError::IpVersion(ip_version));
        }
        let ifindex = match way {
            Way::Port(id) => self.port(id)?.device.ifindex,
            Way::Uplink => self.uplink.ifindex,
            Way::Host => self.host.ok_or(EngineError::NoHost)?.ifindex,
        };
        Ok(self.door.set_listener(ifindex, ip_version, socket)?)
    }

    fn port(&self, id: &str) -> Result<&Port, EngineError> {
        self.state.ports.get(id).ok_or_else(|| EngineError::NoPort(id.to_owned()))
    }

    async fn devices(&mut self, names: impl Iterator<Item = &str>) -> Result<Devices, EngineError> {
        let mut devices = Devices::new();
        for name in names {
            if let Some(device) = self.door.device(name).await? {
                devices.insert(name.to_owned(), device);
            }
        }
        Ok(devices)
    }

    /// Makes the kernel hold `next`, or leaves everything as it was. `fresh`: new ports count from zero.
    async fn replace(&mut self, next: State, fresh: bool) -> Result<(), EngineError> {
        if next == self.state {
            return Ok(());
        }
        let image = next.image(&self.own);
        let changes = difference(&self.image, &image);
        if fresh {
            self.zero_new(&next)?;
        }
        self.carry_out(&changes).await?;
        if let Some(path) = self.file.clone()
            && let Err(source) = next.save(&path)
        {
            self.undo(&changes).await;
            return Err(EngineError::Save { path, source });
        }
        (self.state, self.image) = (next, image);
        self.ports.send_replace(Arc::new(self.state.ports.clone()));
        Ok(())
    }

    fn zero_new(&mut self, next: &State) -> Result<(), EngineError> {
        let known: Vec<u32> = self.state.ports.values().map(|port| port.slot).collect();
        for port in next.ports.values().filter(|port| !known.contains(&port.slot)) {
            self.door.zero_counters(port.slot)?;
        }
        Ok(())
    }

    async fn carry_out(&mut self, changes: &[Change]) -> Result<(), EngineError> {
        for (index, change) in changes.iter().enumerate() {
            if let Err(error) = self.door.carry_out(change).await {
                // The failed step may be half done, so it is undone too.
                self.undo(&changes[..=index]).await;
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn undo(&mut self, changes: &[Change]) {
        for change in changes.iter().rev() {
            if let Err(error) = self.door.carry_out(&change.undone()).await {
                tracing::error!(%error, ?change, "cannot undo");
            }
        }
    }
}

#[cfg(test)]
mod tests;
