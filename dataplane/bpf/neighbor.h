// SPDX-License-Identifier: Apache-2.0
// ARP and IPv6 neighbour discovery, answered at the representor: whatever a pod asks for, it is told
// the port's gateway MAC, so every packet comes to the dataplane. Nothing is asked of a pod.
#pragma once
#include "packet.h"

#define MARK_OURS 0x0d9b0001

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

INLINE int same_mac(const __u8 *a, const __u8 *b)
{
	__u8 difference = 0;
#pragma unroll
	for (int i = 0; i < 6; i++)
		difference |= a[i] ^ b[i];
	return difference == 0;
}

/* Sends the packet back where it came from. */
INLINE int hairpin(struct __sk_buff *skb, const struct port *port)
{
	__u8 macs[12];
	__builtin_memcpy(macs, port->mac, 6);
	__builtin_memcpy(macs + 6, port->gateway_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return REFUSE(NOT_REWRITTEN);
	skb->mark = MARK_OURS;
	return 0;
}

INLINE int answer_arp(struct __sk_buff *skb, const struct port *port)
{
	struct arp arp;
	struct address sender, target;
	__be32 ip;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return REFUSE(TRUNCATED);
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 ||
	    arp.protocol_length != 4)
		return REFUSE(MALFORMED_IP);
	if (!same_mac(arp.sender_mac, port->mac))
		return REFUSE(SPOOFED_NEIGHBOR);
	__builtin_memcpy(&ip, arp.sender_ip, 4);
	address_from_ipv4(&sender, ip);
	/* Probes (RFC 5227) have no sender: nobody else has the address. */
	if (ip && endpoint_of(port->vni, &sender) != skb->ifindex)
		return REFUSE(SPOOFED_NEIGHBOR);
	__builtin_memcpy(&ip, arp.target_ip, 4);
	address_from_ipv4(&target, ip);
	if (arp.operation != bpf_htons(1) || !sender.words[3] || same_address(&sender, &target) ||
	    endpoint_of(port->vni, &target) == skb->ifindex)
		return REFUSE(NOT_ANSWERED);
	arp.operation = bpf_htons(2);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, 6);
	__builtin_memcpy(arp.target_ip, arp.sender_ip, 4);
	__builtin_memcpy(arp.sender_mac, port->gateway_mac, 6);
	__builtin_memcpy(arp.sender_ip, &ip, 4);
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof(arp), 0))
		return REFUSE(NOT_REWRITTEN);
	return hairpin(skb, port);
}

#define ND_ROUTER_SOLICITATION 133
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
/* Router, solicited, override. */
#define ND_FLAGS 0xe0000000

struct advertisement {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	struct address target;
	__u8 option_type;
	__u8 option_length;
	__u8 mac[6];
};

struct pseudo_header {
	struct address source;
	struct address destination;
	__be32 length;
	__be32 next;
};

INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

INLINE int is_neighbor_discovery(const struct packet *packet)
{
	return packet->ip_version == 6 && packet->protocol == IPPROTO_ICMPV6 &&
	       packet->icmp_type >= ND_ROUTER_SOLICITATION && packet->icmp_type <= 137;
}

INLINE int advertise(struct __sk_buff *skb, const struct port *port, const struct address *asker,
		     const struct address *target)
{
	struct advertisement answer = {
		.type = ND_ADVERTISEMENT, .flags = bpf_htonl(ND_FLAGS), .target = *target, .option_type = 2, .option_length = 1
	};
	struct pseudo_header pseudo = { .source = *target,
					.destination = *asker,
					.length = bpf_htonl(sizeof(answer)),
					.next = bpf_htonl(IPPROTO_ICMPV6) };
	struct ipv6hdr ip = {
		.version = 6, .payload_len = bpf_htons(sizeof(answer)), .nexthdr = IPPROTO_ICMPV6, .hop_limit = 255
	};
	__builtin_memcpy(answer.mac, port->gateway_mac, 6);
	__builtin_memcpy(&ip.saddr, target, 16);
	__builtin_memcpy(&ip.daddr, asker, 16);
	__s64 sum = bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&answer, sizeof(answer), sum);
	answer.checksum = fold(sum);
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(ip) + sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(ip), &answer, sizeof(answer), 0))
		return REFUSE(NOT_REWRITTEN);
	return hairpin(skb, port);
}

INLINE int answer_solicitation(struct __sk_buff *skb, const struct port *port, const struct packet *packet)
{
	struct address target;
	int is_unspecified = !(packet->source.words[0] | packet->source.words[1] | packet->source.words[2] |
			       packet->source.words[3]);
	if (!is_unspecified && !is_link_local(&packet->source) &&
	    endpoint_of(port->vni, &packet->source) != skb->ifindex)
		return REFUSE(SPOOFED_NEIGHBOR);
	if (packet->icmp_type != ND_SOLICITATION || packet->hop_limit != 255 || is_unspecified)
		return REFUSE(NOT_ANSWERED);
	if (bpf_skb_load_bytes(skb, packet->transport + 8, &target, sizeof(target)))
		return REFUSE(TRUNCATED);
	if (same_address(&target, &packet->source) || endpoint_of(port->vni, &target) == skb->ifindex)
		return REFUSE(NOT_ANSWERED);
	struct address asker = packet->source;
	return advertise(skb, port, &asker, &target);
}
