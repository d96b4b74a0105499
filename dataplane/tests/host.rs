//! The real program with a link to the host: what the server itself sends to its pods.

mod lab;

use lab::proxy::{Proxy, accept, call};
use lab::*;
use mesh_api::dataplane as wire;
use mesh_api::dataplane::operation::Operation as Kind;
use mesh_api::steering::from_proxy::Message as Asked;
use mesh_api::steering::{Direction, Listening, PortReady, ProbedPort, RegisterListener};
use nix::sys::signal::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};

fn host(name: &str, ports: impl IntoIterator<Item = wire::Port>) -> Lab {
    let ports: Vec<Kind> = ports.into_iter().map(Kind::PutPort).collect();
    let lab = Lab::with_host(name, ports.len() as u8);
    lab.apply(ports).expect("ports");
    lab
}

#[test]
fn a_connection_of_the_host_lands_in_the_socket_of_its_link_and_no_other_does() {
    let lab = host("hostin", [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    assert_eq!(proxy.told[0].host, "pf0hpf");
    let _outbound = proxy.govern(&lab, 1);
    let inbound = proxy.govern_inbound(&lab);
    let refused = lab.within("host", || connect("10.1.0.1:8080", BRIEF).expect_err("nobody listens there").kind());
    assert_eq!(refused, ErrorKind::TimedOut);
    assert!(lab.drops("vf1", "no_listener") >= 1);
    let own = [proxy.govern_host(&lab, 4), proxy.govern_host(&lab, 6)];
    for (listener, to, from) in [(&own[0], "10.1.0.1:8080", "192.168.101.1"), (&own[1], "[fd01::1]:8080", "fd65::1")] {
        let caller = lab.spawn("host", move || {
            let mut stream = connect(to, PATIENCE).expect("connect");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answer");
            answer
        });
        let (mut stream, peer) = accept(listener).expect("steered");
        assert_eq!(
            (stream.local_addr().expect("address").to_string().as_str(), peer.ip().to_string().as_str()),
            (to, from)
        );
        stream.write_all(b"healthy").expect("write");
        drop(stream);
        assert_eq!(caller.join().expect("caller"), "healthy");
    }
    // Whoever comes by the fabric is not the host, also in its name.
    shell(&format!("ip -n {} addr add 192.168.101.1/32 dev fab0", lab.netns("fab")));
    let forger = lab.spawn("fab", || connect_from("192.168.101.1:0", "10.1.0.1:8080").is_ok());
    let (stream, peer) = accept(&inbound).expect("the uplink's socket");
    assert_eq!(peer.ip().to_string(), "192.168.101.1");
    drop(stream);
    // The answer goes out by the uplink, and the host is not there.
    let _ = forger.join();
    assert!(lab.counters("vf1").steered_connections >= 3);
}

#[test]
fn the_proxy_reaches_a_pod_in_the_hosts_name() {
    let lab = host("hostout", [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let _outbound = proxy.govern(&lab, 1);
    let server = lab.within("pod1", || TcpListener::bind("10.1.0.1:8080").expect("bind"));
    let caller = lab.spawn("dpu", || call("rep1", "192.168.101.1:0", "10.1.0.1:8080").is_ok());
    let (_, peer) = accept(&server).expect("arrives");
    assert_eq!(peer.ip().to_string(), "192.168.101.1");
    assert!(caller.join().expect("caller"));
}

#[test]
fn where_probes_ask_the_host_is_refused_until_the_pod_is_known_to_listen() {
    let mut lab = host("hostshut", [port(1)]);
    let mut proxy = Proxy::connect(&lab);
    let _outbound = proxy.govern(&lab, 1);
    let listener = proxy.govern_host(&lab, 4);
    let is_refused = |lab: &Lab| lab.within("host", || connect("10.1.0.1:27017", BRIEF).is_err());
    let is_taken = |lab: &Lab, listener: &TcpListener, to: &'static str| {
        let caller = lab.spawn("host", move || connect(to, PATIENCE).is_ok());
        accept(listener).is_some() && caller.join().expect("caller")
    };
    assert!(is_taken(&lab, &listener, "10.1.0.1:27017"), "nobody probes it");
    proxy.probed(1, 27017, Listening::Unknown);
    assert!(is_refused(&lab), "nobody has asked the pod");
    assert!(lab.drops("vf1", "not_listening") >= 1);
    assert!(is_taken(&lab, &listener, "10.1.0.1:27018"), "another port of it");
    proxy.probed(1, 27017, Listening::Yes);
    assert!(is_taken(&lab, &listener, "10.1.0.1:27017"));
    // A new proxy has not asked yet, and the older one has no say any more.
    let mut newer = Proxy::started(&lab, 2);
    newer.probed(1, 27017, Listening::Unknown);
    assert!(is_taken(&lab, &listener, "10.1.0.1:27017"));
    newer.probed(1, 27017, Listening::No);
    proxy.probed(1, 27017, Listening::Yes);
    assert!(is_refused(&lab));
    // Also after a restart, before any proxy has spoken.
    lab.stop(Signal::SIGKILL);
    lab.start();
    assert!(is_refused(&lab));
    // The socket is steered into as before; a second one would share its connections.
    let mut proxy = Proxy::connect(&lab);
    proxy.ready(1);
    assert!(is_taken(&lab, &listener, "10.1.0.1:27017"), "nobody probes it any more");
    let said = PortReady {
        port_id: "vf1".to_owned(),
        workload_uid: "uid-1".to_owned(),
        probed: vec![ProbedPort { ip_version: 5, port: 80, listening: 0 }],
    };
    let error = proxy.ask(Asked::PortReady(said), None).expect_err("there is no such thing");
    assert!(error.contains("IP version 5"), "{error}");
}

#[test]
fn what_is_not_governed_passes_between_host_and_pod_by_the_hosts_link() {
    let lab = host("hostplain", [port(1), ungoverned(2)]);
    Proxy::connect(&lab).ready(1);
    let _echo = lab.spawn("pod1", udp_echo("10.1.0.1:53", "pod1"));
    let _echo6 = lab.spawn("pod1", udp_echo("[fd01::1]:53", "pod1 over IPv6"));
    // The host takes no answer that comes by another link (rp_filter).
    eventually("pod1 answers", || lab.within("host", || udp_ask("10.1.0.1:53", BRIEF)).as_deref() == Some("pod1"));
    eventually("pod1 answers over IPv6", || {
        lab.within("host", || udp_ask("[fd01::1]:53", BRIEF)).as_deref() == Some("pod1 over IPv6")
    });
    assert!(lab.within("host", || ping("10.1.0.1", 56)));
    let server = lab.within("pod2", || TcpListener::bind("10.1.0.2:7000").expect("bind"));
    let caller = lab.spawn("host", || connect("10.1.0.2:7000", PATIENCE).expect("connect"));
    let (mut stream, peer) = accept(&server).expect("arrives");
    assert_eq!(peer.ip().to_string(), "192.168.101.1");
    stream.write_all(b"x").expect("write");
    caller.join().expect("caller").read_exact(&mut [0]).expect("read");
    // The other way round as well, but never to the DPU itself.
    let _host = lab.spawn("host", udp_echo("192.168.101.1:53", "the host"));
    eventually("the host answers", || {
        lab.within("pod2", || udp_ask("192.168.101.1:53", BRIEF)).as_deref() == Some("the host")
    });
    assert_eq!(lab.within("pod2", || udp_ask("192.168.101.2:53", BRIEF)), None);
    assert!(lab.drops("vf2", "no_route") >= 1);
}

#[test]
fn a_closed_port_and_a_pods_own_address_are_refused_to_the_host_too() {
    let lab = host("hostclosed", [port(1), ungoverned(2)]);
    assert_eq!(lab.within("host", || udp_ask("10.1.0.1:9", BRIEF)), None);
    assert!(lab.drops("vf1", "port_closed") >= 1);
    shell(&format!("ip -n {} addr add 10.1.0.1/32 dev lo", lab.netns("host")));
    lab.within("host", || {
        let socket = UdpSocket::bind("10.1.0.1:1000").expect("bind");
        socket.send_to(b"x", "10.1.0.2:9").expect("send");
    });
    eventually("it is counted", || lab.drops("vf2", "spoofed_ip") == 1);
    // The DPU's own services are reached as ever.
    let own = lab.within("dpu", || TcpListener::bind("192.168.101.2:2222").expect("bind"));
    let caller = lab.spawn("host", || connect("192.168.101.2:2222", PATIENCE).is_ok());
    assert!(accept(&own).is_some() && caller.join().expect("caller"));
}

#[test]
fn a_dataplane_that_is_started_without_the_link_forgets_it() {
    let mut lab = host("hostgone", [port(1)]);
    let rules = |lab: &Lab| {
        let output = std::process::Command::new("ip").args(["-n", &lab.netns("dpu"), "rule"]).output().expect("ip");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(rules(&lab).contains("iif pf0hpf") && lab.state().expect("state").host == "pf0hpf");
    let mut proxy = Proxy::connect(&lab);
    let listener = proxy.govern_host(&lab, 4);
    lab.stop(Signal::SIGTERM);
    lab.has_host = false;
    lab.start();
    assert!(!rules(&lab).contains("pf0hpf") && rules(&lab).contains("iif up0"), "{}", rules(&lab));
    assert_eq!(lab.state().expect("state").host, "");
    let mut proxy = Proxy::connect(&lab);
    proxy.ready(1);
    let request = RegisterListener { direction: Direction::Host.into(), port_id: String::new(), ip_version: 4 };
    let error = proxy.ask(Asked::RegisterListener(request), Some(&listener)).expect_err("there is no such link");
    assert!(error.contains("--host-interface"), "{error}");
    assert!(lab.within("host", || connect("10.1.0.1:8080", BRIEF).is_err()));
    assert_eq!(lab.counters("vf1").steered_connections, 0);
}
