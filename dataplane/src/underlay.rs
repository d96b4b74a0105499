//! Which of the DPU's own routes are the pods' too: those to the fabric, and to the host where a link to it
//! is named. Pure.
//!
//! In: the routes of the kernel's main and local tables. Out: a way for each prefix. Whatever leads to
//! another link of the DPU (its management link first of all) or to the DPU itself is refused by its
//! prefix, so that a default route does not lead there either.

use crate::state::{Hop, OwnRoutes};
use crate::sys::network::Heard;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

/// Routes that are taken over: half of the room that the programs have, the rest is the API's.
const LIMIT: usize = 8192;

/// The links that pods' packets may leave by.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// To the fabric.
    pub uplink: u32,
    /// To the host's own function, if there is one.
    pub host: Option<u32>,
}

/// The ways by `links`. Of several routes to a prefix one by the uplink is taken, then one by the link to the
/// host, and of those the one with the least metric.
pub fn own_routes(heard: &[Heard], links: Links) -> OwnRoutes {
    let mut best: BTreeMap<IpNet, (Rank, Hop)> = BTreeMap::new();
    for route in heard.iter().filter(|route| is_routed(&route.prefix)) {
        let (rank, hop) = way(route, links);
        match best.entry(route.prefix) {
            Entry::Vacant(entry) => drop(entry.insert((rank, hop))),
            Entry::Occupied(mut entry) if rank < entry.get().0 => drop(entry.insert((rank, hop))),
            Entry::Occupied(_) => {}
        }
    }
    let mut own: OwnRoutes = best.into_iter().map(|(prefix, (_, hop))| (prefix, hop)).collect();
    // To the programs IPv4 is a part of IPv6, whose default route it must not take.
    own.entry(IpNet::V4(Ipv4Net::default())).or_insert(Hop::Refused);
    limited(own)
}

/// What is in force first: the DPU's own addresses, then the uplink, then the host, then other links.
type Rank = (u8, u32);

fn way(route: &Heard, links: Links) -> (Rank, Hop) {
    let by = |link: u32| route.ways.iter().find(|way| way.0 == link && route.is_unicast).map(|(_, next_hop)| *next_hop);
    if !route.is_unicast && is_host(&route.prefix) {
        return ((0, 0), Hop::Refused);
    }
    match (by(links.uplink), links.host.and_then(by)) {
        (Some(next_hop), _) => ((1, route.metric), Hop::Own(next_hop)),
        (None, Some(next_hop)) => ((2, route.metric), Hop::Host(next_hop)),
        (None, None) => ((3, route.metric), Hop::Refused),
    }
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// Link-local and loopback addresses are not routed; the programs know of them by themselves.
fn is_routed(prefix: &IpNet) -> bool {
    match prefix.addr() {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast()),
    }
}

/// The shortest prefixes lead furthest.
fn limited(all: OwnRoutes) -> OwnRoutes {
    if all.len() <= LIMIT {
        return all;
    }
    tracing::error!(
        routes = all.len(),
        limit = LIMIT,
        "this DPU has too many routes: pods get those with the shortest prefixes"
    );
    let mut sorted: Vec<_> = all.into_iter().collect();
    // Refusals first: a longer list must not open a way to another link.
    sorted.sort_by_key(|(prefix, hop)| (*hop != Hop::Refused, prefix.prefix_len()));
    sorted.truncate(LIMIT);
    sorted.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: u32 = 3;
    const MANAGEMENT: u32 = 4;
    const HOST: u32 = 5;
    const LINKS: Links = Links { uplink: UPLINK, host: None };

    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    fn route(prefix: &str, link: u32, gateway: Option<&str>, metric: u32) -> Heard {
        let gateway = gateway.map(|text| text.parse().expect("address"));
        Heard { prefix: net(prefix), is_unicast: true, ways: vec![(link, gateway)], metric }
    }

    fn refusal(prefix: &str) -> Heard {
        Heard { is_unicast: false, ..route(prefix, UPLINK, None, 0) }
    }

    #[test]
    fn ways_to_the_fabric_are_the_pods_and_others_are_refused_by_their_prefix() {
        let own = own_routes(
            &[
                route("192.0.2.0/24", UPLINK, None, 0),
                route("0.0.0.0/0", UPLINK, Some("192.0.2.1"), 0),
                route("192.168.100.0/30", MANAGEMENT, None, 0),
                refusal("192.0.2.21/32"),
                refusal("203.0.113.0/24"),
                refusal("127.0.0.0/8"),
                route("fe80::/64", UPLINK, None, 256),
            ],
            LINKS,
        );
        let expected = [
            ("0.0.0.0/0", Hop::Own(Some("192.0.2.1".parse().expect("address")))),
            ("192.0.2.0/24", Hop::Own(None)),
            ("192.0.2.21/32", Hop::Refused),
            ("192.168.100.0/30", Hop::Refused),
            ("203.0.113.0/24", Hop::Refused),
        ];
        assert_eq!(own.into_iter().collect::<Vec<_>>(), expected.map(|(prefix, hop)| (net(prefix), hop)));
    }

    #[test]
    fn of_several_routes_the_uplinks_and_then_the_least_metric_is_taken() {
        let own = |heard: &[Heard]| own_routes(heard, LINKS)[&net("0.0.0.0/0")];
        let (near, far) = ("192.0.2.1", "192.0.2.9");
        let other = route("0.0.0.0/0", MANAGEMENT, Some("172.16.0.1"), 1);
        let all =
            [other.clone(), route("0.0.0.0/0", UPLINK, Some(far), 200), route("0.0.0.0/0", UPLINK, Some(near), 100)];
        assert_eq!(own(&all), Hop::Own(Some(near.parse().expect("address"))));
        assert_eq!(own(&[other]), Hop::Refused);
    }

    #[test]
    fn the_host_is_reached_by_the_link_that_is_named_for_it_where_the_uplink_does_not_lead_there() {
        let heard = [
            route("192.168.101.0/24", HOST, None, 0),
            route("192.0.2.11/32", HOST, Some("192.168.101.1"), 0),
            route("0.0.0.0/0", HOST, Some("192.168.101.1"), 0),
            route("0.0.0.0/0", UPLINK, Some("192.0.2.1"), 100),
            refusal("192.168.101.2/32"),
        ];
        let by_host = Hop::Host(Some("192.168.101.1".parse().expect("address")));
        let own = own_routes(&heard, Links { uplink: UPLINK, host: Some(HOST) });
        assert_eq!((own[&net("192.168.101.0/24")], own[&net("192.0.2.11/32")]), (Hop::Host(None), by_host));
        assert!(matches!(own[&net("0.0.0.0/0")], Hop::Own(Some(_))));
        assert_eq!(own[&net("192.168.101.2/32")], Hop::Refused);
        let without = own_routes(&heard, LINKS);
        assert_eq!((without[&net("192.168.101.0/24")], without[&net("192.0.2.11/32")]), (Hop::Refused, Hop::Refused));
    }

    #[test]
    fn ipv4_does_not_take_the_default_route_of_ipv6() {
        let own = own_routes(&[route("::/0", UPLINK, Some("fd99::2"), 0)], LINKS);
        assert!(matches!(own[&net("::/0")], Hop::Own(Some(_))));
        assert_eq!(own[&net("0.0.0.0/0")], Hop::Refused);
    }

    #[test]
    fn of_many_ways_at_once_one_by_the_uplink_is_taken() {
        let mut route = route("198.51.100.0/24", MANAGEMENT, None, 0);
        route.ways.push((UPLINK, Some("192.0.2.1".parse().expect("address"))));
        assert!(matches!(own_routes(&[route], LINKS)[&net("198.51.100.0/24")], Hop::Own(Some(_))));
    }

    #[test]
    fn when_there_are_too_many_no_refusal_is_lost() {
        let mut heard: Vec<Heard> = (0..LIMIT as u32)
            .map(|n| route(&format!("{}/24", std::net::Ipv4Addr::from(n << 8 | 0x0100_0000)), UPLINK, None, 0))
            .collect();
        heard.extend([refusal("192.0.2.21/32"), route("0.0.0.0/0", UPLINK, None, 0)]);
        let own = own_routes(&heard, LINKS);
        assert_eq!(
            (own.len(), own[&net("192.0.2.21/32")], own[&net("0.0.0.0/0")]),
            (LIMIT, Hop::Refused, Hop::Own(None))
        );
    }
}
