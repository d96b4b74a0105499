//! A proxy that is only its sockets: transparent listeners, registered over the steering socket.

use super::{Lab, PATIENCE};
use mesh_api::steering as wire;
use mesh_api::steering::from_dataplane::Message as Said;
use mesh_api::steering::from_proxy::Message as Asked;
use prost::Message;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, socket_with,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

pub struct Proxy {
    socket: OwnedFd,
    sequence: u64,
    /// What the dataplane has told so far, in order.
    pub told: Vec<wire::Ports>,
    /// What it told last of other proxies.
    pub others: wire::Others,
}

impl Proxy {
    /// Connects and reads the snapshot.
    pub fn connect(lab: &Lab) -> Self {
        Self::started(lab, 1)
    }

    /// The same as a process that started then, in milliseconds since 1970.
    pub fn started(lab: &Lab, started_unix_ms: u64) -> Self {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("socket");
        connect(&socket, &SocketAddrUnix::new(lab.steering_socket()).expect("path")).expect("connect");
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
            .expect("timeout");
        let mut proxy = Self { socket, sequence: 0, told: Vec::new(), others: wire::Others::default() };
        let hello = wire::Hello { version: "test".to_owned(), started_unix_ms };
        proxy.ask(Asked::Hello(hello), None).expect("hello");
        while proxy.told.is_empty() {
            let _ = proxy.receive();
        }
        proxy
    }

    /// Sends a message and waits for its answer.
    pub fn ask(&mut self, message: Asked, descriptor: Option<&TcpListener>) -> Result<(), String> {
        self.sequence += 1;
        let bytes = wire::FromProxy { sequence: self.sequence, message: Some(message) }.encode_to_vec();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.iter().map(|listener| listener.as_fd()).collect();
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).expect("send");
        loop {
            if let Some(answer) = self.receive().filter(|answer| answer.sequence == self.sequence) {
                return if answer.error.is_empty() { Ok(()) } else { Err(answer.error) };
            }
        }
    }

    /// Sends what may be no message, and returns the error of the answer.
    pub fn send_raw(&mut self, bytes: &[u8]) -> String {
        rustix::net::send(&self.socket, bytes, SendFlags::empty()).expect("send");
        loop {
            if let Some(answer) = self.receive() {
                return answer.error;
            }
        }
    }

    fn receive(&mut self) -> Option<wire::Answer> {
        let mut bytes = vec![0; 65536];
        let (length, _) = recv(&self.socket, &mut bytes, RecvFlags::empty()).expect("receive");
        match wire::FromDataplane::decode(&bytes[..length]).expect("message").message.expect("kind") {
            Said::Answer(answer) => Some(answer),
            Said::Ports(ports) => {
                self.told.push(ports);
                None
            }
            Said::Others(others) => {
                self.others = others;
                None
            }
        }
    }

    /// Reads until the dataplane says of other proxies what is expected.
    pub fn until(&mut self, is_expected: impl Fn(&wire::Others) -> bool) {
        while !is_expected(&self.others) {
            let _ = self.receive();
        }
    }

    /// Listens on the representor of pod `number`, registers, and opens the port.
    pub fn govern(&mut self, lab: &Lab, number: u8) -> TcpListener {
        let listener = self.listen(lab, &format!("rep{number}"), wire::Direction::Outbound, &format!("vf{number}"), 4);
        self.ready(number);
        listener
    }

    pub fn ready(&mut self, number: u8) {
        self.say_ready(number, Vec::new());
    }

    /// Ready, and what is known of a port that probes ask.
    pub fn probed(&mut self, number: u8, port: u16, listening: wire::Listening) {
        let one = wire::ProbedPort { ip_version: 4, port: port.into(), listening: listening.into() };
        self.say_ready(number, vec![one]);
    }

    fn say_ready(&mut self, number: u8, probed: Vec<wire::ProbedPort>) {
        let ready = wire::PortReady { port_id: format!("vf{number}"), workload_uid: format!("uid-{number}"), probed };
        self.ask(Asked::PortReady(ready), None).expect("ready");
    }

    /// The inbound listener on the uplink.
    pub fn govern_inbound(&mut self, lab: &Lab) -> TcpListener {
        self.listen(lab, "up0", wire::Direction::Inbound, "", 4)
    }

    /// The listener on the link to the host.
    pub fn govern_host(&mut self, lab: &Lab, ip_version: u32) -> TcpListener {
        self.listen(lab, "pf0hpf", wire::Direction::Host, "", ip_version)
    }

    pub fn listen(
        &mut self,
        lab: &Lab,
        device: &str,
        direction: wire::Direction,
        id: &str,
        ip_version: u32,
    ) -> TcpListener {
        let name = device.to_owned();
        let port = if direction == wire::Direction::Outbound { 15001 } else { 15006 };
        let listener = lab.within("dpu", move || listener(&name, ip_version, port));
        self.register(&listener, direction, id, ip_version);
        listener
    }

    /// Registers a socket that listens.
    pub fn register(&mut self, listener: &TcpListener, direction: wire::Direction, id: &str, ip_version: u32) {
        let request = wire::RegisterListener { direction: direction.into(), port_id: id.to_owned(), ip_version };
        self.ask(Asked::RegisterListener(request), Some(listener)).expect("register");
    }
}

/// A transparent listening socket on a device, as the proxy makes it.
pub fn listener(device: &str, ip_version: u32, port: u16) -> TcpListener {
    let address: SocketAddr = if ip_version == 4 { ([0, 0, 0, 0], port).into() } else { ([0u16; 8], port).into() };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
    socket.set_reuse_address(true).expect("reuse");
    socket.set_reuse_port(true).expect("reuse");
    socket.bind_device(Some(device.as_bytes())).expect("bind to device");
    if ip_version == 4 {
        socket.set_ip_transparent_v4(true).expect("transparent");
    } else {
        socket.set_only_v6(true).expect("v6 only");
        socket.set_ip_transparent_v6(true).expect("transparent");
    }
    socket.bind(&SockAddr::from(address)).expect("bind");
    socket.listen(128).expect("listen");
    socket.into()
}

/// Accepts within the time that these tests have.
pub fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).expect("nonblocking");
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(false).expect("blocking");
            stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
            return Some((stream, peer));
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    None
}

/// What the proxy does to reach somebody: a connection from an address that is not the DPU's.
pub fn call(device: &str, source: &str, to: &str) -> std::io::Result<TcpStream> {
    let (source, to): (SocketAddr, SocketAddr) = (source.parse().expect("source"), to.parse().expect("destination"));
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_ip_transparent_v4(true)?;
    socket.bind(&SockAddr::from(source))?;
    socket.connect_timeout(&SockAddr::from(to), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}
