//! Load-balancing policies, as fields of a cluster and as typed extensions.

use super::any;
use super::convert::{number, unknown_enum};
use super::report::{At, ConfigError};
use crate::model::{Discovery, LbPolicy};
use mesh_api::Any;
use mesh_api::envoy::config::cluster::v3 as cluster;
use mesh_api::envoy::config::core::v3::RuntimeDouble;
use mesh_api::envoy::extensions::load_balancing_policies as policies;
use mesh_api::envoy_pb::google::protobuf as wkt;
use policies::common::v3::LocalityLbConfig;
use policies::common::v3::locality_lb_config::LocalityConfigSpecifier;

/// How a cluster's endpoints are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balancing {
    pub policy: LbPolicy,
    pub locality_weighted: bool,
    pub panic_threshold_percent: f64,
}

const ROUND_ROBIN: LbPolicy = LbPolicy::RoundRobin;
const MAX_RING: u64 = 8 * 1024 * 1024;
const MAX_MAGLEV: u64 = 5_000_011;

/// The policy of a cluster.
pub fn policy(at: At<'_>, proto: &cluster::Cluster, discovery: &Discovery) -> Result<Balancing, ConfigError> {
    if proto.lb_subset_config.as_ref().is_some_and(|config| !config.subset_selectors.is_empty()) {
        return Err(at.field("lb_subset_config").refuse("subsets are not supported; make a cluster of each subset"));
    }
    let common = proto.common_lb_config.as_ref();
    let mut balancing = Balancing {
        policy: ROUND_ROBIN,
        locality_weighted: common.is_some_and(|config| locality_weighted(at.field("common_lb_config"), config)),
        panic_threshold_percent: panic_threshold(at, common)?,
    };
    if let Some(typed) = &proto.load_balancing_policy {
        typed_policy(at.field("load_balancing_policy"), typed, &mut balancing)?;
    } else {
        balancing.policy = named_policy(at, proto)?;
    }
    check(at, balancing, discovery)
}

/// CLUSTER_PROVIDED is for original destinations, and they for it.
fn check(at: At<'_>, mut balancing: Balancing, discovery: &Discovery) -> Result<Balancing, ConfigError> {
    let original = matches!(discovery, Discovery::OriginalDst { .. });
    match (original, balancing.policy) {
        (true, _) => balancing.policy = LbPolicy::ClusterProvided,
        (false, LbPolicy::ClusterProvided) => {
            return Err(at
                .field("lb_policy")
                .refuse("CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST; choose another"));
        }
        _ => {}
    }
    Ok(balancing)
}

fn panic_threshold(at: At<'_>, proto: Option<&cluster::cluster::CommonLbConfig>) -> Result<f64, ConfigError> {
    match proto.and_then(|config| config.healthy_panic_threshold).map_or(50.0, |percent| percent.value) {
        value if (0.0..=100.0).contains(&value) => Ok(value),
        value => {
            Err(at.field("common_lb_config").refuse(format!("healthy_panic_threshold: {value} is not a percentage")))
        }
    }
}

fn locality_weighted(at: At<'_>, proto: &cluster::cluster::CommonLbConfig) -> bool {
    use cluster::cluster::common_lb_config::LocalityConfigSpecifier as Specifier;
    match &proto.locality_config_specifier {
        Some(Specifier::LocalityWeightedLbConfig(_)) => true,
        // Envoy's zone-aware routing needs `local_cluster_name`, which a mesh does not set: without it, it is off.
        Some(Specifier::ZoneAwareLbConfig(_)) => {
            at.field("zone_aware_lb_config").unsupported("zone-aware routing is not done; all zones share the load");
            false
        }
        None => false,
    }
}

fn named_policy(at: At<'_>, proto: &cluster::Cluster) -> Result<LbPolicy, ConfigError> {
    use cluster::cluster::{LbConfig, LbPolicy as Named};
    let at_policy = at.field("lb_policy");
    let named = Named::try_from(proto.lb_policy).map_err(|_| at_policy.refuse(unknown_enum(proto.lb_policy)))?;
    Ok(match (named, &proto.lb_config) {
        (Named::RoundRobin, config) => {
            let slow =
                matches!(config, Some(LbConfig::RoundRobinLbConfig(config)) if config.slow_start_config.is_some());
            slow_start(at.field("round_robin_lb_config"), slow);
            ROUND_ROBIN
        }
        (Named::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            let at = at.field("least_request_lb_config");
            slow_start(at, config.slow_start_config.is_some());
            least_request(at, config.choice_count, config.active_request_bias.as_ref())?
        }
        (Named::LeastRequest, _) => least_request(at, None, None)?,
        (Named::Random, _) => LbPolicy::Random,
        (Named::RingHash, Some(LbConfig::RingHashLbConfig(config))) => {
            let at = at.field("ring_hash_lb_config");
            xx_hash_only(at, config.hash_function == 0)?;
            ring(at, config.minimum_ring_size, config.maximum_ring_size)?
        }
        (Named::RingHash, _) => ring(at, None, None)?,
        (Named::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            maglev(at.field("maglev_lb_config"), config.table_size)?
        }
        (Named::Maglev, _) => maglev(at, None)?,
        (Named::ClusterProvided, _) => LbPolicy::ClusterProvided,
        (Named::LoadBalancingPolicyConfig, _) => {
            return Err(at_policy.refuse("LOAD_BALANCING_POLICY_CONFIG needs load_balancing_policy"));
        }
    })
}

fn slow_start(at: At<'_>, asked: bool) {
    if asked {
        at.field("slow_start_config").unsupported("new endpoints get their full share at once");
    }
}

fn xx_hash_only(at: At<'_>, is_xx_hash: bool) -> Result<(), ConfigError> {
    match is_xx_hash {
        true => Ok(()),
        false => Err(at.field("hash_function").refuse("only XX_HASH is supported")),
    }
}

fn least_request(
    at: At<'_>,
    choices: Option<wkt::UInt32Value>,
    bias: Option<&RuntimeDouble>,
) -> Result<LbPolicy, ConfigError> {
    let choice_count = number(choices).unwrap_or(2);
    let active_request_bias = bias.map_or(1.0, |bias| bias.default_value);
    if choice_count < 2 {
        return Err(at.field("choice_count").refuse("must be at least 2"));
    }
    if !(active_request_bias >= 0.0 && active_request_bias.is_finite()) {
        return Err(at.field("active_request_bias").refuse("must be a number of at least 0"));
    }
    Ok(LbPolicy::LeastRequest { choice_count, active_request_bias })
}

fn ring(at: At<'_>, min: Option<wkt::UInt64Value>, max: Option<wkt::UInt64Value>) -> Result<LbPolicy, ConfigError> {
    let minimum = min.map_or(1024, |wrapper| wrapper.value);
    let maximum = max.map_or(MAX_RING, |wrapper| wrapper.value);
    match minimum <= maximum && maximum <= MAX_RING {
        true => Ok(LbPolicy::RingHash { minimum, maximum }),
        false => Err(at.field("minimum_ring_size").refuse(format!("give minimum <= maximum <= {MAX_RING}"))),
    }
}

fn maglev(at: At<'_>, size: Option<wkt::UInt64Value>) -> Result<LbPolicy, ConfigError> {
    let table_size = size.map_or(65_537, |wrapper| wrapper.value);
    match table_size <= MAX_MAGLEV && is_prime(table_size) {
        true => Ok(LbPolicy::Maglev { table_size }),
        false => Err(at.field("table_size").refuse(format!("{table_size} is not a prime number up to {MAX_MAGLEV}"))),
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// The first policy of the list that we have, as Envoy does.
fn typed_policy(
    at: At<'_>,
    proto: &cluster::LoadBalancingPolicy,
    balancing: &mut Balancing,
) -> Result<(), ConfigError> {
    for (index, policy) in proto.policies.iter().enumerate() {
        let at = at.item("policies", index);
        let config = policy.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref());
        let Some(config) = config else { continue };
        if extension(at, config, balancing)? {
            return Ok(());
        }
        at.unsupported(format!(
            "{} is not supported; the next policy of the list is used",
            any::shown(any::type_name(config))
        ));
    }
    Err(at.refuse("none of the policies is supported; add round_robin, least_request, random, ring_hash or maglev"))
}

fn extension(at: At<'_>, config: &Any, balancing: &mut Balancing) -> Result<bool, ConfigError> {
    let mut locality = |config: Option<&LocalityLbConfig>| {
        let weighted = config.and_then(|config| config.locality_config_specifier.as_ref());
        balancing.locality_weighted |= matches!(weighted, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)));
    };
    balancing.policy = if let Some(proto) = any::decode_if::<policies::round_robin::v3::RoundRobin>(at, config)? {
        locality(proto.locality_lb_config.as_ref());
        slow_start(at, proto.slow_start_config.is_some());
        ROUND_ROBIN
    } else if let Some(proto) = any::decode_if::<policies::least_request::v3::LeastRequest>(at, config)? {
        locality(proto.locality_lb_config.as_ref());
        slow_start(at, proto.slow_start_config.is_some());
        least_request(at, proto.choice_count, proto.active_request_bias.as_ref())?
    } else if let Some(proto) = any::decode_if::<policies::random::v3::Random>(at, config)? {
        locality(proto.locality_lb_config.as_ref());
        LbPolicy::Random
    } else if let Some(proto) = any::decode_if::<policies::ring_hash::v3::RingHash>(at, config)? {
        balancing.locality_weighted |= proto.locality_weighted_lb_config.is_some();
        xx_hash_only(at, proto.hash_function < 2)?;
        ring(at, proto.minimum_ring_size, proto.maximum_ring_size)?
    } else if let Some(proto) = any::decode_if::<policies::maglev::v3::Maglev>(at, config)? {
        balancing.locality_weighted |= proto.locality_weighted_lb_config.is_some();
        maglev(at, proto.table_size)?
    } else if let Some(proto) = any::decode_if::<policies::wrr_locality::v3::WrrLocality>(at, config)? {
        balancing.locality_weighted = true;
        let inner = proto.endpoint_picking_policy.unwrap_or_default();
        typed_policy(at.field("endpoint_picking_policy"), &inner, balancing)?;
        return Ok(true);
    } else if any::decode_if::<policies::cluster_provided::v3::ClusterProvided>(at, config)?.is_some() {
        LbPolicy::ClusterProvided
    } else {
        return Ok(false);
    };
    Ok(true)
}
