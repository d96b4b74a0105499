// SPDX-License-Identifier: Apache-2.0
// Why a packet was dropped. The one list: `DropReason` in Rust repeats it in this order, and a test
// compares the two. Each reason is a label of the metric `dataplane_drops_total`.
#pragma once

#define DROP_REASONS(REASON)                                                                       \
	REASON(UNKNOWN_PORT)      /* the interface belongs to no port */                           \
	REASON(PORT_CLOSED)       /* the port is not open yet, or not any more */                  \
	REASON(SPOOFED_MAC)       /* source MAC is not the port's */                               \
	REASON(SPOOFED_IP)        /* source address is not the sender's to use */                  \
	REASON(SPOOFED_NEIGHBOR)  /* ARP or ND with a sender that is not the port's */             \
	REASON(NOT_ANSWERED)      /* ARP, ND or router solicitation that needs no answer */        \
	REASON(UNKNOWN_ETHERTYPE) /* neither IPv4, IPv6 nor ARP */                                 \
	REASON(TRUNCATED)         /* shorter than its headers say */                               \
	REASON(MALFORMED_IP)      /* impossible version or length */                               \
	REASON(BAD_CHECKSUM)      /* IPv4 header checksum is wrong */                              \
	REASON(IP_OPTIONS)        /* IPv4 options or IPv6 extension headers */                     \
	REASON(UNKNOWN_FRAGMENT)  /* later fragment of a service packet whose first was not seen */ \
	REASON(BAD_DESTINATION)   /* multicast, broadcast, loopback or unspecified */              \
	REASON(NO_LISTENER)       /* governed TCP, and the proxy does not listen */                \
	REASON(NO_ROUTE)          /* no port and no route has the destination */                   \
	REASON(NO_BACKEND)        /* a service address without a backend for this port */          \
	REASON(TTL_EXCEEDED)      /* hop limit used up */                                          \
	REASON(UNGOVERNED)        /* to a pod, but neither forwarded here nor from the proxy */    \
	REASON(NOT_REWRITTEN)     /* the kernel refused to change the packet */                    \
	REASON(NOT_LISTENING)     /* from the host, and the pod has just refused that port */

enum drop_reason {
#define REASON(name) DROP_##name,
	DROP_REASONS(REASON)
#undef REASON
	DROP_REASON_COUNT,
};

/* Room in a counter record, so that a new reason does not change the map's layout. */
#define DROP_REASON_ROOM 32
_Static_assert(DROP_REASON_COUNT <= DROP_REASON_ROOM, "make room for the new drop reason");
