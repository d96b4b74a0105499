// SPDX-License-Identifier: Apache-2.0
// Maps that the programs share with user space. `src/sys/abi.rs` repeats the structures.
// Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are in network order.
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "drop_reason.h"

#define MAX_PORTS 1024
#define MAX_SERVICES 4096
#define MAX_BACKENDS 16384
/* A prime, over 100 times the usual number of backends of one service. */
#define MAGLEV_SIZE 1021

#define INLINE static __always_inline

struct address {
	__u32 words[4];
};

/* Port flags. */
#define PORT_OPEN 1
#define PORT_GOVERNED 2
#define PORT_BYPASS 4

struct port {
	/* Index into counters; 0 is the uplink's and the host interface's. */
	__u32 slot;
	__u32 vni;
	__u32 flags;
	__u8 mac[6];
	/* The representor's own: the pod's gateway. */
	__u8 gateway_mac[6];
};

struct endpoint_key {
	__u32 vni;
	struct address address;
};

struct route_key {
	/* 32 bits of VNI, then the address. */
	__u32 prefix_bits;
	__u32 vni;
	struct address prefix;
};

struct next_hop {
	/* 0: nobody may go there. */
	__u32 ifindex;
	/* 0: the destination itself is on the link. */
	__u32 ip_version;
	struct address address;
};

struct service_key {
	struct address vip;
	__u32 vni;
	/* Port and protocol 0: marks the address as a service address. */
	__u16 port;
	__u8 protocol;
	__u8 zero;
};

struct service {
	/* Row of MAGLEV. */
	__u32 index;
	__u32 backends;
};

struct backend {
	struct address address;
	__u16 port;
	__u16 zero;
	/* Changes when the place is given to another backend; 0: nobody's. */
	__u32 generation;
};

struct flow_key {
	__u32 vni;
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 zero[3];
};

struct flow {
	__u32 backend;
	__u32 generation;
};

/* What the source of an answer is to be. */
struct origin {
	struct address vip;
	__u16 port;
	__u16 zero;
};

struct fragment_key {
	__u32 vni;
	struct address source;
	struct address destination;
	__u32 id;
	__u32 protocol;
};

struct fragment {
	struct address address;
	/* Whether the source or the destination is rewritten. */
	__u32 is_source;
};

struct listener_key {
	__u32 ifindex;
	__u32 ip_version;
};

/* A TCP port of a pod, in network order. */
struct pod_port {
	__u32 ifindex;
	__u16 port;
	__u8 ip_version;
	__u8 zero;
};

struct uplink {
	__u32 ifindex;
	__u8 mac[6];
	__u8 zero[2];
};

/* The link to the host's own function. */
struct host {
	/* 0: none. */
	__u32 ifindex;
};

struct counters {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 steered;
	__u64 drops[DROP_REASON_ROOM];
};

#define MAP(name, kind, key_type, value_type, entries)                                             \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
		__uint(max_entries, entries);                                                      \
	} name SEC(".maps")

MAP(PORTS, BPF_MAP_TYPE_HASH, __u32, struct port, MAX_PORTS);
MAP(ENDPOINTS, BPF_MAP_TYPE_HASH, struct endpoint_key, __u32, MAX_PORTS * 8);
MAP(SERVICES, BPF_MAP_TYPE_HASH, struct service_key, struct service, MAX_SERVICES * 2);
MAP(MAGLEV, BPF_MAP_TYPE_ARRAY, __u32, __u32, MAX_SERVICES * MAGLEV_SIZE);
MAP(BACKENDS, BPF_MAP_TYPE_ARRAY, __u32, struct backend, MAX_BACKENDS);
MAP(FLOWS, BPF_MAP_TYPE_LRU_HASH, struct flow_key, struct flow, 65536);
MAP(ORIGINS, BPF_MAP_TYPE_LRU_HASH, struct flow_key, struct origin, 65536);
MAP(FRAGMENTS, BPF_MAP_TYPE_LRU_HASH, struct fragment_key, struct fragment, 4096);
MAP(BYPASSED, BPF_MAP_TYPE_LRU_HASH, struct flow_key, __u32, 65536);
/* Where probes ask and the pod does not listen. */
MAP(SHUT, BPF_MAP_TYPE_HASH, struct pod_port, __u8, MAX_PORTS * 16);
MAP(UPLINK, BPF_MAP_TYPE_ARRAY, __u32, struct uplink, 1);
MAP(HOST, BPF_MAP_TYPE_ARRAY, __u32, struct host, 1);
MAP(COUNTERS, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counters, MAX_PORTS);
MAP(LISTENERS, BPF_MAP_TYPE_SOCKHASH, struct listener_key, __u32, MAX_PORTS * 2);

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct route_key);
	__type(value, struct next_hop);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} ROUTES SEC(".maps");

INLINE struct uplink *the_uplink(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&UPLINK, &zero);
}

INLINE int is_host(__u32 ifindex)
{
	__u32 zero = 0;
	struct host *host = bpf_map_lookup_elem(&HOST, &zero);
	return host && host->ifindex && host->ifindex == ifindex;
}

INLINE struct counters *counters_of(__u32 slot)
{
	return bpf_map_lookup_elem(&COUNTERS, &slot);
}

INLINE void count_drop(__u32 slot, enum drop_reason reason)
{
	struct counters *counters = counters_of(slot);
	if (counters && (__u32)reason < DROP_REASON_ROOM)
		counters->drops[reason]++;
}

INLINE int same_address(const struct address *a, const struct address *b)
{
	return a->words[0] == b->words[0] && a->words[1] == b->words[1] &&
	       a->words[2] == b->words[2] && a->words[3] == b->words[3];
}

/* Ifindex of the port that has the address, 0 when none has. */
INLINE __u32 endpoint_of(__u32 vni, const struct address *address)
{
	struct endpoint_key key = { .vni = vni, .address = *address };
	__u32 *ifindex = bpf_map_lookup_elem(&ENDPOINTS, &key);
	return ifindex ? *ifindex : 0;
}

/* Whether the proxy listens. A socket that dies leaves the map by itself. */
INLINE int has_listener(__u32 ifindex, __u32 ip_version)
{
	struct listener_key key = { .ifindex = ifindex, .ip_version = ip_version };
	struct bpf_sock *socket = bpf_map_lookup_elem(&LISTENERS, &key);
	if (!socket)
		return 0;
	bpf_sk_release(socket);
	return 1;
}
