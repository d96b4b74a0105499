// SPDX-License-Identifier: Apache-2.0
// Changes to a packet: addresses and ports with their checksums, hop limit, MACs.
#pragma once
#include "neighbor.h"

#define IPV4_CHECKSUM (ETH_HLEN + 10)
#define IPV4_SOURCE (ETH_HLEN + 12)
#define IPV6_SOURCE (ETH_HLEN + 8)

INLINE int has_ports(const struct packet *packet)
{
	return packet->fragment != LATER_FRAGMENT &&
	       (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP);
}

INLINE __u32 checksum_offset(const struct packet *packet)
{
	return packet->transport + (packet->protocol == IPPROTO_TCP ? 16 : 6);
}

/* A UDP checksum of 0 means "none" and stays so over IPv4. */
INLINE __u64 checksum_flags(const struct packet *packet)
{
	return packet->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

INLINE int rewrite_ipv4(struct __sk_buff *skb, const struct packet *packet, __u32 offset, __be32 from, __be32 to)
{
	if (has_ports(packet) && bpf_l4_csum_replace(skb, checksum_offset(packet), from, to,
						     checksum_flags(packet) | BPF_F_PSEUDO_HDR | sizeof(to)))
		return REFUSE(NOT_REWRITTEN);
	if (bpf_l3_csum_replace(skb, IPV4_CHECKSUM, from, to, sizeof(to)) ||
	    bpf_skb_store_bytes(skb, offset, &to, sizeof(to), 0))
		return REFUSE(NOT_REWRITTEN);
	return 0;
}

INLINE int rewrite_ipv6(struct __sk_buff *skb, const struct packet *packet, __u32 offset,
			const struct address *from, const struct address *to)
{
	struct address before = *from, after = *to;
	__s64 difference = bpf_csum_diff(before.words, sizeof(before), after.words, sizeof(after), 0);
	if (has_ports(packet) && bpf_l4_csum_replace(skb, checksum_offset(packet), 0, difference,
						     checksum_flags(packet) | BPF_F_PSEUDO_HDR))
		return REFUSE(NOT_REWRITTEN);
	if (bpf_skb_store_bytes(skb, offset, &after, sizeof(after), 0))
		return REFUSE(NOT_REWRITTEN);
	return 0;
}

INLINE int rewrite_port(struct __sk_buff *skb, const struct packet *packet, __u32 offset, __be16 from, __be16 to)
{
	if (!has_ports(packet) || from == to)
		return 0;
	if (bpf_l4_csum_replace(skb, checksum_offset(packet), from, to, checksum_flags(packet) | sizeof(to)) ||
	    bpf_skb_store_bytes(skb, packet->transport + offset, &to, sizeof(to), 0))
		return REFUSE(NOT_REWRITTEN);
	return 0;
}

INLINE int rewrite_destination(struct __sk_buff *skb, struct packet *packet, const struct address *to, __be16 port)
{
	int refusal = packet->ip_version == 4 ?
			      rewrite_ipv4(skb, packet, IPV4_SOURCE + 4, packet->destination.words[3], to->words[3]) :
			      rewrite_ipv6(skb, packet, IPV6_SOURCE + 16, &packet->destination, to);
	if (!refusal)
		refusal = rewrite_port(skb, packet, 2, packet->destination_port, port);
	packet->destination = *to;
	packet->destination_port = port;
	return refusal;
}

INLINE int rewrite_source(struct __sk_buff *skb, struct packet *packet, const struct address *to, __be16 port)
{
	int refusal = packet->ip_version == 4 ?
			      rewrite_ipv4(skb, packet, IPV4_SOURCE, packet->source.words[3], to->words[3]) :
			      rewrite_ipv6(skb, packet, IPV6_SOURCE, &packet->source, to);
	if (!refusal)
		refusal = rewrite_port(skb, packet, 0, packet->source_port, port);
	packet->source = *to;
	packet->source_port = port;
	return refusal;
}

INLINE int take_hop(struct __sk_buff *skb, const struct packet *packet)
{
	if (packet->hop_limit <= 1)
		return REFUSE(TTL_EXCEEDED);
	if (packet->ip_version == 6) {
		__u8 left = packet->hop_limit - 1;
		return bpf_skb_store_bytes(skb, ETH_HLEN + 7, &left, 1, 0) ? REFUSE(NOT_REWRITTEN) : 0;
	}
	/* TTL and protocol are one 16-bit word of the checksum. */
	__be16 before = bpf_htons((packet->hop_limit << 8) | packet->protocol);
	__be16 after = bpf_htons(((packet->hop_limit - 1) << 8) | packet->protocol);
	if (bpf_l3_csum_replace(skb, IPV4_CHECKSUM, before, after, sizeof(after)) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + 8, &after, sizeof(after), 0))
		return REFUSE(NOT_REWRITTEN);
	return 0;
}

INLINE int set_macs(struct __sk_buff *skb, const __u8 *destination, const __u8 *source)
{
	__u8 macs[12];
	__builtin_memcpy(macs, destination, 6);
	__builtin_memcpy(macs + 6, source, 6);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0) ? REFUSE(NOT_REWRITTEN) : 0;
}
