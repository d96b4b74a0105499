//! Why a packet was dropped: `bpf/drop_reason.h` in Rust, in the same order.

macro_rules! reasons {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// Index into `Counters::drops`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum DropReason { $($variant),* }

        impl DropReason {
            /// All, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Label of metrics and of the API.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

reasons! {
    UnknownPort = "unknown_port",
    PortClosed = "port_closed",
    SpoofedMac = "spoofed_mac",
    SpoofedIp = "spoofed_ip",
    SpoofedNeighbor = "spoofed_neighbor",
    NotAnswered = "not_answered",
    UnknownEthertype = "unknown_ethertype",
    Truncated = "truncated",
    MalformedIp = "malformed_ip",
    BadChecksum = "bad_checksum",
    IpOptions = "ip_options",
    UnknownFragment = "unknown_fragment",
    BadDestination = "bad_destination",
    NoListener = "no_listener",
    NoRoute = "no_route",
    NoBackend = "no_backend",
    TtlExceeded = "ttl_exceeded",
    Ungoverned = "ungoverned",
    NotRewritten = "not_rewritten",
    NotListening = "not_listening",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_same_in_c() {
        let header = include_str!("../bpf/drop_reason.h");
        let list = header.split("#define DROP_REASONS(REASON)").nth(1).expect("list");
        let list = list.split("enum drop_reason").next().expect("end of the list");
        let in_c: Vec<_> = list.split("REASON(").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        let in_rust: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name().to_uppercase()).collect();
        assert_eq!(in_c, in_rust);
    }
}
