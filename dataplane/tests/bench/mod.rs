//! Programs and maps without interfaces, and packets to run them on.

pub mod packet;
pub mod sys;

use aya::programs::{TestRun, TestRunOptions};
use dataplane::DropReason;
use dataplane::sys::abi::{self, Counters};
use dataplane::sys::programs::{Hook, Programs, route_key, set_listener};
use std::net::{IpAddr, TcpListener};

pub const PASS: u32 = 0;
pub const DROP: u32 = 2;
pub const REDIRECT: u32 = 7;

/// The kernel runs a test as if a packet came by `lo`: that is the port under test.
pub const PORT: u32 = 1;
pub const PORT_SLOT: u32 = 1;
pub const OTHER: u32 = 7;
pub const OTHER_SLOT: u32 = 2;
pub const UPLINK: u32 = 9;

pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const OTHER_GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

pub const MARK_OURS: u32 = 0x0d9b_0001;
pub const MARK_TURNED: u32 = 0x0d9b_0002;

pub const GOVERNED: u32 = abi::PORT_OPEN | abi::PORT_GOVERNED;
pub const UNGOVERNED: u32 = abi::PORT_OPEN;
pub const BYPASS: u32 = GOVERNED | abi::PORT_BYPASS;

pub struct Bench {
    pub programs: Programs,
    seen: Vec<Counters>,
}

/// What became of a packet.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub verdict: u32,
    pub packet: Vec<u8>,
    pub mark: u32,
}

impl Bench {
    /// The port under test and another local one, open, with these flags.
    pub fn new(flags: u32, other_flags: u32) -> Self {
        let mut bench = Self { programs: Programs::load().expect("load (root?)"), seen: vec![Counters::default(); 3] };
        let uplink = abi::Uplink { ifindex: UPLINK, mac: UPLINK_MAC, zero: [0; 2] };
        bench.programs.maps.uplink.set(0, uplink, 0).expect("uplink");
        bench.port(PORT, abi::Port { slot: PORT_SLOT, vni: 0, flags, mac: POD_MAC, gateway_mac: GATEWAY_MAC });
        let other =
            abi::Port { slot: OTHER_SLOT, vni: 0, flags: other_flags, mac: OTHER_MAC, gateway_mac: OTHER_GATEWAY_MAC };
        bench.port(OTHER, other);
        for (address, ifindex) in [("10.1.0.1", PORT), ("fd01::1", PORT), ("10.1.0.2", OTHER), ("fd01::2", OTHER)] {
            bench.endpoint(0, address, ifindex);
        }
        let hop = abi::NextHop { ifindex: UPLINK, ip_version: 4, address: ip("192.0.2.2").into() };
        let key = route_key(abi::RoutePrefix { vni: 0, prefix: ip("10.2.0.0").into() }, 96 + 24);
        bench.programs.maps.routes.insert(&key, hop, 0).expect("route");
        bench
    }

    pub fn port(&mut self, ifindex: u32, port: abi::Port) {
        self.programs.maps.ports.insert(ifindex, port, 0).expect("port");
    }

    pub fn endpoint(&mut self, vni: u32, address: &str, ifindex: u32) {
        let key = abi::EndpointKey { vni, address: ip(address).into() };
        self.programs.maps.endpoints.insert(key, ifindex, 0).expect("endpoint");
    }

    /// A UDP or TCP service with one backend.
    pub fn service(&mut self, vip: &str, port: u16, protocol: u8, backend: (&str, u16)) {
        let maps = &mut self.programs.maps;
        let marker = abi::ServiceKey { vip: ip(vip).into(), ..abi::ServiceKey::default() };
        maps.services.insert(marker, abi::Service::default(), 0).expect("marker");
        let key = abi::ServiceKey { port: port.to_be_bytes(), protocol, ..marker };
        maps.services.insert(key, abi::Service { index: 3, backends: 1 }, 0).expect("service");
        let place =
            abi::Backend { address: ip(backend.0).into(), port: backend.1.to_be_bytes(), zero: [0; 2], generation: 5 };
        maps.backends.set(4, place, 0).expect("backend");
        for entry in 0..abi::MAGLEV_SIZE {
            maps.maglev.set(3 * abi::MAGLEV_SIZE + entry, 4, 0).expect("table");
        }
    }

    /// A listening socket in the map of the interface.
    pub fn listen(&mut self, ifindex: u32) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        set_listener(&mut self.programs.maps, abi::ListenerKey { ifindex, ip_version: 4 }, &listener)
            .expect("register");
        listener
    }

    pub fn run(&mut self, hook: Hook, packet: &[u8]) -> Outcome {
        self.run_marked(hook, packet, 0)
    }

    pub fn run_marked(&mut self, hook: Hook, packet: &[u8], mark: u32) -> Outcome {
        // `struct __sk_buff`: the mark is its third word.
        let (mut before, mut after) = ([0u8; 192], [0u8; 192]);
        before[8..12].copy_from_slice(&mark.to_ne_bytes());
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&before),
            ctx_out: Some(&mut after),
            ..TestRunOptions::new()
        };
        let result = self.programs.classifier(hook).expect("program").test_run(options).expect("run");
        out.truncate(result.data_size_out as usize);
        Outcome {
            verdict: result.return_value,
            packet: out,
            mark: u32::from_ne_bytes([after[8], after[9], after[10], after[11]]),
        }
    }

    /// Asserts what every counter of all slots gained since the last time: exactly this.
    pub fn gained(&mut self, slot: u32, expected: impl FnOnce(&mut Counters)) {
        for other in (0..3).filter(|other| *other != slot) {
            assert_eq!(self.delta(other), Counters::default(), "slot {other}");
        }
        let mut counters = Counters::default();
        expected(&mut counters);
        assert_eq!(self.delta(slot), counters, "slot {slot}");
    }

    fn delta(&mut self, slot: u32) -> Counters {
        let now = self.programs.counters.read(slot).expect("counters");
        let before = std::mem::replace(&mut self.seen[slot as usize], now);
        let mut drops = now.drops;
        drops.iter_mut().zip(before.drops).for_each(|(now, before)| *now -= before);
        Counters {
            rx_packets: now.rx_packets - before.rx_packets,
            rx_bytes: now.rx_bytes - before.rx_bytes,
            tx_packets: now.tx_packets - before.tx_packets,
            tx_bytes: now.tx_bytes - before.tx_bytes,
            steered: now.steered - before.steered,
            drops,
        }
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// A packet of `length` bytes came in, and was dropped if there is a reason.
pub fn received(length: usize, reason: Option<DropReason>) -> impl FnOnce(&mut Counters) {
    move |counters| {
        counters.rx_packets = 1;
        counters.rx_bytes = length as u64;
        if let Some(reason) = reason {
            counters.drops[reason as usize] = 1;
        }
    }
}

pub fn dropped(reason: DropReason) -> impl FnOnce(&mut Counters) {
    move |counters| counters.drops[reason as usize] = 1
}
