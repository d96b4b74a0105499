//! The real program in network namespaces: who gets what a pod sends, and what a pod gets.

mod lab;

use dataplane::engine::Door;
use dataplane::kernel::{Kernel, KernelArgs};
use dataplane::state::{Change, Device, Difference, Wire};
use dataplane::sys::abi;
use lab::proxy::{Proxy, accept, call};
use lab::*;
use mesh_api::dataplane as wire;
use mesh_api::dataplane::operation::Operation as Kind;
use nix::sys::signal::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};

fn ports(lab: &Lab, ports: impl IntoIterator<Item = wire::Port>) {
    lab.apply(ports.into_iter().map(Kind::PutPort).collect()).expect("ports");
}

#[test]
fn tcp_of_a_pod_lands_in_the_proxy_with_its_destination_whatever_that_is() {
    let lab = Lab::new("out", 1);
    ports(&lab, [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    assert_eq!(proxy.told[0].changed[0].representor, "rep1");
    let listener = proxy.govern(&lab, 1);
    assert_eq!(lab.statuses()["vf1"].state(), wire::PortState::Open);
    // Somewhere, the remote pod, the DPU itself, the gateway.
    for to in ["203.0.113.9:8080", "10.2.0.5:80", "192.0.2.1:22", "169.254.1.1:15001"] {
        let pod = lab.spawn("pod1", move || {
            let mut stream = connect(to, PATIENCE).expect("connect");
            stream.write_all(b"hello").expect("write");
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).expect("answer");
            answer
        });
        let (mut stream, peer) = accept(&listener).expect("steered");
        assert_eq!(stream.local_addr().expect("address").to_string(), to);
        assert_eq!(peer.ip().to_string(), "10.1.0.1");
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).expect("hello");
        stream.write_all(&hello).expect("echo");
        assert_eq!(&pod.join().expect("pod"), b"hello");
    }
    assert_eq!(lab.counters("vf1").steered_connections, 4);
    assert!(lab.counters("vf1").rx_packets >= 16 && lab.counters("vf1").tx_packets >= 12);
}

#[test]
fn nothing_passes_until_the_proxy_listens_and_is_ready() {
    let lab = Lab::new("closed", 2);
    ports(&lab, [port(1), ungoverned(2)]);
    let status = &lab.statuses()["vf1"];
    assert_eq!(status.state(), wire::PortState::Closed);
    assert!(status.reason.contains("proxy"), "{}", status.reason);
    let refused = |lab: &Lab| lab.within("pod1", || connect("10.2.0.5:80", BRIEF).expect_err("closed").kind());
    assert_eq!(refused(&lab), ErrorKind::TimedOut);
    assert_eq!(lab.within("pod1", || udp_ask("10.1.0.2:9", BRIEF)), None);
    assert!(lab.drops("vf1", "port_closed") >= 2);
    let mut proxy = Proxy::connect(&lab);
    proxy.ready(1);
    assert_eq!(refused(&lab), ErrorKind::TimedOut);
    assert!(lab.drops("vf1", "no_listener") >= 1);
    let other = mesh_api::steering::PortReady {
        port_id: "vf1".to_owned(),
        workload_uid: "uid-9".to_owned(),
        ..Default::default()
    };
    let error = proxy.ask(mesh_api::steering::from_proxy::Message::PortReady(other), None).expect_err("other workload");
    assert!(error.contains("uid-1"), "{error}");
}

#[test]
fn a_pod_that_sends_as_another_is_dropped_and_counted() {
    let lab = Lab::new("spoof", 2);
    ports(&lab, [ungoverned(1), ungoverned(2)]);
    let pod = lab.netns("pod1");
    // An ARP request in another's name gets no answer, so learn the gateway first.
    assert_eq!(lab.within("pod1", || udp_ask("10.2.0.5:9", BRIEF)), None);
    shell(&format!("ip -n {pod} addr add 10.1.0.77/32 dev eth0; ip -n {pod} addr add 10.1.0.2/32 dev eth0"));
    for source in ["10.1.0.77:1000", "10.1.0.2:1000"] {
        lab.within("pod1", move || {
            let socket = UdpSocket::bind(source).expect("bind");
            socket.send_to(b"x", "10.2.0.5:9").expect("send");
        });
    }
    eventually("both are counted", || lab.drops("vf1", "spoofed_ip") == 2);
    let before = lab.drops("vf1", "spoofed_mac");
    shell(&format!("ip -n {pod} addr del 10.1.0.77/32 dev eth0; ip -n {pod} addr del 10.1.0.2/32 dev eth0"));
    shell(&format!("ip -n {pod} link set eth0 address 02:00:00:00:00:99"));
    assert_eq!(lab.within("pod1", || udp_ask("10.2.0.5:9", BRIEF)), None);
    assert!(lab.drops("vf1", "spoofed_mac") > before);
}

#[test]
fn what_is_not_tcp_goes_from_pod_to_pod_here_and_over_the_uplink() {
    let lab = Lab::new("plain", 2);
    ports(&lab, [port(1), port(2)]);
    let mut proxy = Proxy::connect(&lab);
    proxy.ready(1);
    proxy.ready(2);
    let here = lab.spawn("pod2", udp_echo("10.1.0.2:53", "pod2"));
    let here6 = lab.spawn("pod2", udp_echo("[fd01::2]:53", "pod2 over IPv6"));
    let there = lab.spawn("fab", udp_echo("10.2.0.5:53", "remote"));
    let ask = |to: &'static str| move || udp_ask(to, PATIENCE);
    eventually("pod2 answers", || lab.within("pod1", || udp_ask("10.1.0.2:53", BRIEF)).as_deref() == Some("pod2"));
    assert_eq!(lab.within("pod1", ask("[fd01::2]:53")).as_deref(), Some("pod2 over IPv6"));
    assert_eq!(lab.within("pod1", ask("10.2.0.5:53")).as_deref(), Some("remote"));
    assert_eq!(lab.within("fab", ask("10.1.0.2:53")).as_deref(), Some("pod2"));
    for (place, to) in [("pod1", "10.1.0.2"), ("pod1", "10.2.0.5"), ("fab", "10.1.0.1"), ("pod1", "fd01::2")] {
        assert!(lab.within(place, move || ping(to, 56)), "{place} to {to}");
    }
    // Larger than any frame: fragments find their way.
    assert!(lab.within("pod1", || ping("10.1.0.2", 4000)));
    drop((here, here6, there));
}

#[test]
fn a_udp_service_is_balanced_and_answers_as_itself() {
    let lab = Lab::new("vip", 2);
    let backend = |address: &str| wire::Backend { address: address.to_owned(), port: 5353 };
    let key = wire::ServiceKey { vip: "10.96.0.10".to_owned(), port: 53, protocol: 17, vni: 0 };
    let service = |backends| Kind::PutService(wire::Service { key: Some(key.clone()), backends });
    ports(&lab, [ungoverned(1), ungoverned(2)]);
    lab.apply(vec![service(vec![backend("10.1.0.2"), backend("10.2.0.5")])]).expect("service");
    let _here = lab.spawn("pod2", udp_echo("10.1.0.2:5353", "here"));
    let _there = lab.spawn("fab", udp_echo("10.2.0.5:5353", "there"));
    let mut answers = std::collections::BTreeSet::new();
    eventually("both backends answer", || {
        answers.extend(lab.within("pod1", || udp_ask("10.96.0.10:53", BRIEF)));
        answers.len() == 2
    });
    assert_eq!(lab.within("pod1", || udp_ask("10.96.0.10:54", BRIEF)), None);
    assert_eq!(lab.drops("vf1", "no_backend"), 1);
    // A flow keeps its backend until that goes; then it gets another.
    lab.apply(vec![service(vec![backend("10.1.0.2")])]).expect("fewer");
    let only = lab.within("pod1", || (0..8).map(|_| udp_ask("10.96.0.10:53", PATIENCE)).collect::<Vec<_>>());
    assert!(only.iter().all(|answer| answer.as_deref() == Some("here")), "{only:?}");
    lab.apply(vec![Kind::DeleteService(key)]).expect("delete");
    assert_eq!(lab.within("pod1", || udp_ask("10.96.0.10:53", BRIEF)), None);
    assert_eq!(lab.drops("vf1", "no_route"), 1);
}

#[test]
fn tcp_from_the_fabric_lands_in_the_inbound_listener_and_other_traffic_of_the_dpu_does_not() {
    let lab = Lab::new("in", 1);
    ports(&lab, [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let _outbound = proxy.govern(&lab, 1);
    let refused = lab.within("fab", || connect("10.1.0.1:9080", BRIEF).expect_err("nobody listens").kind());
    assert_eq!(refused, ErrorKind::TimedOut);
    assert!(lab.drops("vf1", "no_listener") >= 1);
    let inbound = proxy.govern_inbound(&lab);
    let caller = lab.spawn("fab", || {
        let mut stream = connect("10.1.0.1:9080", PATIENCE).expect("connect");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        answer
    });
    let (mut stream, peer) = accept(&inbound).expect("steered");
    assert_eq!(stream.local_addr().expect("address").to_string(), "10.1.0.1:9080");
    assert_eq!(peer.ip().to_string(), REMOTE);
    stream.write_all(b"governed").expect("write");
    drop(stream);
    assert_eq!(caller.join().expect("caller"), "governed");
    // The DPU's own services are reached as ever.
    let own = lab.within("dpu", || TcpListener::bind("192.0.2.1:2222").expect("bind"));
    let caller = lab.spawn("fab", || connect("192.0.2.1:2222", PATIENCE).is_ok());
    assert!(accept(&own).is_some() && caller.join().expect("caller"));
}

#[test]
fn the_proxy_reaches_the_fabric_and_a_local_pod_from_addresses_that_are_not_its_own() {
    let lab = Lab::new("call", 2);
    ports(&lab, [port(1), port(2)]);
    let mut proxy = Proxy::connect(&lab);
    let _listeners = [proxy.govern(&lab, 1), proxy.govern(&lab, 2)];
    let remote = lab.within("fab", || TcpListener::bind("10.2.0.5:7000").expect("bind"));
    let local = lab.within("pod2", || TcpListener::bind("10.1.0.2:9080").expect("bind"));
    for (device, source, to, server) in
        [("up0", "10.1.0.1:0", "10.2.0.5:7000", &remote), ("rep2", "10.9.9.9:0", "10.1.0.2:9080", &local)]
    {
        let caller = lab.spawn("dpu", move || {
            let mut stream = call(device, source, to).expect("connect");
            stream.write_all(b"hello").expect("write");
            stream
        });
        let (mut stream, peer) = accept(server).expect("arrives");
        assert_eq!(peer.ip().to_string(), source.split(':').next().expect("address"));
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).expect("data");
        drop(caller.join().expect("caller"));
    }
    // Anybody else on the DPU does not get to a governed pod.
    let kind = lab.within("dpu", || connect("10.1.0.2:9080", BRIEF).expect_err("ungoverned").kind());
    assert!(
        matches!(kind, ErrorKind::TimedOut | ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable),
        "{kind:?}"
    );
}

#[test]
fn when_the_proxy_dies_its_connections_are_reset_and_new_ones_wait_for_the_next_proxy() {
    let lab = Lab::new("death", 1);
    ports(&lab, [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let listener = proxy.govern(&lab, 1);
    let pod = lab.spawn("pod1", || connect("10.2.0.5:80", PATIENCE).expect("connect"));
    let (stream, _) = accept(&listener).expect("steered");
    let mut pod = pod.join().expect("pod");
    drop((listener, stream, proxy));
    pod.write_all(b"x").ok();
    let mut byte = [0];
    assert!(matches!(pod.read(&mut byte), Ok(0) | Err(_)));
    assert!(pod.write_all(b"x").and_then(|()| pod.read(&mut byte)).is_err(), "no reset");
    let before = lab.drops("vf1", "no_listener");
    let waiting = lab.spawn("pod1", || connect("10.2.0.5:80", PATIENCE).is_ok());
    eventually("the SYN is dropped, not refused", || lab.drops("vf1", "no_listener") > before);
    assert_eq!(lab.statuses()["vf1"].state(), wire::PortState::Open);
    let mut proxy = Proxy::connect(&lab);
    let listener = proxy.govern(&lab, 1);
    assert!(accept(&listener).is_some(), "the SYN that is sent again is steered");
    assert!(waiting.join().expect("pod"));
}

#[test]
fn a_bypass_port_goes_on_without_a_proxy_and_is_governed_again_with_one() {
    let lab = Lab::new("bypass", 2);
    ports(&lab, [bypass(1), bypass(2)]);
    let remote = lab.within("fab", || TcpListener::bind("10.2.0.5:7000").expect("bind"));
    let local = lab.within("pod2", || TcpListener::bind("10.1.0.2:7000").expect("bind"));
    for (server, to) in [(&remote, "10.2.0.5:7000"), (&local, "10.1.0.2:7000")] {
        let pod = lab.spawn("pod1", move || connect(to, PATIENCE).expect("bypassed"));
        let (mut stream, peer) = accept(server).expect("arrives");
        assert_eq!(peer.ip().to_string(), "10.1.0.1");
        let mut pod = pod.join().expect("pod");
        let mut proxy = Proxy::connect(&lab);
        let listener = proxy.govern(&lab, 1);
        // A connection stays where it began.
        stream.write_all(b"still here").expect("write");
        let mut bytes = [0; 10];
        pod.read_exact(&mut bytes).expect("read");
        let governed = lab.spawn("pod1", move || connect(to, PATIENCE).is_ok());
        assert!(accept(&listener).is_some() && governed.join().expect("pod"));
    }
}

#[test]
fn a_pod_outside_the_mesh_talks_plainly_and_meets_the_proxy_of_a_governed_one() {
    let lab = Lab::new("none", 2);
    ports(&lab, [ungoverned(1), port(2)]);
    assert_eq!(lab.statuses()["vf1"].state(), wire::PortState::Open);
    let remote = lab.within("fab", || TcpListener::bind("10.2.0.5:7000").expect("bind"));
    let own = lab.within("pod1", || TcpListener::bind("10.1.0.1:7000").expect("bind"));
    let pod = lab.spawn("pod1", || connect("10.2.0.5:7000", PATIENCE).is_ok());
    assert!(accept(&remote).is_some() && pod.join().expect("pod"));
    let caller = lab.spawn("fab", || connect("10.1.0.1:7000", PATIENCE).is_ok());
    assert!(accept(&own).is_some() && caller.join().expect("caller"));
    let mut proxy = Proxy::connect(&lab);
    let (_outbound, inbound) = (proxy.govern(&lab, 2), proxy.govern_inbound(&lab));
    let pod = lab.spawn("pod1", || connect("10.1.0.2:9080", PATIENCE).expect("connect"));
    let (mut stream, peer) = accept(&inbound).expect("governed");
    assert_eq!((peer.ip().to_string().as_str(), stream.local_addr().expect("address").port()), ("10.1.0.1", 9080));
    stream.write_all(b"x").expect("write");
    pod.join().expect("pod").read_exact(&mut [0]).expect("read");
    // And the proxy reaches it as a governed pod would, by the uplink.
    let caller = lab.spawn("dpu", || call("up0", "10.1.0.2:0", "10.1.0.1:7000").is_ok());
    assert!(accept(&own).is_some() && caller.join().expect("caller"));
}

#[test]
fn a_restart_keeps_connections_ports_and_counters() {
    let mut lab = Lab::new("restart", 1);
    ports(&lab, [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let listener = proxy.govern(&lab, 1);
    let pod = lab.spawn("pod1", || connect("10.2.0.5:80", PATIENCE).expect("connect"));
    let (mut stream, _) = accept(&listener).expect("steered");
    let mut pod = pod.join().expect("pod");
    let (state, counters) = (lab.state().expect("state"), lab.counters("vf1"));
    lab.stop(Signal::SIGKILL);
    // It works on without the program, also for new connections.
    let other = lab.spawn("pod1", || connect("10.2.0.5:81", PATIENCE).is_ok());
    assert!(accept(&listener).is_some() && other.join().expect("pod"));
    lab.start();
    assert_eq!(lab.state().expect("state"), state);
    assert_eq!(lab.statuses()["vf1"].state(), wire::PortState::Open);
    assert!(lab.counters("vf1").rx_packets > counters.rx_packets);
    stream.write_all(b"alive").expect("write");
    pod.read_exact(&mut [0; 5]).expect("read");
    let other = lab.spawn("pod1", || connect("10.2.0.5:82", PATIENCE).is_ok());
    assert!(accept(&listener).is_some() && other.join().expect("pod"));
}

#[test]
fn a_deleted_port_and_a_cleanup_leave_nothing_behind() {
    let mut lab = Lab::new("clean", 1);
    let dpu = lab.netns("dpu");
    let look = |what: &str| {
        let output =
            std::process::Command::new("sh").args(["-c", &format!("ip -n {dpu} {what}")]).output().expect("ip");
        // Link-local addresses come and go by themselves.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter(|line| !line.contains("fe80:")).collect::<Vec<_>>().join("\n")
    };
    let before = (look("rule"), look("-6 rule"), look("route show table all"), look("neigh show nud permanent"));
    ports(&lab, [port(1)]);
    assert_ne!(look("rule"), before.0);
    lab.apply(vec![Kind::DeletePortId("vf1".to_owned())]).expect("delete");
    let after = (look("rule"), look("-6 rule"), look("route show table all"), look("neigh show nud permanent"));
    assert_eq!(after, before);
    ports(&lab, [port(1)]);
    lab.stop(Signal::SIGTERM);
    lab.clean();
    assert!(!look("rule").contains("rep1") && !look("rule").contains("up0") && !look("-6 rule").contains("up0"));
    assert!(!look("route show table all").contains("10.1.0.1"), "{}", look("route show table all"));
    assert!(!look("neigh show nud permanent").contains("10.1.0.1"), "{}", look("neigh show nud permanent"));
    assert!(!lab.bpf_dir().exists());
}

#[test]
fn what_another_version_pinned_goes_when_this_one_is_in_place() {
    let mut lab = Lab::new("version", 1);
    ports(&lab, [ungoverned(1)]);
    lab.stop(Signal::SIGTERM);
    let old = lab.bpf_dir().join("0");
    std::fs::create_dir_all(old.join("maps")).expect("folders in the bpf file system");
    lab.start();
    eventually("the old layout is gone", || !old.exists());
    let _echo = lab.spawn("fab", udp_echo("10.2.0.5:53", "remote"));
    eventually("the port works on", || {
        lab.within("pod1", || udp_ask("10.2.0.5:53", BRIEF)).as_deref() == Some("remote")
    });
}

#[test]
fn a_bad_apply_changes_nothing_and_names_the_operation() {
    let lab = Lab::new("bad", 1);
    let before = lab.state();
    let overlay = wire::Port { vni: 7, ..port(1) };
    let error = lab.apply(vec![Kind::PutPort(port(1)), Kind::PutPort(overlay)]).expect_err("overlay");
    assert_eq!(error.code(), tonic::Code::Unimplemented);
    assert!(error.message().contains("operation 1: put_port.vni: not supported yet: vni"), "{}", error.message());
    let nowhere = wire::Port { representor: "rep9".to_owned(), ..port(2) };
    let error = lab.apply(vec![Kind::PutPort(port(1)), Kind::PutPort(nowhere)]).expect_err("no interface");
    assert!(error.message().contains("rep9"), "{}", error.message());
    assert_eq!(lab.state(), before);
    assert!(lab.statuses().is_empty());
}

#[test]
fn a_representor_that_is_made_again_serves_on_and_one_that_is_gone_can_be_deleted() {
    let lab = Lab::new("again", 2);
    ports(&lab, [ungoverned(1), ungoverned(2)]);
    let _echo = lab.spawn("pod2", udp_echo("10.1.0.2:53", "pod2"));
    eventually("pod2 answers", || lab.within("pod1", || udp_ask("10.1.0.2:53", BRIEF)).is_some());
    // The pair dies with the pod's end, as it does with the pod's namespace.
    shell(&format!("ip -n {} link delete eth0", lab.netns("pod1")));
    lab.attach(1);
    eventually("the new representor works", || lab.within("pod1", || udp_ask("10.1.0.2:53", BRIEF)).is_some());
    shell(&format!("ip -n {} link delete eth0", lab.netns("pod1")));
    lab.apply(vec![Kind::DeletePortId("vf1".to_owned())]).expect("delete without its interface");
    lab.attach(1);
    ports(&lab, [ungoverned(1)]);
    eventually("it comes back", || lab.within("pod1", || udp_ask("10.1.0.2:53", BRIEF)).is_some());
}

/// A governed port of the address that both tenants have, in a network of its own.
fn tenant(number: u8, device: Device) -> [Change; 3] {
    let mac = [2, 0, 0, 0, 0, number];
    let (ifindex, slot, vni) = (device.ifindex, u32::from(number), u32::from(number));
    let address = "10.1.0.1".parse().expect("address");
    let wire = Wire {
        name: format!("rep{number}"),
        ifindex,
        slot,
        mac: mesh_model::MacAddress(mac),
        addresses: vec![address],
        governed: true,
    };
    let flags = abi::PORT_OPEN | abi::PORT_GOVERNED;
    let port = abi::Port { slot, vni, flags, mac, gateway_mac: device.mac.0 };
    let key = abi::EndpointKey { vni, address: address.into() };
    [
        Change::Wire(Difference { key: ifindex, before: None, after: Some(wire) }),
        Change::Port(Difference { key: ifindex, before: None, after: Some(port) }),
        Change::Endpoint(Difference { key, before: None, after: Some(ifindex) }),
    ]
}

/// Both tenants' ports, and a listening socket for each.
async fn tenants(args: KernelArgs) -> Vec<TcpListener> {
    let mut kernel = Kernel::open(&args).await.expect("kernel");
    let mut listeners = Vec::new();
    for number in [1, 2] {
        let name = format!("rep{number}");
        let device = kernel.device(&name).await.expect("netlink").expect("interface");
        for step in tenant(number, device) {
            kernel.carry_out(&step).await.expect("step");
        }
        let listener = lab::proxy::listener(&name, 4, 15001);
        let copy = std::os::fd::OwnedFd::from(listener.try_clone().expect("copy"));
        kernel.set_listener(device.ifindex, 4, &copy).expect("listener");
        listeners.push(listener);
    }
    listeners
}

#[test]
fn two_tenants_with_the_same_address_and_ports_each_reach_their_own_listener() {
    // The API has no overlay yet; the tables below it have.
    let mut lab = Lab::new("twins", 2);
    lab.stop(Signal::SIGTERM);
    lab.clean();
    let twin = lab.netns("pod2");
    shell(&format!("ip -n {twin} addr del 10.1.0.2/32 dev eth0; ip -n {twin} addr add 10.1.0.1/32 dev eth0"));
    shell(&format!("ip -n {twin} route replace default via 169.254.1.1 dev eth0 onlink"));
    let args = KernelArgs {
        uplink: "up0".to_owned(),
        host: None,
        bpf_dir: lab.bpf_dir(),
        congestion_control: None,
        sysctl: dataplane::sys::sysctl::Sysctl::default(),
    };
    let listeners = lab.within("dpu", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(tenants(args))
    });
    let callers = ["pod1", "pod2"].map(|pod| {
        lab.spawn(pod, move || {
            let mut stream = connect_from("10.1.0.1:4444", "203.0.113.9:80").expect("connect");
            stream.write_all(pod.as_bytes()).expect("write");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).expect("read");
            answer
        })
    });
    for (listener, pod) in listeners.iter().zip(["pod1", "pod2"]) {
        let (mut stream, peer) = accept(listener).expect("steered");
        assert_eq!(peer.to_string(), "10.1.0.1:4444");
        let mut name = [0; 4];
        stream.read_exact(&mut name).expect("read");
        assert_eq!(&name, pod.as_bytes());
        stream.write_all(&name).expect("write");
    }
    let answers = callers.map(|caller| caller.join().expect("pod"));
    assert_eq!(answers, [*b"pod1", *b"pod2"]);
}

#[test]
fn metrics_and_ports_tell_what_happened() {
    let lab = Lab::new("tell", 1);
    ports(&lab, [port(1)]);
    lab.within("pod1", || connect("10.2.0.5:80", BRIEF).expect_err("closed"));
    let metrics = lab.within("dpu", || get("/metrics"));
    assert!(metrics.contains("dataplane_drops_total{port=\"vf1\",reason=\"port_closed\"} 1"), "{metrics}");
    assert!(metrics.contains("dataplane_port_rx_packets_total{port=\"vf1\"}"), "{metrics}");
    assert!(metrics.contains("dataplane_port_open{port=\"vf1\"} 0"), "{metrics}");
    let ports = lab.within("dpu", || get("/ports"));
    assert!(ports.contains("\"representor\":\"rep1\"") && ports.contains("\"port_closed\":1"), "{ports}");
    assert!(metrics.contains("dataplane_proxies 0"), "{metrics}");
    assert!(lab.within("dpu", || get("/readyz")).contains("kernel: ok"), "readiness");
}

#[test]
fn governed_tcp_over_ipv6_lands_in_the_proxy() {
    use mesh_api::steering::Direction;
    let lab = Lab::new("six", 1);
    ports(&lab, [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let listener = proxy.listen(&lab, "rep1", Direction::Outbound, "vf1", 6);
    proxy.ready(1);
    let pod = lab.spawn("pod1", || {
        let mut stream = connect("[2001:db8::9]:8080", PATIENCE).expect("connect");
        stream.read_exact(&mut [0; 5]).expect("read");
    });
    let (mut stream, peer) = accept(&listener).expect("steered");
    assert_eq!(stream.local_addr().expect("address").to_string(), "[2001:db8::9]:8080");
    assert_eq!(peer.ip().to_string(), "fd01::1");
    stream.write_all(b"hello").expect("write");
    pod.join().expect("pod");
}

#[test]
fn a_proxy_that_talks_nonsense_is_told_so_and_harms_nobody() {
    use mesh_api::steering::from_proxy::Message as Asked;
    use mesh_api::steering::{Direction, PortNotReady, RegisterListener};
    let lab = Lab::new("noise", 1);
    ports(&lab, [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let register = |port_id: &str, ip_version| RegisterListener {
        direction: Direction::Outbound.into(),
        port_id: port_id.to_owned(),
        ip_version,
    };
    let error = proxy.ask(Asked::RegisterListener(register("vf1", 4)), None).expect_err("no descriptor");
    assert!(error.contains("send one"), "{error}");
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    assert!(proxy.ask(Asked::RegisterListener(register("vf9", 4)), Some(&socket)).expect_err("port").contains("vf9"));
    assert!(
        proxy.ask(Asked::RegisterListener(register("vf1", 5)), Some(&socket)).expect_err("version").contains("4 or 6")
    );
    let unknown = PortNotReady { port_id: "vf9".to_owned(), reason: String::new() };
    assert!(proxy.ask(Asked::PortNotReady(unknown), None).is_err());
    assert!(!proxy.send_raw(&[0xff; 100]).is_empty());
    proxy.ready(1);
    assert_eq!(lab.statuses()["vf1"].state(), wire::PortState::Open);
    // A port that comes later is told, and one that goes.
    lab.apply(vec![Kind::DeletePortId("vf1".to_owned())]).expect("delete");
    let closed = PortNotReady { port_id: "vf1".to_owned(), reason: String::new() };
    assert!(proxy.ask(Asked::PortNotReady(closed), None).is_err());
    assert!(proxy.told.iter().any(|ports| !ports.snapshot && ports.removed_ids == ["vf1"]), "{:?}", proxy.told);
}

#[test]
fn a_bulk_of_tcp_through_a_service_arrives_whole_and_without_being_cut_small() {
    const BYTES: usize = 64 << 20;
    let lab = Lab::new("bulk", 1);
    ports(&lab, [ungoverned(1)]);
    let key = wire::ServiceKey { vip: "10.96.0.20".to_owned(), port: 80, protocol: 6, vni: 0 };
    let backends = vec![wire::Backend { address: REMOTE.to_owned(), port: 8080 }];
    lab.apply(vec![Kind::PutService(wire::Service { key: Some(key), backends })]).expect("service");
    let server = lab.within("fab", || TcpListener::bind("10.2.0.5:8080").expect("bind"));
    let pod = lab.spawn("pod1", || {
        let mut stream = connect("10.96.0.20:80", PATIENCE).expect("connect");
        let chunk: Vec<u8> = (0..1 << 20).map(|place: u32| (place % 251) as u8).collect();
        (0..BYTES >> 20).for_each(|_| stream.write_all(&chunk).expect("write"));
    });
    let (mut stream, _) = accept(&server).expect("balanced");
    let mut received = Vec::with_capacity(BYTES);
    stream.read_to_end(&mut received).expect("read");
    pod.join().expect("pod");
    assert_eq!(received.len(), BYTES);
    assert!(
        received
            .chunks(1 << 20)
            .all(|chunk| chunk.iter().enumerate().all(|(place, byte)| *byte == (place % 251) as u8))
    );
    let counters = lab.counters("vf1");
    // Segmentation offload survives the rewriting: far fewer packets than frames of 1,500 bytes.
    let per_packet = counters.rx_bytes / counters.rx_packets;
    assert!(per_packet > 6000, "{per_packet} bytes a packet");
}
