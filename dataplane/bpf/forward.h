// SPDX-License-Identifier: Apache-2.0
// Who gets a packet: the proxy, a local pod, or the next hop. A function returns an action of tc, or
// `REFUSE` negated (so that 0 and above are actions).
#pragma once
#include "balance.h"

/* Between our programs only: a packet for a local governed pod that starts or ends on this DPU goes
 * through the uplink's program as if it came from the fabric. */
#define MARK_TURNED 0x0d9b0002
/* Answers that the kernel makes itself (RST) carry the mark of what they answer (fwmark_reflect),
 * and a rule on it finds the way back to the port. The low half is the counter slot. */
#define MARK_PORT 0x0d9c0000

#define AF_INET 2
#define AF_INET6 10

INLINE int drop(int refusal)
{
	return -refusal;
}

/* Counts a refusal, or lets the action be. */
INLINE int settle(int action, __u32 slot)
{
	if (action >= 0)
		return action;
	count_drop(slot, (enum drop_reason)(-action - 1));
	return TC_ACT_SHOT;
}

INLINE int up_the_stack(struct __sk_buff *skb, __u32 slot)
{
	skb->mark = MARK_PORT | (slot & 0xffff);
	bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	return TC_ACT_OK;
}

/* An ICMP error about a connection of the proxy is the kernel's to read. */
INLINE int is_for_proxy(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP || packet->quoted_protocol == IPPROTO_TCP;
}

INLINE void note_bypass(const struct packet *packet, __u32 vni)
{
	struct flow_key key;
	__u32 one = 1;
	flow_of(packet, vni, &key);
	bpf_map_update_elem(&BYPASSED, &key, &one, BPF_ANY);
	reverse_flow_of(packet, vni, &key);
	bpf_map_update_elem(&BYPASSED, &key, &one, BPF_ANY);
}

INLINE void forget_bypass(const struct packet *packet, __u32 vni)
{
	struct flow_key key;
	flow_of(packet, vni, &key);
	bpf_map_delete_elem(&BYPASSED, &key);
	reverse_flow_of(packet, vni, &key);
	bpf_map_delete_elem(&BYPASSED, &key);
}

/* Whether the flow was let past while the proxy was away. The flow is known by the service address. */
INLINE int is_bypassed(const struct packet *packet, __u32 vni)
{
	struct flow_key key;
	flow_of(packet, vni, &key);
	struct origin *origin = bpf_map_lookup_elem(&ORIGINS, &key);
	if (origin) {
		key.source = origin->vip;
		key.source_port = origin->port;
	}
	return bpf_map_lookup_elem(&BYPASSED, &key) != 0;
}

enum governance { TO_PROXY, PLAIN, REFUSED };

/* What becomes of TCP of a governed port whose listener is bound to `device`. A connection stays
 * where it began. */
INLINE enum governance govern(const struct packet *packet, const struct port *port, __u32 device)
{
	if (!(port->flags & PORT_BYPASS)) {
		if (is_syn(packet) && !has_listener(device, packet->ip_version))
			return REFUSED;
		return TO_PROXY;
	}
	if (!has_ports(packet) || packet->protocol != IPPROTO_TCP)
		return TO_PROXY;
	if (!is_syn(packet))
		return is_bypassed(packet, port->vni) ? PLAIN : TO_PROXY;
	if (has_listener(device, packet->ip_version)) {
		forget_bypass(packet, port->vni);
		return TO_PROXY;
	}
	note_bypass(packet, port->vni);
	return PLAIN;
}

/* Hands the packet to the pod behind `ifindex`. */
INLINE int deliver(struct __sk_buff *skb, struct packet *packet, const struct port *to, __u32 ifindex)
{
	int refusal = restore_origin(skb, packet, to->vni);
	if (!refusal)
		refusal = restore_quoted(skb, packet, to->vni);
	if (!refusal)
		refusal = take_hop(skb, packet);
	if (!refusal)
		refusal = set_macs(skb, to->mac, to->gateway_mac);
	if (refusal)
		return drop(refusal);
	skb->mark = MARK_OURS;
	return bpf_redirect(ifindex, 0);
}

/* Lets the packet enter again by the uplink. */
INLINE int turn_at_uplink(struct __sk_buff *skb)
{
	struct uplink *uplink = the_uplink();
	if (!uplink)
		return drop(REFUSE(NO_ROUTE));
	int refusal = set_macs(skb, uplink->mac, uplink->mac);
	if (refusal)
		return drop(refusal);
	skb->mark = MARK_TURNED;
	return bpf_redirect(uplink->ifindex, BPF_F_INGRESS);
}

/* Routes of the API lead to the pods of other nodes; the others are the DPU's own, to the fabric. */
INLINE int to_next_hop(struct __sk_buff *skb, struct packet *packet, __u32 vni)
{
	struct route_key key = { .prefix_bits = 160, .vni = vni, .prefix = packet->destination };
	struct next_hop *hop = bpf_map_lookup_elem(&ROUTES, &key);
	/* No device: an address of the DPU itself, or the way to another link of it. */
	if (!hop || !hop->ifindex)
		return drop(REFUSE(NO_ROUTE));
	int refusal = take_hop(skb, packet);
	if (refusal)
		return drop(refusal);
	__u32 version = hop->ip_version ? hop->ip_version : packet->ip_version;
	const struct address *next = hop->ip_version ? &hop->address : &packet->destination;
	struct bpf_redir_neigh neighbor = { .nh_family = version == 4 ? AF_INET : AF_INET6 };
	if (version == 4)
		neighbor.ipv4_nh = next->words[3];
	else
		__builtin_memcpy(neighbor.ipv6_nh, next->words, 16);
	skb->mark = MARK_OURS;
	return bpf_redirect_neigh(hop->ifindex, &neighbor, sizeof(neighbor), 0);
}

/* Forwards what the proxy has no part in, from a pod of `vni`. */
INLINE int forward(struct __sk_buff *skb, struct packet *packet, __u32 vni)
{
	int refusal = is_bad_destination(packet) ? REFUSE(BAD_DESTINATION) : balance(skb, packet, vni);
	if (refusal)
		return drop(refusal);
	__u32 ifindex = endpoint_of(vni, &packet->destination);
	struct port *to = ifindex ? bpf_map_lookup_elem(&PORTS, &ifindex) : 0;
	if (!to)
		return to_next_hop(skb, packet, vni);
	if (!(to->flags & PORT_OPEN))
		return drop(REFUSE(PORT_CLOSED));
	if ((to->flags & PORT_GOVERNED) && packet->protocol == IPPROTO_TCP)
		return turn_at_uplink(skb);
	return deliver(skb, packet, to, ifindex);
}
