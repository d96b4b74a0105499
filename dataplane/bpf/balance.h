// SPDX-License-Identifier: Apache-2.0
// Service address to backend and back: connection table first, Maglev second, fragments by their first.
#pragma once
#include "rewrite.h"

INLINE __u32 mix(__u32 hash, __u32 word)
{
	hash = (hash ^ word) * 0x9e3779b1;
	return hash ^ (hash >> 15);
}

INLINE __u32 hash_of(const struct packet *packet)
{
	__u32 hash = mix(packet->protocol, ((__u32)packet->source_port << 16) | packet->destination_port);
#pragma unroll
	for (int i = 0; i < 4; i++)
		hash = mix(mix(hash, packet->source.words[i]), packet->destination.words[i]);
	return hash ^ (hash >> 13);
}

INLINE void fragment_of(const struct packet *packet, __u32 vni, struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->vni = vni;
	key->source = packet->source;
	key->destination = packet->destination;
	key->id = packet->fragment_id;
	key->protocol = packet->protocol;
}

INLINE void note_fragment(const struct packet *packet, __u32 vni, const struct address *address, __u32 is_source)
{
	struct fragment_key key;
	struct fragment value = { .address = *address, .is_source = is_source };
	if (packet->fragment != FIRST_FRAGMENT)
		return;
	fragment_of(packet, vni, &key);
	bpf_map_update_elem(&FRAGMENTS, &key, &value, BPF_ANY);
}

/* Rewrites a later fragment as its first was. */
INLINE int follow_fragment(struct __sk_buff *skb, struct packet *packet, __u32 vni, __u32 is_source)
{
	struct fragment_key key;
	if (packet->fragment != LATER_FRAGMENT)
		return 0;
	fragment_of(packet, vni, &key);
	struct fragment *found = bpf_map_lookup_elem(&FRAGMENTS, &key);
	if (!found || found->is_source != is_source)
		return 0;
	struct address address = found->address;
	return is_source ? rewrite_source(skb, packet, &address, packet->source_port) :
			   rewrite_destination(skb, packet, &address, packet->destination_port);
}

INLINE struct backend *backend_at(__u32 index, __u32 generation)
{
	struct backend *backend = bpf_map_lookup_elem(&BACKENDS, &index);
	if (!backend || !backend->generation || (generation && backend->generation != generation))
		return 0;
	return backend;
}

INLINE struct backend *choose_backend(const struct packet *packet, const struct service *service, __u32 *index)
{
	__u32 row = service->index * MAGLEV_SIZE + hash_of(packet) % MAGLEV_SIZE;
	__u32 *chosen = service->backends ? bpf_map_lookup_elem(&MAGLEV, &row) : 0;
	if (!chosen)
		return 0;
	*index = *chosen;
	return backend_at(*chosen, 0);
}

INLINE struct service *service_of(const struct packet *packet, __u32 vni, __u16 port, __u8 protocol)
{
	struct service_key key = { .vip = packet->destination, .vni = vni, .port = port, .protocol = protocol };
	return bpf_map_lookup_elem(&SERVICES, &key);
}

/* What the backend's answers must look like. */
INLINE void note_origin(const struct packet *packet, __u32 vni, const struct backend *backend)
{
	struct flow_key key;
	struct origin origin = { .vip = packet->destination, .port = packet->destination_port };
	reverse_flow_of(packet, vni, &key);
	key.source = backend->address;
	key.source_port = backend->port;
	bpf_map_update_elem(&ORIGINS, &key, &origin, BPF_ANY);
}

INLINE int to_backend(struct __sk_buff *skb, struct packet *packet, __u32 vni, const struct service *service)
{
	struct flow_key key;
	struct flow fresh = {};
	struct backend *backend = 0;
	flow_of(packet, vni, &key);
	struct flow *known = bpf_map_lookup_elem(&FLOWS, &key);
	/* A backend that went away leaves its place, so its flows choose again. */
	if (known)
		backend = backend_at(known->backend, known->generation);
	if (!backend) {
		backend = choose_backend(packet, service, &fresh.backend);
		if (!backend)
			return REFUSE(NO_BACKEND);
		fresh.generation = backend->generation;
		bpf_map_update_elem(&FLOWS, &key, &fresh, BPF_ANY);
		note_origin(packet, vni, backend);
	}
	struct address address = backend->address;
	__u16 port = backend->port;
	note_fragment(packet, vni, &address, 0);
	/* A pod drops what comes from its own address: to itself, it speaks as the service. */
	if (same_address(&address, &packet->source)) {
		struct address vip = packet->destination;
		int refusal = rewrite_source(skb, packet, &vip, packet->source_port);
		if (refusal)
			return refusal;
	}
	return rewrite_destination(skb, packet, &address, port);
}

/* Whether a pod answers itself, as whom it was asked by the service's address. */
INLINE int answers_itself(const struct packet *packet, __u32 vni)
{
	struct flow_key key;
	if (!has_ports(packet))
		return 0;
	flow_of(packet, vni, &key);
	key.destination = packet->source;
	struct origin *origin = bpf_map_lookup_elem(&ORIGINS, &key);
	return origin && same_address(&origin->vip, &packet->destination);
}

/* Gives a packet to a service address its backend; leaves every other packet alone. */
INLINE int balance(struct __sk_buff *skb, struct packet *packet, __u32 vni)
{
	if (!service_of(packet, vni, 0, 0))
		return 0;
	if (packet->fragment == LATER_FRAGMENT) {
		struct address before = packet->destination;
		int refusal = follow_fragment(skb, packet, vni, 0);
		if (!refusal && same_address(&before, &packet->destination))
			return REFUSE(UNKNOWN_FRAGMENT);
		return refusal;
	}
	struct service *service = service_of(packet, vni, packet->destination_port, packet->protocol);
	if (service)
		return to_backend(skb, packet, vni, service);
	if (!answers_itself(packet, vni))
		return REFUSE(NO_BACKEND);
	struct address own = packet->source;
	return rewrite_destination(skb, packet, &own, packet->destination_port);
}

INLINE struct origin *origin_of(const struct packet *packet, __u32 vni)
{
	struct flow_key key;
	if (!has_ports(packet))
		return 0;
	flow_of(packet, vni, &key);
	return bpf_map_lookup_elem(&ORIGINS, &key);
}

/* Gives an answer of a backend the service address that was asked. */
INLINE int restore_origin(struct __sk_buff *skb, struct packet *packet, __u32 vni)
{
	struct origin *origin = origin_of(packet, vni);
	if (!origin)
		return follow_fragment(skb, packet, vni, 1);
	struct address vip = origin->vip;
	__u16 port = origin->port;
	note_fragment(packet, vni, &vip, 1);
	return rewrite_source(skb, packet, &vip, port);
}

/* The flow, seen from the answering side, that an ICMP error quotes; false when it quotes too little. */
INLINE int quoted_flow_of(struct __sk_buff *skb, const struct packet *packet, __u32 vni, struct flow_key *key)
{
	__u32 quoted = packet->transport + ICMP_HLEN;
	__be32 ipv4[2];
	__u16 ports[2];
	__u8 first;
	__builtin_memset(key, 0, sizeof(*key));
	if (bpf_skb_load_bytes(skb, quoted, &first, 1))
		return 0;
	if (packet->ip_version == 4) {
		/* A header without options, as all that are forwarded here have. */
		if (first != 0x45 || bpf_skb_load_bytes(skb, quoted + 12, ipv4, sizeof(ipv4)))
			return 0;
		address_from_ipv4(&key->destination, ipv4[0]);
		address_from_ipv4(&key->source, ipv4[1]);
		quoted += sizeof(struct iphdr);
	} else {
		if (bpf_skb_load_bytes(skb, quoted + 8, &key->destination, sizeof(key->destination)) ||
		    bpf_skb_load_bytes(skb, quoted + 24, &key->source, sizeof(key->source)))
			return 0;
		quoted += sizeof(struct ipv6hdr);
	}
	if (bpf_skb_load_bytes(skb, quoted, ports, sizeof(ports)))
		return 0;
	key->vni = vni;
	key->protocol = packet->quoted_protocol;
	key->destination_port = ports[0];
	key->source_port = ports[1];
	return 1;
}

/* Rewrites the destination that an ICMP error quotes. Over IPv4 the quoted header's own checksum takes
 * the address up, so that the checksum of the whole changes by the port only. */
INLINE int rewrite_quoted(struct __sk_buff *skb, const struct packet *packet, const struct flow_key *flow,
			  const struct address *to, __be16 port)
{
	__u32 checksum = packet->transport + 2, quoted = packet->transport + ICMP_HLEN;
	__u32 transport = quoted + (packet->ip_version == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	if (packet->ip_version == 4) {
		__be32 before = flow->source.words[3], after = to->words[3];
		if (bpf_l3_csum_replace(skb, quoted + 10, before, after, sizeof(after)) ||
		    bpf_skb_store_bytes(skb, quoted + 16, &after, sizeof(after), 0))
			return REFUSE(NOT_REWRITTEN);
	} else {
		struct address before = flow->source, after = *to;
		__s64 difference = bpf_csum_diff(before.words, sizeof(before), after.words, sizeof(after), 0);
		if (bpf_l4_csum_replace(skb, checksum, 0, difference, 0) ||
		    bpf_skb_store_bytes(skb, quoted + 24, &after, sizeof(after), 0))
			return REFUSE(NOT_REWRITTEN);
	}
	if (bpf_l4_csum_replace(skb, checksum, flow->source_port, port, sizeof(port)) ||
	    bpf_skb_store_bytes(skb, transport + 2, &port, sizeof(port), 0))
		return REFUSE(NOT_REWRITTEN);
	return 0;
}

/* An ICMP error about a packet to a service quotes the backend, of which the pod knows nothing. */
INLINE int restore_quoted(struct __sk_buff *skb, const struct packet *packet, __u32 vni)
{
	struct flow_key key;
	if (packet->quoted_protocol != IPPROTO_TCP && packet->quoted_protocol != IPPROTO_UDP)
		return 0;
	if (!quoted_flow_of(skb, packet, vni, &key))
		return 0;
	struct origin *origin = bpf_map_lookup_elem(&ORIGINS, &key);
	if (!origin)
		return 0;
	struct address vip = origin->vip;
	return rewrite_quoted(skb, packet, &key, &vip, origin->port);
}
