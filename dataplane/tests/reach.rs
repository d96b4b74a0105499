//! What pods of a real cluster need beside each other: hosts, what lies behind them, and services whose
//! backends are hosts. The fabric's namespace is a host, a router and whatever is behind it.

mod lab;

use lab::proxy::{Proxy, accept, call};
use lab::*;
use mesh_api::dataplane as wire;
use mesh_api::dataplane::operation::Operation as Kind;
use nix::sys::signal::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};

/// A host of the fabric, and an address behind it.
const HOST: &str = "192.0.2.2";
const BEYOND: &str = "198.51.100.7";
/// A service address.
const VIP: &str = "10.96.0.10";

fn reach(name: &str, ports: impl IntoIterator<Item = wire::Port>) -> Lab {
    let lab = Lab::new(name, 2);
    let (dpu, fabric) = (lab.netns("dpu"), lab.netns("fab"));
    shell(&format!(
        "ip -n {fabric} addr add {BEYOND}/32 dev lo; ip -n {dpu} route add default via {HOST}
         ip -n {dpu} -6 addr add fd99::1/64 dev up0 nodad; ip -n {fabric} -6 addr add fd99::2/64 dev fab0 nodad
         ip -n {fabric} -6 addr add fd77::7/128 dev lo nodad; ip -n {dpu} -6 route add default via fd99::2
         ip -n {fabric} -6 route add fd01::/64 via fd99::1"
    ));
    lab.apply(ports.into_iter().map(Kind::PutPort).collect()).expect("ports");
    lab
}

fn service(protocol: u32, port: u32, backends: &[(&str, u32)]) -> Kind {
    let key = wire::ServiceKey { vip: VIP.to_owned(), port, protocol, vni: 0 };
    let backend = |one: &(&str, u32)| wire::Backend { address: one.0.to_owned(), port: one.1 };
    Kind::PutService(wire::Service { key: Some(key), backends: backends.iter().map(backend).collect() })
}

/// Answers every connection with a name.
fn serve(lab: &Lab, place: &str, address: &str, name: &'static str) {
    let address = address.to_owned();
    let listener = lab.within(place, move || TcpListener::bind(address).expect("bind"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The caller may have gone.
            let _ = (&stream).write_all(name.as_bytes());
        }
    });
}

/// What an address answers to whoever connects.
fn ask(lab: &Lab, place: &str, to: &str) -> String {
    let to = to.to_owned();
    lab.within(place, move || {
        let mut answer = String::new();
        connect(&to, PATIENCE).expect("connect").read_to_string(&mut answer).expect("answer");
        answer
    })
}

#[test]
fn a_pod_reaches_hosts_and_what_is_behind_them_by_the_dpus_own_routes() {
    let lab = reach("beyond", [port(1), ungoverned(2)]);
    Proxy::connect(&lab).ready(1);
    for (number, address) in [HOST, BEYOND, "[fd99::2]", "[fd77::7]"].into_iter().enumerate() {
        let at = format!("{address}:{}", 5300 + number);
        let _echo = lab.spawn("fab", udp_echo(&at, "outside"));
        for pod in ["pod1", "pod2"] {
            let to = at.clone();
            eventually(&at, || {
                let to = to.clone();
                lab.within(pod, move || udp_ask(&to, BRIEF)).as_deref() == Some("outside")
            });
            let plain = address.trim_matches(['[', ']']).to_owned();
            assert!(lab.within(pod, move || ping(&plain, 56)), "{pod} pings {address}");
        }
    }
    assert_eq!(lab.drops("vf1", "no_route"), 0);
    // The DPU's routes change, and the pods' ways with them.
    shell(&format!("ip -n {} route del default", lab.netns("dpu")));
    eventually("the way is gone", || {
        let _ = lab.within("pod1", || udp_ask("198.51.100.7:5301", BRIEF));
        lab.drops("vf1", "no_route") > 0
    });
    assert_eq!(lab.within("pod1", || udp_ask("192.0.2.2:5300", PATIENCE)).as_deref(), Some("outside"));
}

#[test]
fn routes_are_followed_also_after_more_changed_at_once_than_can_be_told() {
    let lab = reach("flood", [ungoverned(1)]);
    let dpu = lab.netns("dpu");
    let _echo = lab.spawn("fab", udp_echo("198.51.100.7:5300", "outside"));
    shell(&format!("ip -n {dpu} route del default"));
    eventually("no way yet", || {
        lab.within("pod1", || udp_ask("198.51.100.7:5300", BRIEF)).is_none() && lab.drops("vf1", "no_route") > 0
    });
    lab.signal(Signal::SIGSTOP);
    let batch = |word: &str| {
        (0..8000).map(|n| format!("route {word} 10.77.{}.{}/32 dev up0\n", n / 250, n % 250)).collect::<String>()
    };
    let file = lab.steering_socket().with_file_name("routes");
    std::fs::write(&file, batch("add") + &batch("del")).expect("written");
    shell(&format!("ip -n {dpu} -batch {} && ip -n {dpu} route add default via {HOST}", file.display()));
    lab.signal(Signal::SIGCONT);
    eventually("the new way is found", || {
        lab.within("pod1", || udp_ask("198.51.100.7:5300", BRIEF)).as_deref() == Some("outside")
    });
}

#[test]
fn a_pod_reaches_neither_the_dpu_nor_its_other_links() {
    let lab = reach("own", [ungoverned(1)]);
    let dpu = lab.netns("dpu");
    shell(&format!(
        "ip -n {dpu} link add mgmt0 type veth peer name mgmt1; ip -n {dpu} addr add 192.168.100.2/24 dev mgmt0
         ip -n {dpu} link set mgmt0 up; ip -n {dpu} link set mgmt1 up"
    ));
    let own = lab.within("dpu", || UdpSocket::bind("0.0.0.0:5400").expect("bind"));
    own.set_read_timeout(Some(BRIEF)).expect("timeout");
    let mut sent = 0;
    for to in ["192.0.2.1:5400", "192.168.100.2:5400", "192.168.100.1:5400"] {
        assert_eq!(lab.within("pod1", move || udp_ask(to, BRIEF)), None, "{to}");
        sent += 1;
        assert_eq!(lab.drops("vf1", "no_route"), sent, "{to}");
    }
    assert!(own.recv(&mut [0; 16]).is_err(), "a pod's packet came to a socket of the DPU");
}

#[test]
fn a_udp_service_may_have_a_host_as_its_backend() {
    let lab = reach("dns", [port(1), ungoverned(2)]);
    Proxy::connect(&lab).ready(1);
    lab.apply(vec![service(17, 53, &[(HOST, 5353)])]).expect("service");
    let _dns = lab.spawn("fab", udp_echo("192.0.2.2:5353", "resolved"));
    for pod in ["pod1", "pod2"] {
        eventually("the backend answers as the service", || {
            lab.within(pod, || udp_ask("10.96.0.10:53", BRIEF)).as_deref() == Some("resolved")
        });
    }
}

#[test]
fn a_pod_is_told_that_nobody_listens_also_behind_a_service() {
    let lab = reach("icmp", [port(1), ungoverned(2)]);
    Proxy::connect(&lab).ready(1);
    lab.apply(vec![service(17, 53, &[(HOST, 5354)]), service(17, 54, &[("10.1.0.2", 5354)])]).expect("services");
    for to in ["192.0.2.2:5354", "10.1.0.2:5354", "10.96.0.10:53", "10.96.0.10:54"] {
        let kind = lab.within("pod1", move || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
            socket.connect(to).expect("connect");
            socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
            socket.send(b"who?").expect("send");
            socket.recv(&mut [0; 16]).expect_err("nobody listens").kind()
        });
        assert_eq!(kind, ErrorKind::ConnectionRefused, "{to}");
    }
}

#[test]
fn a_pod_outside_the_mesh_reaches_tcp_services_wherever_their_backends_are() {
    let lab = reach("tcpvip", [ungoverned(1), port(2)]);
    let mut proxy = Proxy::connect(&lab);
    let (_outbound, inbound) = (proxy.govern(&lab, 2), proxy.govern_inbound(&lab));
    lab.apply(vec![
        service(6, 80, &[(HOST, 8080)]),
        service(6, 81, &[("10.2.0.5", 8081)]),
        service(6, 82, &[("10.1.0.2", 8082)]),
    ])
    .expect("services");
    serve(&lab, "fab", "192.0.2.2:8080", "host");
    serve(&lab, "fab", "10.2.0.5:8081", "remote pod");
    assert_eq!(ask(&lab, "pod1", "10.96.0.10:80"), "host");
    assert_eq!(ask(&lab, "pod1", "10.96.0.10:81"), "remote pod");
    // The local backend is governed: the proxy takes the connection, and answers as the service.
    let caller = lab.spawn("pod1", || {
        let mut answer = String::new();
        connect("10.96.0.10:82", PATIENCE).expect("connect").read_to_string(&mut answer).expect("answer");
        answer
    });
    let (mut stream, peer) = accept(&inbound).expect("governed");
    assert_eq!(stream.local_addr().expect("address").to_string(), "10.1.0.2:8082");
    assert_eq!(peer.ip().to_string(), "10.1.0.1");
    stream.write_all(b"by the proxy").expect("write");
    drop(stream);
    assert_eq!(caller.join().expect("caller"), "by the proxy");
    // Refusals come back as well.
    lab.apply(vec![service(6, 83, &[(HOST, 9)])]).expect("service");
    let kind = lab.within("pod1", || connect("10.96.0.10:83", PATIENCE).expect_err("nobody listens").kind());
    assert_eq!(kind, ErrorKind::ConnectionRefused);
}

#[test]
fn local_pods_outside_the_mesh_are_reached_by_service_and_from_hosts() {
    let lab = reach("hosts", [ungoverned(1), ungoverned(2)]);
    lab.apply(vec![service(6, 80, &[("10.1.0.2", 8080)])]).expect("service");
    serve(&lab, "pod2", "10.1.0.2:8080", "pod2");
    assert_eq!(ask(&lab, "pod1", "10.96.0.10:80"), "pod2");
    assert_eq!(ask(&lab, "pod1", "10.1.0.2:8080"), "pod2");
    // A pod may be its own service's backend.
    assert_eq!(ask(&lab, "pod2", "10.96.0.10:80"), "pod2");
    // From another node's own address, which is no pod's.
    for source in ["192.0.2.2:0", "198.51.100.7:0"] {
        let answer = lab.within("fab", move || {
            let mut answer = String::new();
            connect_from(source, "10.1.0.2:8080").expect("connect").read_to_string(&mut answer).expect("answer");
            answer
        });
        assert_eq!(answer, "pod2", "from {source}");
    }
}

#[test]
fn the_proxy_reaches_hosts_and_what_is_behind_them_in_a_pods_name() {
    let lab = reach("egress", [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let _outbound = proxy.govern(&lab, 1);
    for to in ["192.0.2.2:7000", "198.51.100.7:7001"] {
        let server = lab.within("fab", move || TcpListener::bind(to).expect("bind"));
        let caller = lab.spawn("dpu", move || call("up0", "10.1.0.1:0", to).expect("connect"));
        let (_stream, peer) = accept(&server).expect("arrives");
        assert_eq!(peer.ip().to_string(), "10.1.0.1", "{to}");
        drop(caller.join().expect("caller"));
    }
}

#[test]
fn pods_inside_and_outside_the_mesh_reach_each_other_by_the_proxy_in_plain_text() {
    let lab = reach("plain", [ungoverned(1), port(2)]);
    let mut proxy = Proxy::connect(&lab);
    let (_outbound, inbound) = (proxy.govern(&lab, 2), proxy.govern_inbound(&lab));
    // From outside: the inbound listener, as any plain client.
    let caller = lab.spawn("pod1", || connect("10.1.0.2:9080", PATIENCE).is_ok());
    let (_stream, peer) = accept(&inbound).expect("governed");
    assert_eq!(peer.ip().to_string(), "10.1.0.1");
    assert!(caller.join().expect("caller"));
    // To the outside: the proxy's connection by the uplink is turned to the local pod, and back.
    serve(&lab, "pod1", "10.1.0.1:7000", "pod1");
    let answer = lab.within("dpu", || {
        let mut answer = String::new();
        call("up0", "10.1.0.2:0", "10.1.0.1:7000").expect("connect").read_to_string(&mut answer).expect("answer");
        answer
    });
    assert_eq!(answer, "pod1");
}
