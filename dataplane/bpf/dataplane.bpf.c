// SPDX-License-Identifier: Apache-2.0
// The programs of the dataplane.
//
//   rep_ingress     tc, representor, ingress: what a pod sends
//   rep_egress      tc, representor, egress:  what a pod is about to get
//   uplink_ingress  tc, uplink, ingress:      what the fabric sends
//   uplink_egress   tc, uplink, egress:       what the proxy sends to a pod that lives here
//   host_ingress    tc, host, ingress:        what the server itself sends to its pods
//   steer           sk_lookup, namespace:     which listening socket gets a connection
//
// A pod's identity is the representor that its packet came by. TCP of a governed port goes up the
// stack, where `steer` hands it to the proxy's socket; everything else is forwarded here.
#include "forward.h"

/* An ICMP error quotes the packet that it is about, and a pod can only know of those that it got: else
 * it could end connections of others, the DPU's own among them. */
INLINE int quotes_own_packet(struct __sk_buff *skb, const struct packet *packet)
{
	struct address quoted = {};
	__be32 ipv4;
	if (!packet->quoted_protocol)
		return 1;
	if (packet->ip_version == 4) {
		if (bpf_skb_load_bytes(skb, packet->transport + 8 + 16, &ipv4, sizeof(ipv4)))
			return 0;
		address_from_ipv4(&quoted, ipv4);
	} else if (bpf_skb_load_bytes(skb, packet->transport + 8 + 24, &quoted, sizeof(quoted))) {
		return 0;
	}
	return same_address(&quoted, &packet->source);
}

INLINE int from_pod(struct __sk_buff *skb, const struct port *port)
{
	struct packet packet = {};
	int refusal = parse(skb, &packet);
	if (refusal)
		return drop(refusal);
	if (is_neighbor_discovery(&packet)) {
		refusal = answer_solicitation(skb, port, &packet);
		return refusal ? drop(refusal) : bpf_redirect(skb->ifindex, 0);
	}
	if (packet.ip_version == 6 && is_link_local(&packet.source))
		return drop(REFUSE(NOT_ANSWERED));
	if (endpoint_of(port->vni, &packet.source) != skb->ifindex)
		return drop(REFUSE(SPOOFED_IP));
	if (!quotes_own_packet(skb, &packet))
		return drop(REFUSE(SPOOFED_IP));
	if (!(port->flags & PORT_OPEN))
		return drop(REFUSE(PORT_CLOSED));
	if ((port->flags & PORT_GOVERNED) && is_for_proxy(&packet)) {
		enum governance governance = govern(&packet, port, skb->ifindex);
		if (governance == REFUSED)
			return drop(REFUSE(NO_LISTENER));
		if (governance == TO_PROXY)
			return up_the_stack(skb, port->slot);
	}
	return forward(skb, &packet, port->vni);
}

INLINE int from_representor(struct __sk_buff *skb, const struct port *port)
{
	__u8 source[6];
	if (bpf_skb_load_bytes(skb, 6, source, sizeof(source)))
		return drop(REFUSE(TRUNCATED));
	if (!same_mac(source, port->mac))
		return drop(REFUSE(SPOOFED_MAC));
	if (skb->protocol == bpf_htons(ETH_P_ARP)) {
		int refusal = answer_arp(skb, port);
		return refusal ? drop(refusal) : bpf_redirect(skb->ifindex, 0);
	}
	return from_pod(skb, port);
}

SEC("classifier")
int rep_ingress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&PORTS, &ifindex);
	if (!port)
		return settle(drop(REFUSE(UNKNOWN_PORT)), 0);
	struct counters *counters = counters_of(port->slot);
	if (counters) {
		counters->rx_packets++;
		counters->rx_bytes += skb->len;
	}
	return settle(from_representor(skb, port), port->slot);
}

/* Only a socket that is bound to the representor may open connections to the pod or send it data:
 * the proxy's. What the kernel says by itself (resets, SYN cookies) has no data. */
INLINE int is_from_proxy(struct __sk_buff *skb, const struct port *port, __u32 ifindex)
{
	struct packet packet = {};
	if (parse(skb, &packet) || packet.protocol != IPPROTO_TCP)
		return 0;
	if (is_syn(&packet) && (port->flags & PORT_BYPASS))
		forget_bypass(&packet, port->vni);
	struct bpf_sock *socket = skb->sk;
	if (socket && socket->bound_dev_if == ifindex)
		return 1;
	return !is_syn(&packet) && has_ports(&packet) && packet.payload == 0;
}

INLINE int to_pod(struct __sk_buff *skb, const struct port *port, __u32 ifindex)
{
	if (skb->mark != MARK_OURS) {
		if (!is_from_proxy(skb, port, ifindex))
			return drop(REFUSE(UNGOVERNED));
		if (!(port->flags & PORT_OPEN))
			return drop(REFUSE(PORT_CLOSED));
	}
	skb->mark = 0;
	struct counters *counters = counters_of(port->slot);
	if (counters) {
		counters->tx_packets++;
		counters->tx_bytes += skb->len;
	}
	return TC_ACT_OK;
}

SEC("classifier")
int rep_egress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&PORTS, &ifindex);
	if (!port)
		return settle(drop(REFUSE(UNKNOWN_PORT)), 0);
	return settle(to_pod(skb, port, ifindex), port->slot);
}

/* From outside of all pods, by `device`, for a pod that lives here behind `ifindex`. `may_be_pod`: it was turned
 * at the uplink, and its source was checked where it entered. */
INLINE int to_local_pod(struct __sk_buff *skb, struct packet *packet, const struct port *to, __u32 ifindex,
			__u32 device, int may_be_pod)
{
	/* A local pod's address comes neither from the fabric nor from the host. */
	if (!may_be_pod && endpoint_of(to->vni, &packet->source))
		return drop(REFUSE(SPOOFED_IP));
	if (!(to->flags & PORT_OPEN))
		return drop(REFUSE(PORT_CLOSED));
	if ((to->flags & PORT_GOVERNED) && is_for_proxy(packet)) {
		enum governance governance = govern(packet, to, device);
		if (governance == REFUSED)
			return drop(REFUSE(NO_LISTENER));
		if (governance == TO_PROXY)
			return up_the_stack(skb, 0);
	}
	return deliver(skb, packet, to, ifindex);
}

INLINE int from_outside(struct __sk_buff *skb, __u32 device, int may_be_pod)
{
	struct packet packet = {};
	/* What is not for a pod, well formed or not, is the kernel's. */
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_ACT_OK;
	int refusal = parse(skb, &packet);
	__u32 ifindex = endpoint_of(0, &packet.destination);
	struct port *to = ifindex ? bpf_map_lookup_elem(&PORTS, &ifindex) : 0;
	if (!to)
		return TC_ACT_OK;
	if (refusal)
		return settle(drop(refusal), to->slot);
	return settle(to_local_pod(skb, &packet, to, ifindex, device, may_be_pod), to->slot);
}

SEC("classifier")
int uplink_ingress(struct __sk_buff *skb)
{
	struct uplink *uplink = the_uplink();
	if (!uplink)
		return settle(drop(REFUSE(NO_ROUTE)), 0);
	return from_outside(skb, uplink->ifindex, skb->mark == MARK_TURNED);
}

/* The server's own packets to its pods: a port of its own, so that the proxy knows whose they are. */
SEC("classifier")
int host_ingress(struct __sk_buff *skb)
{
	return from_outside(skb, skb->ifindex, 0);
}

SEC("classifier")
int uplink_egress(struct __sk_buff *skb)
{
	struct packet packet = {};
	if (skb->mark == MARK_OURS) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	if (parse(skb, &packet))
		return TC_ACT_OK;
	__u32 ifindex = endpoint_of(0, &packet.source);
	struct port *from = ifindex ? bpf_map_lookup_elem(&PORTS, &ifindex) : 0;
	if (from && (from->flags & PORT_BYPASS) && packet.protocol == IPPROTO_TCP && is_syn(&packet))
		forget_bypass(&packet, from->vni);
	ifindex = endpoint_of(0, &packet.destination);
	if (!ifindex)
		return TC_ACT_OK;
	/* To a pod that lives here: it must not leave by the fabric. */
	return settle(turn_at_uplink(skb), 0);
}

INLINE int assign(struct bpf_sk_lookup *lookup, __u32 device, __u32 slot)
{
	struct listener_key key = { .ifindex = device, .ip_version = lookup->family == AF_INET ? 4 : 6 };
	struct bpf_sock *socket = bpf_map_lookup_elem(&LISTENERS, &key);
	if (!socket) {
		count_drop(slot, DROP_NO_LISTENER);
		return SK_DROP;
	}
	long error = bpf_sk_assign(lookup, socket, BPF_SK_LOOKUP_F_REPLACE);
	bpf_sk_release(socket);
	struct counters *counters = counters_of(slot);
	if (error || !counters)
		return SK_DROP;
	counters->steered++;
	return SK_PASS;
}

/* The compiler must not merge two fields of the context into one computed offset: the verifier
 * refuses that. */
#define READ_CONTEXT(to, from)                                                                     \
	do {                                                                                       \
		to = from;                                                                         \
		asm volatile("" : "+r"(to));                                                       \
	} while (0)

INLINE void local_address(struct bpf_sk_lookup *lookup, struct address *address)
{
	__u32 ipv4, last;
	READ_CONTEXT(ipv4, lookup->local_ip4);
	READ_CONTEXT(last, lookup->local_ip6[3]);
	if (lookup->family == AF_INET) {
		address_from_ipv4(address, ipv4);
		return;
	}
	address->words[0] = lookup->local_ip6[0];
	address->words[1] = lookup->local_ip6[1];
	address->words[2] = lookup->local_ip6[2];
	address->words[3] = last;
}

/* Only an open governed port has a listener; for any other, no socket of the DPU is meant. */
INLINE int steer_port(struct bpf_sk_lookup *lookup, const struct port *port, __u32 device)
{
	if (port->flags & PORT_GOVERNED && port->flags & PORT_OPEN)
		return assign(lookup, device, port->slot);
	count_drop(port->slot, port->flags & PORT_OPEN ? DROP_UNGOVERNED : DROP_PORT_CLOSED);
	return SK_DROP;
}

/* The proxy would take the connection before it can ask the pod, and a `tcpSocket` probe asks no more than that. */
INLINE int is_shut(struct bpf_sk_lookup *lookup, __u32 ifindex)
{
	struct pod_port key = { .ifindex = ifindex, .ip_version = lookup->family == AF_INET ? 4 : 6 };
	__u32 port;
	READ_CONTEXT(port, lookup->local_port);
	key.port = bpf_htons((__u16)port);
	return bpf_map_lookup_elem(&SHUT, &key) != 0;
}

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *lookup)
{
	__u32 ifindex = lookup->ingress_ifindex;
	struct uplink *uplink = the_uplink();
	struct address address;
	int is_from_outside = (uplink && uplink->ifindex == ifindex) || is_host(ifindex);
	if (lookup->protocol != IPPROTO_TCP)
		return SK_PASS;
	struct port *port = bpf_map_lookup_elem(&PORTS, &ifindex);
	if (port)
		return steer_port(lookup, port, ifindex);
	if (!is_from_outside)
		return SK_PASS;
	local_address(lookup, &address);
	__u32 to = endpoint_of(0, &address);
	port = to ? bpf_map_lookup_elem(&PORTS, &to) : 0;
	if (!port)
		return SK_PASS;
	if (is_host(ifindex) && is_shut(lookup, to)) {
		count_drop(port->slot, DROP_NOT_LISTENING);
		return SK_DROP;
	}
	return steer_port(lookup, port, ifindex);
}

char _license[] SEC("license") = "Apache-2.0";
