//! One DPU in network namespaces: a fabric behind its uplink, pods behind its representors, the real
//! `dataplane` program inside, and a proxy that is only its sockets. Needs root; removed on drop.

#![allow(dead_code)]

pub mod proxy;

use mesh_api::dataplane as wire;
use mesh_api::dataplane::dataplane_client::DataplaneClient;
use mesh_api::dataplane::operation::Operation as Kind;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

pub const REMOTE: &str = "10.2.0.5";
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Long enough for one packet, shorter than a retransmission.
pub const BRIEF: Duration = Duration::from_millis(600);

pub struct Lab {
    name: String,
    folder: tempfile::TempDir,
    program: Option<Child>,
    pods: Vec<u8>,
    /// The server itself is there, behind `pf0hpf`, and the dataplane is told so.
    pub has_host: bool,
}

impl Lab {
    /// A DPU with pods 1 to `pods`, a running dataplane, and the route to the remote pod.
    pub fn new(name: &str, pods: u8) -> Self {
        Self::built(name, pods, false)
    }

    /// The same with the server, whose way to its pods is by `pf0`.
    pub fn with_host(name: &str, pods: u8) -> Self {
        Self::built(name, pods, true)
    }

    fn built(name: &str, pods: u8, has_host: bool) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        let folder = tempfile::tempdir().expect("folder");
        let mut lab = Self { name: name.to_owned(), folder, program: None, pods: (1..=pods).collect(), has_host };
        lab.remove_namespaces();
        lab.build();
        lab.start();
        lab.apply(vec![Kind::PutRoute(wire::Route {
            prefix: "10.2.0.0/24".to_owned(),
            next_hop: "192.0.2.2".to_owned(),
            vni: 0,
        })])
        .expect("route");
        lab
    }

    /// Name of a namespace of this lab.
    pub fn netns(&self, place: &str) -> String {
        format!("dm-dp-{}-{place}", self.name)
    }

    fn build(&self) {
        let (dpu, fabric) = (self.netns("dpu"), self.netns("fab"));
        let mut script = format!(
            "ip netns add {dpu}; ip netns add {fabric}
             ip -n {dpu} link set lo up; ip -n {fabric} link set lo up
             ip link add up0 netns {dpu} type veth peer name fab0 netns {fabric}
             ip -n {dpu} addr add 192.0.2.1/24 dev up0; ip -n {fabric} addr add 192.0.2.2/24 dev fab0
             ip -n {dpu} link set up0 up; ip -n {fabric} link set fab0 up
             ip -n {fabric} addr add {REMOTE}/32 dev lo; ip -n {fabric} route add 10.1.0.0/24 via 192.0.2.1 src {REMOTE}\n"
        );
        if self.has_host {
            let host = self.netns("host");
            script += &format!(
                "ip netns add {host}; ip -n {host} link set lo up
                 ip link add pf0hpf netns {dpu} type veth peer name pf0 netns {host}
                 ip -n {host} addr add 192.168.101.1/24 dev pf0; ip -n {dpu} addr add 192.168.101.2/24 dev pf0hpf
                 ip -n {host} -6 addr add fd65::1/64 dev pf0 nodad; ip -n {dpu} -6 addr add fd65::2/64 dev pf0hpf nodad
                 ip -n {host} link set pf0 up; ip -n {dpu} link set pf0hpf up
                 ip -n {host} route add 10.1.0.0/24 via 192.168.101.2; ip -n {host} -6 route add fd01::/64 via fd65::2
                 ip netns exec {host} sysctl -qw net.ipv4.conf.all.rp_filter=1\n"
            );
        }
        for pod in &self.pods {
            script += &format!("ip netns add {}\n", self.netns(&format!("pod{pod}")));
        }
        shell(&script);
        self.pods.iter().for_each(|pod| self.attach(*pod));
    }

    /// Makes the VF of pod `pod` and its representor, with addresses and routes as the CNI gives them.
    pub fn attach(&self, pod: u8) {
        let (dpu, netns) = (self.netns("dpu"), self.netns(&format!("pod{pod}")));
        shell(&format!(
            "ip -n {netns} link set lo up
             ip link add rep{pod} netns {dpu} type veth peer name eth0 netns {netns}
             ip -n {netns} link set eth0 address 02:00:00:00:00:0{pod}
             ip -n {dpu} link set rep{pod} up; ip -n {netns} link set eth0 up
             ip -n {netns} addr add 10.1.0.{pod}/32 dev eth0
             ip -n {netns} -6 addr add fd01::{pod}/128 dev eth0 nodad
             ip -n {netns} route add 169.254.1.1 dev eth0 scope link
             ip -n {netns} route add default via 169.254.1.1 dev eth0
             ip -n {netns} -6 route add default via fe80::1 dev eth0"
        ));
    }

    fn arguments(&self) -> Vec<String> {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let bpf_dir = self.bpf_dir().display().to_string();
        let host: &[&str] = if self.has_host { &["--host-interface", "pf0hpf"] } else { &[] };
        [
            "--uplink",
            "up0",
            "--steering-socket",
            &file("steering.sock"),
            "--state-file",
            &file("state"),
            "--bpf-dir",
            &bpf_dir,
        ]
        .iter()
        .chain(host)
        .map(ToString::to_string)
        .chain(["--congestion-control", "reno", "--log-level", "info"].map(str::to_owned))
        .collect()
    }

    pub fn bpf_dir(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/dm-dp-{}", self.name))
    }

    fn program(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns("dpu")))
            .arg(env!("CARGO_BIN_EXE_dataplane"))
            .args(self.arguments());
        command
    }

    /// Starts the dataplane and waits until it answers.
    pub fn start(&mut self) {
        self.program = Some(self.program().spawn().expect("start the dataplane"));
        eventually("the dataplane answers", || self.state().is_some());
    }

    /// Stops it: `SIGKILL` as a crash.
    pub fn stop(&mut self, signal: Signal) {
        if let Some(mut child) = self.program.take() {
            kill(Pid::from_raw(child.id() as i32), signal).expect("signal");
            child.wait().expect("wait");
        }
    }

    /// Sends it a signal that does not end it.
    pub fn signal(&self, signal: Signal) {
        let child = self.program.as_ref().expect("the dataplane runs");
        kill(Pid::from_raw(child.id() as i32), signal).expect("signal");
    }

    /// `dataplane --cleanup`.
    pub fn clean(&self) {
        assert!(self.program().arg("--cleanup").status().expect("run").success(), "cleanup failed");
    }

    pub fn steering_socket(&self) -> PathBuf {
        self.folder.path().join("steering.sock")
    }

    /// Runs on a thread in the namespace.
    pub fn within<T: Send + 'static>(&self, place: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(place, work).join().expect("thread")
    }

    /// The same, not waited for.
    pub fn spawn<T: Send + 'static>(
        &self,
        place: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.netns(place));
        std::thread::spawn(move || {
            setns(File::open(path).expect("namespace"), CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        })
    }

    fn call<T: Send + 'static, F: Future<Output = Option<T>>>(
        &self,
        call: impl FnOnce(DataplaneClient<Channel>) -> F + Send + 'static,
    ) -> Option<T> {
        self.within("dpu", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let tls = service::grpc::TlsArgs::default();
                let channel = service::grpc::channel("http://127.0.0.1:15130", &tls, "dataplane").await.ok()?;
                call(DataplaneClient::new(channel)).await
            })
        })
    }

    pub fn state(&self) -> Option<wire::State> {
        self.call(|mut client| async move { Some(client.get_state(wire::GetStateRequest {}).await.ok()?.into_inner()) })
    }

    pub fn apply(&self, kinds: Vec<Kind>) -> Result<u64, tonic::Status> {
        let operations = kinds.into_iter().map(|kind| wire::Operation { operation: Some(kind) }).collect();
        let call =
            self.call(move |mut client| async move { Some(client.apply(wire::ApplyRequest { operations }).await) });
        call.expect("connected").map(|response| response.into_inner().epoch)
    }

    /// State of all ports by id.
    pub fn statuses(&self) -> BTreeMap<String, wire::PortStatus> {
        let first = self.call(|mut client| async move {
            client.watch_ports(wire::WatchPortsRequest {}).await.ok()?.into_inner().message().await.ok()?
        });
        first.expect("statuses").changed.into_iter().map(|status| (status.id.clone(), status)).collect()
    }

    pub fn counters(&self, id: &str) -> wire::PortCounters {
        let all = self.call(|mut client| async move {
            Some(client.get_counters(wire::GetCountersRequest {}).await.ok()?.into_inner())
        });
        all.expect("counters").ports.into_iter().find(|port| port.id == id).unwrap_or_default()
    }

    /// Packets of a port that were dropped for the reason.
    pub fn drops(&self, id: &str, reason: &str) -> u64 {
        self.counters(id).drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.packets).sum()
    }

    fn remove_namespaces(&self) {
        let prefix = self.netns("");
        let list = Command::new("ip").args(["netns", "list"]).output().expect("ip");
        for name in String::from_utf8_lossy(&list.stdout).lines().filter_map(|line| line.split_whitespace().next()) {
            if name.starts_with(&prefix) {
                shell(&format!("ip netns delete {name}"));
            }
        }
        // Pins of a crashed run.
        let _ = std::fs::remove_dir_all(self.bpf_dir());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.program.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.remove_namespaces();
    }
}

/// A governed port of pod `number`, closed on failure.
pub fn port(number: u8) -> wire::Port {
    wire::Port {
        id: format!("vf{number}"),
        representor: format!("rep{number}"),
        mac: format!("02:00:00:00:00:0{number}"),
        addresses: vec![format!("10.1.0.{number}"), format!("fd01::{number}")],
        workload_uid: format!("uid-{number}"),
        ..wire::Port::default()
    }
}

pub fn ungoverned(number: u8) -> wire::Port {
    wire::Port { steering: wire::Steering::None.into(), ..port(number) }
}

pub fn bypass(number: u8) -> wire::Port {
    wire::Port { on_failure: wire::OnFailure::Bypass.into(), ..port(number) }
}

pub fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Connects within the time; the error otherwise.
pub fn connect(to: &str, within: Duration) -> std::io::Result<TcpStream> {
    let address: SocketAddr = to.parse().expect("address");
    let stream = TcpStream::connect_timeout(&address, within)?;
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    Ok(stream)
}

/// A UDP socket that answers every datagram with `name`.
pub fn udp_echo(address: &str, name: &'static str) -> impl FnOnce() + Send + 'static {
    let address = address.to_owned();
    move || {
        let socket = UdpSocket::bind(address).expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut bytes = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(name.as_bytes(), from).expect("send");
        }
    }
}

/// Asks a UDP address and returns the answer of that very address.
pub fn udp_ask(to: &str, within: Duration) -> Option<String> {
    let local = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(local).expect("bind");
    socket.connect(to).expect("connect");
    socket.set_read_timeout(Some(within)).expect("timeout");
    socket.send(b"who?").ok()?;
    let mut bytes = [0; 2048];
    let length = socket.recv(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Sends an echo request of `size` bytes and waits for its reply.
pub fn ping(to: &str, size: usize) -> bool {
    use socket2::{Domain, Protocol, Socket, Type};
    let to: std::net::IpAddr = to.parse().expect("address");
    let (domain, protocol, kinds) = match to.is_ipv4() {
        true => (Domain::IPV4, Protocol::ICMPV4, (8, 0)),
        false => (Domain::IPV6, Protocol::ICMPV6, (128, 129)),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("raw socket");
    socket.connect(&SocketAddr::new(to, 0).into()).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut request = vec![0x5a; 8 + size];
    request[..8].copy_from_slice(&[kinds.0, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let sum = checksum(&request);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    socket.send(&request).expect("send");
    let socket = UdpSocket::from(std::os::fd::OwnedFd::from(socket));
    let mut bytes = vec![0; 65536];
    while let Ok(length) = socket.recv(&mut bytes) {
        // IPv4 raw sockets show the IP header too.
        let reply = if to.is_ipv4() { &bytes[20..length] } else { &bytes[..length] };
        if reply[0] == kinds.1 && reply[4..6] == [0x12, 0x34] && reply.len() == 8 + size {
            return true;
        }
    }
    false
}

/// Internet checksum, to be stored in network order.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Connects from a port of one's choice.
pub fn connect_from(from: &str, to: &str) -> std::io::Result<TcpStream> {
    use socket2::{Domain, Socket, Type};
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("address"), to.parse().expect("address"));
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Body and head of a page of the health server.
pub fn get(path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = connect("127.0.0.1:15131", PATIENCE).expect("health server");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: dataplane\r\nConnection: close\r\n\r\n").expect("write");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("read");
    page
}
