//! Each program on single packets, in the kernel, by BPF_PROG_TEST_RUN: packet in, verdict and packet
//! out, and every counter's change. Needs root.

mod bench;

use bench::packet::*;
use bench::*;
use dataplane::DropReason;
use dataplane::sys::abi;
use dataplane::sys::programs::Hook::{HostIngress, RepresentorEgress, RepresentorIngress, UplinkEgress, UplinkIngress};
use std::os::fd::AsFd;

fn to_remote() -> Vec<u8> {
    packet("10.1.0.1", "10.2.0.5", 17, udp(1000, 53, b"question"))
}

#[test]
fn a_packet_that_may_not_pass_is_dropped_for_its_reason() {
    let good = to_remote();
    let syn = packet("10.1.0.1", "10.2.0.5", 6, tcp(1000, 80, SYN, b""));
    let mut other_mac = good.clone();
    other_mac[11] = 0x77;
    let mut bad_checksum = good.clone();
    bad_checksum[24] ^= 1;
    let mut options = packet("10.1.0.1", "10.2.0.5", 17, udp(1, 2, &[0; 8]));
    options[14] = 0x46;
    let mut extension = packet("fd01::1", "fd02::5", 0, vec![17, 0, 0, 0, 0, 0, 0, 0]);
    extension[20] = 60;
    let short = |length: usize| good[..length].to_vec();
    let to = |address: &str| packet("10.1.0.1", address, 17, udp(1, 2, b""));
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("another MAC", other_mac, DropReason::SpoofedMac),
        ("another address", packet("10.1.0.2", "10.2.0.5", 17, udp(1, 2, b"")), DropReason::SpoofedIp),
        ("another IPv6 address", packet("fd01::9", "fd02::5", 17, udp(1, 2, b"")), DropReason::SpoofedIp),
        ("no address", packet("0.0.0.0", "255.255.255.255", 17, udp(68, 67, b"")), DropReason::SpoofedIp),
        ("less than it says", short(good.len() - 1), DropReason::Truncated),
        ("half a UDP header", packet("10.1.0.1", "10.2.0.5", 17, vec![0; 4]), DropReason::Truncated),
        ("a TCP header of no length", packet("10.1.0.1", "10.2.0.5", 6, vec![0; 20]), DropReason::Truncated),
        ("version 5", altered(&good, 0, 0x55), DropReason::MalformedIp),
        ("a header of 16 bytes", altered(&good, 0, 0x44), DropReason::MalformedIp),
        ("wrong checksum", bad_checksum, DropReason::BadChecksum),
        ("options", options, DropReason::IpOptions),
        ("an extension header", extension, DropReason::IpOptions),
        ("a VLAN", frame(0x8100, &[0; 46]), DropReason::UnknownEthertype),
        ("multicast", to("224.0.0.251"), DropReason::BadDestination),
        ("broadcast", to("255.255.255.255"), DropReason::BadDestination),
        ("loopback", to("127.0.0.1"), DropReason::BadDestination),
        ("IPv4 in IPv6", packet("fd01::1", "::ffff:10.1.0.2", 17, udp(1, 2, b"")), DropReason::BadDestination),
        ("nowhere", to("198.51.100.1"), DropReason::NoRoute),
        ("the last hop", altered(&good, 8, 1), DropReason::TtlExceeded),
        ("TCP without a listener", syn, DropReason::NoListener),
    ];
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    for (name, packet, reason) in cases {
        let outcome = bench.run(RepresentorIngress, &packet);
        assert_eq!((outcome.verdict, outcome.packet == packet), (DROP, true), "{name}");
        println!("{name}");
        bench.gained(PORT_SLOT, received(packet.len(), Some(reason)));
    }
}

#[test]
fn a_closed_port_passes_nothing_but_is_told_its_gateway() {
    let mut bench = Bench::new(abi::PORT_GOVERNED, UNGOVERNED);
    let packet = to_remote();
    assert_eq!(bench.run(RepresentorIngress, &packet).verdict, DROP);
    bench.gained(PORT_SLOT, received(packet.len(), Some(DropReason::PortClosed)));
    let request = arp(1, POD_MAC, "10.1.0.1", "169.254.1.1");
    assert_eq!(bench.run(RepresentorIngress, &request).verdict, REDIRECT);
    bench.gained(PORT_SLOT, received(request.len(), None));
    let inbound = packet_from_fabric("10.1.0.1");
    assert_eq!(bench.run(UplinkIngress, &inbound).verdict, DROP);
    bench.gained(PORT_SLOT, dropped(DropReason::PortClosed));
}

fn packet_from_fabric(to: &str) -> Vec<u8> {
    packet("10.2.0.5", to, 17, udp(53, 1000, b"answer"))
}

#[test]
fn an_interface_without_a_port_passes_nothing() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    bench.programs.maps.ports.remove(&PORT).expect("remove");
    let packet = to_remote();
    assert_eq!(bench.run(RepresentorIngress, &packet).verdict, DROP);
    bench.gained(0, dropped(DropReason::UnknownPort));
    assert_eq!(bench.run_marked(RepresentorEgress, &packet, MARK_OURS).verdict, DROP);
    bench.gained(0, dropped(DropReason::UnknownPort));
}

#[test]
fn an_arp_request_is_answered_with_the_gateway_and_nothing_else_is() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    let request = arp(1, POD_MAC, "10.1.0.1", "169.254.1.1");
    let outcome = bench.run(RepresentorIngress, &request);
    assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_OURS));
    let answer = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &GATEWAY_MAC, &[169, 254, 1, 1], &POD_MAC, &[10, 1, 0, 1]].concat();
    assert_eq!(outcome.packet, [&POD_MAC[..], &GATEWAY_MAC, &[8, 6], &answer].concat());
    bench.gained(PORT_SLOT, received(request.len(), None));
    let cases = [
        (arp(1, POD_MAC, "10.1.0.2", "169.254.1.1"), DropReason::SpoofedNeighbor),
        (arp(1, OTHER_MAC, "10.1.0.1", "169.254.1.1"), DropReason::SpoofedNeighbor),
        (arp(2, POD_MAC, "10.1.0.2", "10.1.0.9"), DropReason::SpoofedNeighbor),
        (arp(2, POD_MAC, "10.1.0.1", "10.1.0.9"), DropReason::NotAnswered),
        (arp(1, POD_MAC, "10.1.0.1", "10.1.0.1"), DropReason::NotAnswered),
        (arp(1, POD_MAC, "0.0.0.0", "10.1.0.1"), DropReason::NotAnswered),
        (request[..30].to_vec(), DropReason::Truncated),
    ];
    for (packet, reason) in cases {
        assert_eq!(bench.run(RepresentorIngress, &packet).verdict, DROP, "{reason:?}");
        bench.gained(PORT_SLOT, received(packet.len(), Some(reason)));
    }
}

#[test]
fn a_neighbour_solicitation_is_answered_with_the_gateway() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    let request = solicitation("fd01::1", "fe80::1");
    let outcome = bench.run(RepresentorIngress, &request);
    assert_eq!((outcome.verdict, outcome.mark, outcome.packet.len()), (REDIRECT, MARK_OURS, 86));
    assert_eq!(&outcome.packet[..12], [POD_MAC, GATEWAY_MAC].concat());
    assert_eq!(addresses(&outcome.packet), (ip("fe80::1"), ip("fd01::1")));
    let body = &outcome.packet[54..];
    assert_eq!(
        (body[0], &body[4..8], &body[24..]),
        (136, &[0xe0, 0, 0, 0][..], &[&[2, 1][..], &GATEWAY_MAC].concat()[..])
    );
    assert_eq!(transport_checksum(ip("fe80::1"), ip("fd01::1"), 58, body), 0);
    bench.gained(PORT_SLOT, received(request.len(), None));
    let mut near = request.clone();
    near[21] = 64;
    for (packet, reason) in [
        (near, DropReason::NotAnswered),
        (solicitation("::", "fd01::1"), DropReason::NotAnswered),
        (solicitation("fd01::1", "fd01::1"), DropReason::NotAnswered),
        (solicitation("fd01::2", "fe80::1"), DropReason::SpoofedNeighbor),
    ] {
        assert_eq!(bench.run(RepresentorIngress, &packet).verdict, DROP, "{reason:?}");
        bench.gained(PORT_SLOT, received(packet.len(), Some(reason)));
    }
}

#[test]
fn governed_tcp_goes_up_the_stack_as_it_is_and_the_rest_is_forwarded() {
    let mut bench = Bench::new(GOVERNED, UNGOVERNED);
    let _listener = bench.listen(PORT);
    for flags in [SYN, ACK, RST] {
        let packet = packet("10.1.0.1", "10.1.0.2", 6, tcp(1000, 80, flags, b""));
        let outcome = bench.run(RepresentorIngress, &packet);
        assert_eq!(outcome, Outcome { verdict: PASS, mark: abi::MARK_PORT | PORT_SLOT, packet: packet.clone() });
        bench.gained(PORT_SLOT, received(packet.len(), None));
    }
    // An ICMP error about a TCP connection is the kernel's, one about UDP is the other pod's.
    for (protocol, verdict) in [(6, PASS), (17, REDIRECT)] {
        let quoted = packet("10.1.0.2", "10.1.0.1", protocol, vec![0; 8])[14..].to_vec();
        let error = packet("10.1.0.1", "10.1.0.2", 1, [vec![3, 4, 0, 0, 0, 0, 0, 0], quoted].concat());
        assert_eq!(bench.run(RepresentorIngress, &error).verdict, verdict);
        bench.gained(PORT_SLOT, received(error.len(), None));
    }
    // One about a packet that was never sent to this pod would end connections of others.
    for quoted in [packet("192.0.2.1", "192.0.2.9", 6, vec![0; 8]), packet("10.1.0.1", "10.1.0.2", 17, vec![0; 8])] {
        let error = packet("10.1.0.1", "10.1.0.2", 1, [&[3, 4, 0, 0, 0, 0, 0, 0], &quoted[14..]].concat());
        assert_eq!(bench.run(RepresentorIngress, &error).verdict, DROP);
        bench.gained(PORT_SLOT, received(error.len(), Some(DropReason::SpoofedIp)));
    }
}

#[test]
fn a_packet_for_a_local_pod_gets_its_macs_and_one_hop_less() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    for (source, destination, hop) in [("10.1.0.1", "10.1.0.2", 22), ("fd01::1", "fd01::2", 21)] {
        let sent = packet(source, destination, 17, udp(1000, 53, b"question"));
        let outcome = bench.run(RepresentorIngress, &sent);
        assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_OURS));
        assert_eq!(outcome.packet[..12], [OTHER_MAC, OTHER_GATEWAY_MAC].concat());
        assert_eq!(outcome.packet[hop], 63);
        assert_sound(&outcome.packet);
        bench.gained(PORT_SLOT, received(sent.len(), None));
        let got = bench.run_marked(RepresentorEgress, &outcome.packet, MARK_OURS);
        assert_eq!((got.verdict, got.mark), (PASS, 0));
        bench.gained(PORT_SLOT, |counters| {
            counters.tx_packets = 1;
            counters.tx_bytes = sent.len() as u64;
        });
    }
    // TCP of an ungoverned pod meets the proxy of a governed one, by the uplink.
    let mut bench = Bench::new(UNGOVERNED, GOVERNED);
    let sent = packet("10.1.0.1", "10.1.0.2", 6, tcp(1000, 80, SYN, b""));
    let outcome = bench.run(RepresentorIngress, &sent);
    assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_TURNED));
    assert_eq!(outcome.packet[..6], UPLINK_MAC);
    let _listener = bench.listen(UPLINK);
    assert_eq!(bench.run_marked(UplinkIngress, &outcome.packet, MARK_TURNED).verdict, PASS);
}

#[test]
fn a_service_packet_goes_to_its_backend_and_the_answer_comes_from_the_service() {
    for (client, vip, backend) in [("10.1.0.1", "10.96.0.10", "10.1.0.2"), ("fd01::1", "fd96::10", "fd01::2")] {
        let mut bench = Bench::new(GOVERNED, GOVERNED);
        bench.service(vip, 53, 17, (backend, 5353));
        let outcome = bench.run(RepresentorIngress, &packet(client, vip, 17, udp(1000, 53, b"question")));
        assert_eq!(outcome.verdict, REDIRECT);
        assert_eq!((addresses(&outcome.packet), ports(&outcome.packet)), ((ip(client), ip(backend)), (1000, 5353)));
        assert_sound(&outcome.packet);
        // The answer, as the other port or the fabric hands it to the client's.
        let answer = packet(backend, client, 17, udp(5353, 1000, b"answer"));
        let outcome = bench.run_marked(UplinkIngress, &answer, MARK_TURNED);
        assert_eq!(outcome.verdict, REDIRECT);
        assert_eq!((addresses(&outcome.packet), ports(&outcome.packet)), ((ip(vip), ip(client)), (53, 1000)));
        assert_sound(&outcome.packet);
        let other_port = packet(client, vip, 17, udp(1000, 54, b"question"));
        assert_eq!(bench.run(RepresentorIngress, &other_port).verdict, DROP);
        bench.gained(PORT_SLOT, |counters| {
            counters.rx_packets = 2;
            counters.rx_bytes = other_port.len() as u64 * 2;
            counters.drops[DropReason::NoBackend as usize] = 1;
        });
    }
}

#[test]
fn a_pod_that_is_its_own_backend_speaks_with_itself_as_the_service() {
    for (pod, vip) in [("10.1.0.1", "10.96.0.10"), ("fd01::1", "fd96::10")] {
        let mut bench = Bench::new(UNGOVERNED, GOVERNED);
        bench.service(vip, 53, 17, (pod, 5353));
        let question = bench.run(RepresentorIngress, &packet(pod, vip, 17, udp(1000, 53, b"question")));
        assert_eq!((question.verdict, &question.packet[..6]), (REDIRECT, &POD_MAC[..]));
        assert_eq!((addresses(&question.packet), ports(&question.packet)), ((ip(vip), ip(pod)), (1000, 5353)));
        assert_sound(&question.packet);
        let answer = bench.run(RepresentorIngress, &packet(pod, vip, 17, udp(5353, 1000, b"answer")));
        assert_eq!(answer.verdict, REDIRECT);
        assert_eq!((addresses(&answer.packet), ports(&answer.packet)), ((ip(vip), ip(pod)), (53, 1000)));
        assert_sound(&answer.packet);
        // Nothing else to the service's address is taken for an answer.
        let other = packet(pod, vip, 17, udp(5353, 1001, b"answer"));
        assert_eq!(bench.run(RepresentorIngress, &other).verdict, DROP);
    }
}

#[test]
fn an_error_about_a_service_packet_quotes_the_service() {
    for (client, vip, backend, kind) in
        [("10.1.0.1", "10.96.0.10", "10.1.0.2", [3, 3]), ("fd01::1", "fd96::10", "fd01::2", [1, 4])]
    {
        let mut bench = Bench::new(GOVERNED, GOVERNED);
        bench.service(vip, 53, 17, (backend, 5353));
        let sent = packet(client, vip, 17, udp(1000, 53, b"question"));
        let arrived = bench.run(RepresentorIngress, &sent).packet;
        let error = icmp_error(backend, client, kind, &arrived[14..]);
        let outcome = bench.run_marked(UplinkIngress, &error, MARK_TURNED);
        assert_eq!(outcome.verdict, REDIRECT);
        assert_eq!(addresses(&outcome.packet), (ip(backend), ip(client)), "who says it stays");
        let start = if client.contains(':') { 54 } else { 34 } + 8;
        let quoted = frame(if client.contains(':') { 0x86dd } else { 0x0800 }, &outcome.packet[start..]);
        assert_eq!((addresses(&quoted), ports(&quoted)), ((ip(client), ip(vip)), (1000, 53)));
        assert_icmp_sound(&outcome.packet);
        // About any other packet it is left as it is.
        let other = packet(client, backend, 17, udp(1001, 5353, b"question"));
        let error = icmp_error(backend, client, kind, &other[14..]);
        let outcome = bench.run_marked(UplinkIngress, &error, MARK_TURNED);
        assert_eq!((outcome.verdict, &outcome.packet[start..]), (REDIRECT, &error[start..]));
    }
}

#[test]
fn fragments_of_a_service_packet_follow_their_first() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    bench.service("10.96.0.10", 53, 17, ("10.1.0.2", 5353));
    let first = altered(&packet("10.1.0.1", "10.96.0.10", 17, udp(1000, 53, &[0; 16])), 6, 0x20);
    let later = altered(&packet("10.1.0.1", "10.96.0.10", 17, vec![0; 16]), 7, 3);
    assert_eq!(bench.run(RepresentorIngress, &later).verdict, DROP);
    bench.gained(PORT_SLOT, received(later.len(), Some(DropReason::UnknownFragment)));
    for packet in [first, later] {
        let outcome = bench.run(RepresentorIngress, &packet);
        assert_eq!(outcome.verdict, REDIRECT);
        assert_eq!(addresses(&outcome.packet).1, ip("10.1.0.2"));
        bench.gained(PORT_SLOT, received(packet.len(), None));
    }
}

#[test]
fn the_fabric_reaches_local_pods_only_and_not_in_their_own_name() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    let outcome = bench.run(UplinkIngress, &packet_from_fabric("10.1.0.1"));
    assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_OURS));
    assert_eq!(outcome.packet[..12], [POD_MAC, GATEWAY_MAC].concat());
    bench.gained(0, |_| {});
    let spoofed = packet("10.1.0.2", "10.1.0.1", 17, udp(1, 2, b""));
    assert_eq!(bench.run(UplinkIngress, &spoofed).verdict, DROP);
    bench.gained(PORT_SLOT, dropped(DropReason::SpoofedIp));
    let syn = packet("10.2.0.5", "10.1.0.1", 6, tcp(1, 80, SYN, b""));
    assert_eq!(bench.run(UplinkIngress, &syn).verdict, DROP);
    bench.gained(PORT_SLOT, dropped(DropReason::NoListener));
    let _listener = bench.listen(UPLINK);
    let outcome = bench.run(UplinkIngress, &syn);
    assert_eq!(outcome, Outcome { verdict: PASS, mark: abi::MARK_PORT, packet: syn });
    // The DPU's own, well formed or not, is the kernel's.
    for packet in [packet_from_fabric("192.0.2.1"), arp(1, POD_MAC, "192.0.2.2", "192.0.2.1"), frame(0x88cc, &[0; 40])]
    {
        assert_eq!(bench.run(UplinkIngress, &packet), Outcome { verdict: PASS, mark: 0, packet });
    }
    bench.gained(0, |_| {});
}

#[test]
fn the_host_reaches_local_pods_only_and_not_in_their_own_name() {
    // The kernel runs the program as if the packet came by `lo`, where the other port is not.
    let mut bench = Bench::new(UNGOVERNED, GOVERNED);
    let from_host = |to: &str| packet("192.168.101.1", to, 17, udp(53, 1000, b"question"));
    let outcome = bench.run(HostIngress, &from_host("10.1.0.2"));
    assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_OURS));
    assert_eq!(outcome.packet[..12], [OTHER_MAC, OTHER_GATEWAY_MAC].concat());
    let syn = packet("192.168.101.1", "10.1.0.2", 6, tcp(1, 80, SYN, b""));
    assert_eq!(bench.run(HostIngress, &syn).verdict, DROP);
    bench.gained(OTHER_SLOT, dropped(DropReason::NoListener));
    // The uplink's socket is not the host's.
    let _uplink = bench.listen(UPLINK);
    assert_eq!(bench.run(HostIngress, &syn).verdict, DROP);
    bench.gained(OTHER_SLOT, dropped(DropReason::NoListener));
    let _listener = bench.listen(PORT);
    let outcome = bench.run(HostIngress, &syn);
    assert_eq!(outcome, Outcome { verdict: PASS, mark: abi::MARK_PORT, packet: syn });
    // No mark makes a pod's address come from there: nothing is turned at this link.
    let spoofed = packet("10.1.0.1", "10.1.0.2", 6, tcp(1, 80, SYN, b""));
    for mark in [0, MARK_TURNED, MARK_OURS] {
        assert_eq!(bench.run_marked(HostIngress, &spoofed, mark).verdict, DROP);
        bench.gained(OTHER_SLOT, dropped(DropReason::SpoofedIp));
    }
    // The DPU's own and others' are the kernel's, or whoever's bridge it is.
    for packet in [from_host("192.168.101.2"), from_host("10.2.0.5"), arp(1, POD_MAC, "192.168.101.1", "192.168.101.2")]
    {
        assert_eq!(bench.run(HostIngress, &packet), Outcome { verdict: PASS, mark: 0, packet });
    }
    bench.port(
        OTHER,
        abi::Port {
            slot: OTHER_SLOT,
            vni: 0,
            flags: abi::PORT_GOVERNED,
            mac: OTHER_MAC,
            gateway_mac: OTHER_GATEWAY_MAC,
        },
    );
    assert_eq!(bench.run(HostIngress, &from_host("10.1.0.2")).verdict, DROP);
    bench.gained(OTHER_SLOT, dropped(DropReason::PortClosed));
}

#[test]
fn nothing_reaches_a_pod_that_was_not_forwarded_here_or_sent_by_the_proxy() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    for packet in [
        packet("192.0.2.1", "10.1.0.1", 6, tcp(1, 80, SYN, b"")),
        packet("192.0.2.1", "10.1.0.1", 6, tcp(1, 80, ACK, b"data")),
        packet("192.0.2.1", "10.1.0.1", 17, udp(1, 2, b"")),
        arp(1, POD_MAC, "192.0.2.1", "10.1.0.1"),
    ] {
        assert_eq!(bench.run(RepresentorEgress, &packet).verdict, DROP);
        bench.gained(PORT_SLOT, dropped(DropReason::Ungoverned));
    }
    // What the kernel says by itself carries no data.
    let reset = packet("192.0.2.1", "10.1.0.1", 6, tcp(1, 80, RST, b""));
    assert_eq!(bench.run(RepresentorEgress, &reset).verdict, PASS);
}

#[test]
fn what_the_proxy_sends_by_the_uplink_to_a_local_pod_is_turned_there() {
    let mut bench = Bench::new(GOVERNED, UNGOVERNED);
    let local = packet("10.1.0.1", "10.1.0.2", 6, tcp(1, 80, SYN, b""));
    let outcome = bench.run(UplinkEgress, &local);
    assert_eq!((outcome.verdict, outcome.mark), (REDIRECT, MARK_TURNED));
    for (packet, mark) in [(to_remote(), 0), (to_remote(), MARK_OURS), (arp(1, POD_MAC, "192.0.2.1", "192.0.2.2"), 0)] {
        assert_eq!(bench.run_marked(UplinkEgress, &packet, mark), Outcome { verdict: PASS, mark: 0, packet });
    }
    bench.gained(0, |_| {});
}

#[test]
fn a_bypassed_connection_stays_so_and_the_next_one_is_governed() {
    let mut bench = Bench::new(BYPASS, UNGOVERNED);
    let out = |port, flags| packet("10.1.0.1", "10.2.0.5", 6, tcp(port, 80, flags, b""));
    let back = |port, flags| packet("10.2.0.5", "10.1.0.1", 6, tcp(80, port, flags, b""));
    assert_eq!(bench.run(RepresentorIngress, &out(1, SYN)).verdict, REDIRECT);
    assert_eq!(bench.run(UplinkIngress, &back(1, SYN | ACK)).verdict, REDIRECT);
    let _listener = bench.listen(PORT);
    assert_eq!(bench.run(RepresentorIngress, &out(1, ACK)).verdict, REDIRECT);
    assert_eq!(bench.run(RepresentorIngress, &out(2, SYN)).verdict, PASS);
    assert_eq!(bench.run(UplinkIngress, &back(2, SYN | ACK)).verdict, PASS);
    // The same ports again, now governed.
    assert_eq!(bench.run(RepresentorIngress, &out(1, SYN)).verdict, PASS);
    assert_eq!(bench.run(RepresentorIngress, &out(1, ACK)).verdict, PASS);
}

#[test]
fn tenants_with_the_same_address_are_told_apart_by_their_ports() {
    let mut bench = Bench::new(UNGOVERNED, UNGOVERNED);
    let tenant = |slot, vni, mac| abi::Port { slot, vni, flags: UNGOVERNED, mac, gateway_mac: GATEWAY_MAC };
    bench.port(PORT, tenant(PORT_SLOT, 5, POD_MAC));
    bench.endpoint(5, "10.1.0.1", PORT);
    bench.endpoint(6, "10.1.0.1", OTHER);
    bench.endpoint(6, "10.1.0.2", OTHER);
    // The address is the port's in its own network; the other network's neighbour is not there.
    let sent = packet("10.1.0.1", "10.1.0.2", 17, udp(1, 2, b""));
    assert_eq!(bench.run(RepresentorIngress, &sent).verdict, DROP);
    bench.gained(PORT_SLOT, received(sent.len(), Some(DropReason::NoRoute)));
    bench.endpoint(5, "10.1.0.2", OTHER);
    assert_eq!(bench.run(RepresentorIngress, &sent).verdict, REDIRECT);
}

/// Which socket a connection to an address gets. The kernel lets a test name no interface: it is 0.
fn steered(bench: &mut Bench, to: [u8; 4]) -> (u32, u64) {
    let lookup = bench::sys::Lookup {
        family: 2,
        protocol: 6,
        remote_ip4: [10, 1, 0, 9],
        local_ip4: to,
        local_port: 80,
        ..bench::sys::Lookup::default()
    };
    let program = bench.programs.steering().expect("program");
    bench::sys::run(program.fd().expect("loaded").as_fd(), lookup)
}

#[test]
fn steering_hands_a_ports_connection_to_its_listener_wherever_it_goes() {
    let mut bench = Bench::new(GOVERNED, GOVERNED);
    let port = |flags| abi::Port { slot: PORT_SLOT, vni: 0, flags, mac: POD_MAC, gateway_mac: GATEWAY_MAC };
    bench.port(0, port(GOVERNED));
    assert_eq!(steered(&mut bench, [203, 0, 113, 9]), (0, 0), "no listener: nobody gets it");
    bench.gained(PORT_SLOT, dropped(DropReason::NoListener));
    let listener = bench.listen(0);
    let (verdict, socket) = steered(&mut bench, [203, 0, 113, 9]);
    assert!(verdict == 1 && socket != 0);
    bench.gained(PORT_SLOT, |counters| counters.steered = 1);
    bench.port(0, port(abi::PORT_GOVERNED));
    assert_eq!(steered(&mut bench, [203, 0, 113, 9]), (0, 0), "closed");
    bench.gained(PORT_SLOT, dropped(DropReason::PortClosed));
    bench.port(0, port(GOVERNED));
    // A socket that dies leaves the map.
    drop(listener);
    assert_eq!(steered(&mut bench, [203, 0, 113, 9]), (0, 0));
    bench.gained(PORT_SLOT, dropped(DropReason::NoListener));
}

#[test]
fn steering_hands_connections_from_the_fabric_to_the_inbound_listener_if_they_are_for_a_governed_pod() {
    let mut bench = Bench::new(UNGOVERNED, GOVERNED);
    let uplink = abi::Uplink { ifindex: 0, mac: UPLINK_MAC, zero: [0; 2] };
    bench.programs.maps.uplink.set(0, uplink, 0).expect("uplink");
    assert_eq!(steered(&mut bench, [10, 1, 0, 2]), (0, 0));
    bench.gained(OTHER_SLOT, dropped(DropReason::NoListener));
    let _listener = bench.listen(0);
    let (verdict, socket) = steered(&mut bench, [10, 1, 0, 2]);
    assert!(verdict == 1 && socket != 0);
    bench.gained(OTHER_SLOT, |counters| counters.steered = 1);
    assert_eq!(steered(&mut bench, [10, 1, 0, 1]), (0, 0), "not governed: no socket of the DPU is meant");
    bench.gained(PORT_SLOT, dropped(DropReason::Ungoverned));
    assert_eq!(steered(&mut bench, [192, 0, 2, 1]), (1, 0), "the DPU's own");
    bench.gained(0, |_| {});
}
