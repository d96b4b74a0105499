//! Packets, byte by byte.

use super::{GATEWAY_MAC, POD_MAC, ip};
use std::net::IpAddr;

/// From the port under test, to its gateway.
pub fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &POD_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// An IP packet in a frame; its transport checksum is filled in for TCP and UDP.
pub fn packet(source: &str, destination: &str, protocol: u8, mut payload: Vec<u8>) -> Vec<u8> {
    let (source, destination) = (ip(source), ip(destination));
    if let Some(place) = checksum_place(protocol).filter(|place| payload.len() >= place + 2) {
        let sum = transport_checksum(source, destination, protocol, &payload);
        payload[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (20 + payload.len()) as u16;
            let mut head = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
            head[2..4].copy_from_slice(&total.to_be_bytes());
            head.extend(from.octets().into_iter().chain(to.octets()));
            frame(0x0800, &[with_checksum(head), payload].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut head = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            head[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            head.extend(from.octets().into_iter().chain(to.octets()));
            frame(0x86dd, &[head, payload].concat())
        }
        _ => panic!("two families"),
    }
}

/// Computes the checksum of an IPv4 header anew.
pub fn with_checksum(mut head: Vec<u8>) -> Vec<u8> {
    head[10..12].fill(0);
    let sum = fold(&[&head]);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    head
}

/// Changes a byte of the IPv4 header and makes its checksum right again.
pub fn altered(packet: &[u8], offset: usize, value: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[14 + offset] = value;
    let head = with_checksum(packet[14..34].to_vec());
    packet[14..34].copy_from_slice(&head);
    packet
}

pub fn udp(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &length.to_be_bytes(), &[0, 0], data].concat()
}

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

pub fn tcp(source: u16, destination: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let head = [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 8], &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]];
    [&head.concat()[..], data].concat()
}

pub fn arp(operation: u8, sender_mac: [u8; 6], sender: &str, target: &str) -> Vec<u8> {
    let octets = |text: &str| match ip(text) {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => panic!("ARP is for IPv4"),
    };
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    frame(0x0806, &[&head[..], &sender_mac, &octets(sender), &[0; 6], &octets(target)].concat())
}

/// A neighbour solicitation for `target`.
pub fn solicitation(source: &str, target: &str) -> Vec<u8> {
    let IpAddr::V6(wanted) = ip(target) else { panic!("ND is for IPv6") };
    let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &wanted.octets(), &[1, 1], &POD_MAC].concat();
    let mut packet = packet(source, "ff02::1:ff00:1", 58, body);
    packet[14 + 7] = 255;
    packet
}

/// An ICMP error of this type and code about a packet.
pub fn icmp_error(source: &str, destination: &str, kind: [u8; 2], quoted: &[u8]) -> Vec<u8> {
    let mut body = [&kind[..], &[0; 6], quoted].concat();
    if ip(source).is_ipv4() {
        let sum = fold(&[&body]);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        return packet(source, destination, 1, body);
    }
    packet(source, destination, 58, body)
}

/// Asserts that the checksums of an ICMP error, and of the IPv4 header that it quotes, are right.
pub fn assert_icmp_sound(packet: &[u8]) {
    if packet[12..14] != [8, 0] {
        return assert_sound(packet);
    }
    assert_eq!(fold(&[&packet[14..34]]), 0, "IPv4 header checksum");
    assert_eq!(fold(&[&packet[34..]]), 0, "ICMP checksum");
    assert_eq!(fold(&[&packet[42..62]]), 0, "checksum of the quoted header");
}

/// Asserts that every checksum of a TCP or UDP packet is right.
pub fn assert_sound(packet: &[u8]) {
    let is_ipv4 = packet[12..14] == [8, 0];
    let (start, protocol) = if is_ipv4 { (34, packet[23]) } else { (54, packet[20]) };
    if is_ipv4 {
        assert_eq!(fold(&[&packet[14..34]]), 0, "IPv4 header checksum");
    }
    let (source, destination) = addresses(packet);
    assert_eq!(transport_checksum(source, destination, protocol, &packet[start..]), 0, "transport checksum");
}

/// Source and destination.
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("four"));
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen"));
    if packet[12..14] == [8, 0] { (v4(26), v4(30)) } else { (v6(22), v6(38)) }
}

/// Source and destination port.
pub fn ports(packet: &[u8]) -> (u16, u16) {
    let start = if packet[12..14] == [8, 0] { 34 } else { 54 };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (port(start), port(start + 2))
}

fn checksum_place(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 => Some(6),
        58 => Some(2),
        _ => None,
    }
}

pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let pseudo =
        [octets(source), octets(destination), (payload.len() as u32).to_be_bytes().to_vec(), vec![0, 0, 0, protocol]];
    fold(&[&pseudo.concat(), payload])
}

fn fold(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
