//! `StreamInfo`: what happened to one request (or one TCP connection), as access logs and metrics tell it.

use crate::connection::PeerCertificate;
use dpu_proxy_core::model::{Endpoint, RouteConfig, ScopedCluster, VirtualHost};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

macro_rules! response_flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal;)*) => {
        /// Set of Envoy's response flags, in the order in which they were set: so Envoy prints them.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct ResponseFlags {
            bits: u32,
            /// Bit numbers, five bits each, the first one lowest.
            order: u64,
        }

        impl ResponseFlags {
            $($(#[$doc])* pub const $name: Self = Self { bits: 1 << $bit, order: $bit };)*

            fn short(bit: u64) -> &'static str {
                match bit {
                    $($bit => $short,)*
                    _ => "",
                }
            }
        }
    };
}

/// Flags of one stream that keep their order; further ones would print last.
const ORDERED_FLAGS: u32 = 12;

response_flags! {
    /// Local service failed its health check.
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH";
    /// No healthy upstream host.
    NO_HEALTHY_UPSTREAM = 1, "UH";
    /// Upstream request timed out.
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT";
    /// Connection local reset.
    LOCAL_RESET = 3, "LR";
    /// Upstream remote reset.
    UPSTREAM_REMOTE_RESET = 4, "UR";
    /// Upstream connection failure.
    UPSTREAM_CONNECTION_FAILURE = 5, "UF";
    /// Upstream connection termination.
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC";
    /// Upstream overflow (circuit breaker).
    UPSTREAM_OVERFLOW = 7, "UO";
    /// No route found.
    NO_ROUTE = 8, "NR";
    /// Delay injected.
    DELAY_INJECTED = 9, "DI";
    /// Fault injected.
    FAULT_INJECTED = 10, "FI";
    /// Rate limited.
    RATE_LIMITED = 11, "RL";
    /// Denied by external authorization.
    UNAUTHORIZED_EXTERNAL = 12, "UAEX";
    /// Downstream connection termination.
    DOWNSTREAM_CONNECTION_TERMINATION = 14, "DC";
    /// Upstream retry limit exceeded.
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 15, "URX";
    /// Stream idle timeout.
    STREAM_IDLE_TIMEOUT = 16, "SI";
    /// Invalid envoy request headers.
    INVALID_ENVOY_REQUEST_HEADERS = 17, "IH";
    /// Downstream protocol error.
    DOWNSTREAM_PROTOCOL_ERROR = 18, "DPE";
    /// Max stream duration reached.
    UPSTREAM_MAX_STREAM_DURATION = 19, "UMSDR";
    /// No filter config found.
    NO_FILTER_CONFIG = 21, "NFCF";
    /// Duration timeout.
    DURATION_TIMEOUT = 22, "DT";
    /// Upstream protocol error.
    UPSTREAM_PROTOCOL_ERROR = 23, "UPE";
    /// No cluster found.
    NO_CLUSTER = 24, "NC";
    /// Overload manager terminated.
    OVERLOAD_MANAGER = 25, "OM";
    /// DNS resolution failed.
    DNS_FAILURE = 26, "DF";
}

impl ResponseFlags {
    /// Short names in the order in which they were set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        (0..self.bits.count_ones().min(ORDERED_FLAGS)).map(move |at| Self::short(self.order >> (5 * at) & 0x1f))
    }

    /// Adds the flags of `other` that are not set yet, after those that are.
    pub fn insert(&mut self, other: Self) {
        for at in 0..other.bits.count_ones().min(ORDERED_FLAGS) {
            let bit = other.order >> (5 * at) & 0x1f;
            let count = self.bits.count_ones();
            if self.bits & 1 << bit == 0 && count < ORDERED_FLAGS {
                self.order |= bit << (5 * count);
            }
            self.bits |= 1 << bit;
        }
    }

    /// True when all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// One bit a flag.
    pub fn to_bits(self) -> u32 {
        self.bits
    }

    /// True without flags.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }
}

impl PartialEq for ResponseFlags {
    fn eq(&self, other: &Self) -> bool {
        self.bits == other.bits
    }
}

impl Eq for ResponseFlags {}

impl std::fmt::Display for ResponseFlags {
    /// `UF,URX`, or `-`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for name in self.names() {
            write!(f, "{separator}{name}")?;
            separator = ",";
        }
        match self.is_empty() {
            true => f.write_str("-"),
            false => Ok(()),
        }
    }
}

/// What was reached upstream (the last attempt).
#[derive(Clone, Debug)]
pub struct UpstreamInfo {
    pub cluster: Arc<ScopedCluster>,
    pub endpoint: Option<Arc<Endpoint>>,
    pub local_address: Option<SocketAddr>,
    /// Identity that was shown upstream.
    pub own_identity: Option<Arc<str>>,
    /// Certificate of the upstream; absent on a plain connection.
    pub peer: Option<Arc<PeerCertificate>>,
    /// Delivered to a workload of this DPU.
    pub is_local: bool,
    /// Why its transport failed; empty when it did not.
    pub transport_failure: String,
}

/// What happened to one request or TCP connection.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    pub started: Instant,
    pub started_wall: SystemTime,
    pub flags: ResponseFlags,
    /// 0: none was sent.
    pub status: u16,
    /// `%RESPONSE_CODE_DETAILS%`; empty: none.
    pub details: String,
    pub connection_termination_details: String,
    /// Body bytes from downstream.
    pub bytes_received: u64,
    /// Body bytes to downstream.
    pub bytes_sent: u64,
    pub route: String,
    pub route_config: Option<Arc<RouteConfig>>,
    pub virtual_host: Option<Arc<VirtualHost>>,
    pub upstream: Option<UpstreamInfo>,
    pub attempts: u32,
    /// After the last byte of the request came.
    pub request_ended: Option<Duration>,
    /// Until the first byte of the response came from upstream.
    pub response_started: Option<Duration>,
    /// Until the upstream's last byte came.
    pub response_ended: Option<Duration>,
    /// Whole duration; set when it ends.
    pub duration: Option<Duration>,
    pub stream_id: String,
    /// The client by `x-forwarded-for`, where that is trusted.
    pub remote: Option<SocketAddr>,
    pub grpc_status: Option<u32>,
}

impl StreamInfo {
    /// Of a stream that begins now.
    pub fn begin() -> Self {
        Self::since(Instant::now(), SystemTime::now())
    }

    /// Of a stream that began then.
    pub fn since(started: Instant, started_wall: SystemTime) -> Self {
        Self {
            started,
            started_wall,
            flags: ResponseFlags::default(),
            status: 0,
            details: String::new(),
            connection_termination_details: String::new(),
            bytes_received: 0,
            bytes_sent: 0,
            route: String::new(),
            route_config: None,
            virtual_host: None,
            upstream: None,
            attempts: 0,
            request_ended: None,
            response_started: None,
            response_ended: None,
            duration: None,
            stream_id: String::new(),
            remote: None,
            grpc_status: None,
        }
    }

    /// Begins again with another stream; keeps the memory of its texts.
    pub fn restart(&mut self, started: Instant, started_wall: SystemTime) {
        let mut fresh = Self::since(started, started_wall);
        for (text, kept) in [
            (&mut fresh.details, &mut self.details),
            (&mut fresh.connection_termination_details, &mut self.connection_termination_details),
            (&mut fresh.route, &mut self.route),
            (&mut fresh.stream_id, &mut self.stream_id),
        ] {
            *text = std::mem::take(kept);
            text.clear();
        }
        *self = fresh;
    }

    /// Time since it began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sets the duration, once.
    pub fn end(&mut self) {
        let elapsed = self.elapsed();
        self.duration.get_or_insert(elapsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_in_the_order_in_which_they_were_set_and_none_is_a_dash() {
        let mut flags = ResponseFlags::default();
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        assert_eq!(flags.to_string(), "URX,UF");
        assert!(flags.contains(ResponseFlags::UPSTREAM_CONNECTION_FAILURE));
        assert!(!flags.contains(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK));
    }
}
