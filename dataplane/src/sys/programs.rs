//! The eBPF object: its maps and programs, pinned, so that they work on while this program restarts.

use super::KernelError;
use super::abi;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues, SockHash, lpm_trie};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, SkLookup, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dataplane.bpf.o"));

/// Folder of the pins below `--bpf-dir`; changes when a map's layout does.
const LAYOUT: &str = "3";
const MAPS: [&str; 15] = [
    "PORTS",
    "ENDPOINTS",
    "ROUTES",
    "SERVICES",
    "MAGLEV",
    "BACKENDS",
    "FLOWS",
    "ORIGINS",
    "FRAGMENTS",
    "BYPASSED",
    "SHUT",
    "UPLINK",
    "HOST",
    "COUNTERS",
    "LISTENERS",
];

/// Where a classifier runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    RepresentorIngress,
    RepresentorEgress,
    UplinkIngress,
    UplinkEgress,
    HostIngress,
}

impl Hook {
    /// Name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::RepresentorIngress => "rep_ingress",
            Self::RepresentorEgress => "rep_egress",
            Self::UplinkIngress => "uplink_ingress",
            Self::UplinkEgress => "uplink_egress",
            Self::HostIngress => "host_ingress",
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::RepresentorIngress | Self::UplinkIngress | Self::HostIngress => TcAttachType::Ingress,
            Self::RepresentorEgress | Self::UplinkEgress => TcAttachType::Egress,
        }
    }
}

/// The maps that user space writes.
#[allow(missing_debug_implementations)]
pub struct Maps {
    pub ports: HashMap<MapData, u32, abi::Port>,
    pub endpoints: HashMap<MapData, abi::EndpointKey, u32>,
    pub routes: LpmTrie<MapData, abi::RoutePrefix, abi::NextHop>,
    pub services: HashMap<MapData, abi::ServiceKey, abi::Service>,
    pub maglev: Array<MapData, u32>,
    pub backends: Array<MapData, abi::Backend>,
    pub shut: HashMap<MapData, abi::PodPort, u8>,
    pub uplink: Array<MapData, abi::Uplink>,
    pub host: Array<MapData, abi::Host>,
    pub listeners: SockHash<MapData, abi::ListenerKey>,
}

impl Maps {
    fn take(object: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            ports: typed(object, "PORTS")?,
            endpoints: typed(object, "ENDPOINTS")?,
            routes: typed(object, "ROUTES")?,
            services: typed(object, "SERVICES")?,
            maglev: typed(object, "MAGLEV")?,
            backends: typed(object, "BACKENDS")?,
            shut: typed(object, "SHUT")?,
            uplink: typed(object, "UPLINK")?,
            host: typed(object, "HOST")?,
            listeners: typed(object, "LISTENERS")?,
        })
    }
}

/// Counters, read by whoever wants to, also while the tables are being written.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct CounterReader(Arc<Mutex<PerCpuArray<MapData, abi::Counters>>>);

impl CounterReader {
    /// Sum over all processors.
    pub fn read(&self, slot: u32) -> Result<abi::Counters, KernelError> {
        let values = self.lock().get(&slot, 0).map_err(|error| KernelError::map("COUNTERS", "read", &error))?;
        Ok(values.iter().fold(abi::Counters::default(), add))
    }

    /// Starts a slot at zero.
    pub fn zero(&self, slot: u32) -> Result<(), KernelError> {
        let mut map = self.lock();
        let values = map.get(&slot, 0).map_err(|error| KernelError::map("COUNTERS", "read", &error))?;
        let zeros = PerCpuValues::try_from(vec![abi::Counters::default(); values.len()]);
        let zeros = zeros.map_err(|error| KernelError::map("COUNTERS", "prepare", &error))?;
        map.set(slot, zeros, 0).map_err(|error| KernelError::map("COUNTERS", "write", &error))
    }

    fn lock(&self) -> MutexGuard<'_, PerCpuArray<MapData, abi::Counters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(sum: abi::Counters, one: &abi::Counters) -> abi::Counters {
    let mut drops = sum.drops;
    drops.iter_mut().zip(one.drops).for_each(|(sum, one)| *sum += one);
    abi::Counters {
        rx_packets: sum.rx_packets + one.rx_packets,
        rx_bytes: sum.rx_bytes + one.rx_bytes,
        tx_packets: sum.tx_packets + one.tx_packets,
        tx_bytes: sum.tx_bytes + one.tx_bytes,
        steered: sum.steered + one.steered,
        drops,
    }
}

fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    let map =
        object.take_map(name).ok_or(KernelError::Object { what: name, reason: "not in the object".to_owned() })?;
    T::try_from(map).map_err(|error| KernelError::map(name, "open", &error))
}

/// Key of the trie for a prefix of `length` bits of a 16-byte address.
pub fn route_key(prefix: abi::RoutePrefix, length: u8) -> lpm_trie::Key<abi::RoutePrefix> {
    lpm_trie::Key::new(32 + u32::from(length), prefix)
}

/// The loaded object.
#[allow(missing_debug_implementations)]
pub struct Programs {
    object: Ebpf,
    pub maps: Maps,
    pub counters: CounterReader,
    pins: Option<PathBuf>,
}

impl Programs {
    /// Loads without pins: all is gone with the value. For tests of the programs.
    pub fn load() -> Result<Self, KernelError> {
        Self::load_with(EbpfLoader::new(), None)
    }

    /// Loads with pins below `folder`, which must be in a bpf file system; takes over maps that are there.
    pub fn load_pinned(folder: &Path) -> Result<Self, KernelError> {
        let pins = folder.join(LAYOUT);
        for sub in ["maps", "links"] {
            let path = pins.join(sub);
            fs::create_dir_all(&path).map_err(|source| KernelError::File { action: "create", path, source })?;
        }
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_pin_path(name, pins.join("maps").join(name));
        }
        Self::load_with(loader, Some(pins))
    }

    fn load_with(mut loader: EbpfLoader<'_>, pins: Option<PathBuf>) -> Result<Self, KernelError> {
        let mut object = loader.load(OBJECT).map_err(|error| KernelError::object("the eBPF object", &error))?;
        for (name, program) in object.programs_mut() {
            let loaded = match program {
                aya::programs::Program::SchedClassifier(program) => program.load(),
                aya::programs::Program::SkLookup(program) => program.load(),
                _ => continue,
            };
            loaded.map_err(|error| KernelError::object(&format!("program {name}"), &error))?;
        }
        let maps = Maps::take(&mut object)?;
        let counters = CounterReader(Arc::new(Mutex::new(typed(&mut object, "COUNTERS")?)));
        Ok(Self { object, maps, counters, pins })
    }

    /// A classifier by hook, e.g. to run it on a packet of a test.
    pub fn classifier(&mut self, hook: Hook) -> Result<&mut SchedClassifier, KernelError> {
        let program = self.object.program_mut(hook.program());
        let program =
            program.ok_or(KernelError::Object { what: hook.program(), reason: "not in the object".to_owned() })?;
        program.try_into().map_err(|error| KernelError::object(hook.program(), &error))
    }

    /// The sk_lookup program.
    pub fn steering(&mut self) -> Result<&mut SkLookup, KernelError> {
        let program = self.object.program_mut("steer");
        let program = program.ok_or(KernelError::Object { what: "steer", reason: "not in the object".to_owned() })?;
        program.try_into().map_err(|error| KernelError::object("steer", &error))
    }

    /// Runs the hook's program on the interface, in the place of an older version of it.
    pub fn attach(&mut self, hook: Hook, interface: &str, ifindex: u32) -> Result<(), KernelError> {
        let pin = self.link_pin(&link_name(hook, ifindex))?;
        let refused = |error: &dyn std::fmt::Display| KernelError::attach(hook.program(), interface, error);
        let program = self.classifier(hook)?;
        if let Some(link) = pinned_link(&pin)
            && let Ok(id) = program.attach_to_link(link)
        {
            // The pin alone keeps it: a descriptor that stayed here would outlive `detach`.
            return program.take_link(id).map(drop).map_err(|error| refused(&error));
        }
        remove(&pin)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(interface, hook.direction(), options).map_err(|error| refused(&error))?;
        let link: FdLink =
            program.take_link(id).map_err(|error| refused(&error))?.try_into().map_err(|error| refused(&error))?;
        link.pin(&pin).map(drop).map_err(|error| refused(&error))
    }

    /// Takes the program off the interface.
    pub fn detach(&mut self, hook: Hook, ifindex: u32) -> Result<(), KernelError> {
        remove(&self.link_pin(&link_name(hook, ifindex))?)
    }

    /// Steers this network namespace's sockets; an older version goes when the new one is in place.
    pub fn attach_steering(&mut self) -> Result<(), KernelError> {
        let (pin, next) = (self.link_pin("steer")?, self.link_pin("steer_next")?);
        let refused = |error: &dyn std::fmt::Display| KernelError::attach("steer", "this network namespace", error);
        remove(&next)?;
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let namespace = File::open(&path).map_err(|source| KernelError::File { action: "open", path, source })?;
        let program = self.steering()?;
        let id = program.attach(namespace).map_err(|error| refused(&error))?;
        let link: FdLink = program.take_link(id).map_err(|error| refused(&error))?.into();
        link.pin(&next).map(drop).map_err(|error| refused(&error))?;
        remove(&pin)?;
        fs::rename(&next, &pin).map_err(|source| KernelError::File { action: "rename", path: next, source })
    }

    fn link_pin(&self, name: &str) -> Result<PathBuf, KernelError> {
        let pins = self.pins.as_ref();
        let pins = pins.ok_or(KernelError::Object { what: "links", reason: "loaded without pins".to_owned() })?;
        Ok(pins.join("links").join(name))
    }

    /// Ifindexes of interfaces that have the hook's program, as the pins say.
    pub fn attached(&self, hook: Hook) -> Vec<u32> {
        let Some(pins) = &self.pins else { return Vec::new() };
        let entries = fs::read_dir(pins.join("links")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let ifindex = |name: String| name.strip_prefix(hook.program())?.strip_prefix('-')?.parse().ok();
        names.filter_map(ifindex).collect()
    }
}

/// Puts a listening socket where `steer` finds it.
pub fn set_listener(maps: &mut Maps, key: abi::ListenerKey, socket: &impl AsRawFd) -> Result<(), KernelError> {
    let result = maps.listeners.insert(key, socket.as_raw_fd(), 0);
    result.map_err(|error| KernelError::map("LISTENERS", "write", &error))
}

/// Removes the pins of other versions, whose maps had another layout: their programs leave the interfaces.
pub fn unpin_other_layouts(folder: &Path) -> Result<(), KernelError> {
    let others = fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.file_name() != LAYOUT);
    others.map(|entry| entry.path()).try_for_each(|path| unpin(&path))
}

/// Removes every pin below `folder`: links detach, maps go when nothing uses them.
pub fn unpin(folder: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(KernelError::File { action: "remove", path: folder.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn link_name(hook: Hook, ifindex: u32) -> String {
    format!("{}-{ifindex}", hook.program())
}

fn pinned_link(pin: &Path) -> Option<SchedClassifierLink> {
    let link = PinnedLink::from_pin(pin).ok()?;
    FdLink::from(link).try_into().ok()
}

fn remove(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(KernelError::File { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
