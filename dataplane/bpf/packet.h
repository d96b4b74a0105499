// SPDX-License-Identifier: Apache-2.0
// A packet, parsed and checked once. `parse` returns 0 or the drop reason plus one; the addresses are
// there even when the rest is refused, so that a bad packet has an owner.
#pragma once
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include "tables.h"

#define REFUSE(reason) ((int)DROP_##reason + 1)

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_ACK 16

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
#define IPV6_NEXT_FRAGMENT 44

/* Before what an ICMP error quotes. */
#define ICMP_HLEN 8

enum fragment_kind { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

struct packet {
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 ip_version;
	__u8 hop_limit;
	__u8 fragment;
	__u8 tcp_flags;
	/* First byte of ICMP. */
	__u8 icmp_type;
	/* Protocol of the packet that an ICMP error quotes; 0 when it is no error. */
	__u8 quoted_protocol;
	__u8 zero;
	/* Offset of the transport header. */
	__u32 transport;
	__u32 fragment_id;
	/* Bytes behind the IP header. */
	__u32 payload;
};

INLINE void address_from_ipv4(struct address *to, __be32 from)
{
	to->words[0] = 0;
	to->words[1] = 0;
	to->words[2] = bpf_htonl(0xffff);
	to->words[3] = from;
}

INLINE int is_syn(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

INLINE int checksum_is_right(const struct iphdr *ip)
{
	const __u16 *halves = (const __u16 *)ip;
	__u32 sum = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += halves[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

INLINE int parse_icmp(struct __sk_buff *skb, struct packet *packet)
{
	__u8 head[8];
	__u8 quoted = 0;
	if (bpf_skb_load_bytes(skb, packet->transport, head, sizeof(head)))
		return REFUSE(TRUNCATED);
	packet->icmp_type = head[0];
	if (packet->ip_version == 4) {
		if (head[0] != 3 && head[0] != 11 && head[0] != 12)
			return 0;
		if (bpf_skb_load_bytes(skb, packet->transport + 8 + 9, &quoted, 1))
			return REFUSE(TRUNCATED);
	} else {
		if (head[0] == 0 || head[0] >= 128)
			return 0;
		if (bpf_skb_load_bytes(skb, packet->transport + 8 + 6, &quoted, 1))
			return REFUSE(TRUNCATED);
	}
	packet->quoted_protocol = quoted;
	return 0;
}

INLINE int parse_transport(struct __sk_buff *skb, struct packet *packet)
{
	__u8 head[14];
	if (packet->fragment == LATER_FRAGMENT)
		return 0;
	switch (packet->protocol) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, packet->transport, head, 14))
			return REFUSE(TRUNCATED);
		packet->tcp_flags = head[13];
		/* A data offset that leaves no room for the header itself. */
		if ((head[12] >> 4) < 5)
			return REFUSE(TRUNCATED);
		packet->payload -= (head[12] >> 4) * 4;
		break;
	case IPPROTO_UDP:
		if (bpf_skb_load_bytes(skb, packet->transport, head, 8))
			return REFUSE(TRUNCATED);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return parse_icmp(skb, packet);
	default:
		return 0;
	}
	__builtin_memcpy(&packet->source_port, head, 2);
	__builtin_memcpy(&packet->destination_port, head + 2, 2);
	return 0;
}

INLINE int parse_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	struct iphdr ip;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return REFUSE(TRUNCATED);
	address_from_ipv4(&packet->source, ip.saddr);
	address_from_ipv4(&packet->destination, ip.daddr);
	__u32 total = bpf_ntohs(ip.tot_len);
	if (ip.version != 4 || ip.ihl < 5)
		return REFUSE(MALFORMED_IP);
	/* BIG TCP: the length does not fit and the packet is segmented later. */
	if (total == 0 && skb->gso_size)
		total = skb->len - ETH_HLEN;
	if (total < (__u32)ip.ihl * 4)
		return REFUSE(MALFORMED_IP);
	if (total > skb->len - ETH_HLEN)
		return REFUSE(TRUNCATED);
	if (ip.ihl > 5)
		return REFUSE(IP_OPTIONS);
	if (!checksum_is_right(&ip))
		return REFUSE(BAD_CHECKSUM);
	__u16 fragment = bpf_ntohs(ip.frag_off);
	if (fragment & IPV4_OFFSET_MASK)
		packet->fragment = LATER_FRAGMENT;
	else if (fragment & IPV4_MORE_FRAGMENTS)
		packet->fragment = FIRST_FRAGMENT;
	packet->ip_version = 4;
	packet->protocol = ip.protocol;
	packet->hop_limit = ip.ttl;
	packet->fragment_id = ip.id;
	packet->transport = ETH_HLEN + sizeof(ip);
	packet->payload = total - sizeof(ip);
	return parse_transport(skb, packet);
}

INLINE int parse_ipv6_fragment(struct __sk_buff *skb, struct packet *packet)
{
	struct {
		__u8 next;
		__u8 zero;
		__be16 offset;
		__be32 id;
	} head;
	if (bpf_skb_load_bytes(skb, packet->transport, &head, sizeof(head)))
		return REFUSE(TRUNCATED);
	packet->fragment = bpf_ntohs(head.offset) & 0xfff8 ? LATER_FRAGMENT : FIRST_FRAGMENT;
	packet->fragment_id = head.id;
	packet->protocol = head.next;
	packet->transport += sizeof(head);
	packet->payload -= sizeof(head);
	return 0;
}

INLINE int is_ipv6_extension(__u8 next)
{
	return next == 0 || next == 43 || next == 44 || next == 51 || next == 60 || next == 135;
}

INLINE int parse_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv6hdr ip;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return REFUSE(TRUNCATED);
	__builtin_memcpy(&packet->source, &ip.saddr, 16);
	__builtin_memcpy(&packet->destination, &ip.daddr, 16);
	if (ip.version != 6)
		return REFUSE(MALFORMED_IP);
	__u32 payload = bpf_ntohs(ip.payload_len);
	if (payload == 0 && skb->gso_size)
		payload = skb->len - ETH_HLEN - sizeof(ip);
	if (payload > skb->len - ETH_HLEN - sizeof(ip))
		return REFUSE(TRUNCATED);
	packet->ip_version = 6;
	packet->protocol = ip.nexthdr;
	packet->hop_limit = ip.hop_limit;
	packet->transport = ETH_HLEN + sizeof(ip);
	packet->payload = payload;
	if (ip.nexthdr == IPV6_NEXT_FRAGMENT) {
		int refusal = parse_ipv6_fragment(skb, packet);
		if (refusal)
			return refusal;
	}
	/* Multicast listener reports carry a hop-by-hop option: refused as multicast instead. */
	if (is_ipv6_extension(packet->protocol))
		return (packet->destination.words[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000) ?
			       REFUSE(NOT_ANSWERED) :
			       REFUSE(IP_OPTIONS);
	return parse_transport(skb, packet);
}

/* Parses what is behind the Ethernet header. */
INLINE int parse(struct __sk_buff *skb, struct packet *packet)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, packet);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, packet);
	return REFUSE(UNKNOWN_ETHERTYPE);
}

/* Multicast, broadcast, loopback and unspecified have no way through a gateway. */
INLINE int is_bad_destination(const struct packet *packet)
{
	const __u32 *words = packet->destination.words;
	if (packet->ip_version == 4) {
		__u32 address = bpf_ntohl(words[3]);
		return address >= 0xe0000000 || (address >> 24) == 127 || (address >> 24) == 0;
	}
	if ((words[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
		return 1;
	/* ::, ::1 and every embedded IPv4 address (which would read as one of ours). */
	return words[0] == 0 && words[1] == 0;
}

INLINE int is_link_local(const struct address *address)
{
	return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

INLINE void flow_of(const struct packet *packet, __u32 vni, struct flow_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->vni = vni;
	key->source = packet->source;
	key->destination = packet->destination;
	key->source_port = packet->source_port;
	key->destination_port = packet->destination_port;
	key->protocol = packet->protocol;
}

INLINE void reverse_flow_of(const struct packet *packet, __u32 vni, struct flow_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->vni = vni;
	key->source = packet->destination;
	key->destination = packet->source;
	key->source_port = packet->destination_port;
	key->destination_port = packet->source_port;
	key->protocol = packet->protocol;
}
