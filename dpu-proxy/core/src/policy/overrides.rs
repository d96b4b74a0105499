//! Filter configuration of a request: the route's, the virtual host's, else the filter's own.

use crate::matching::route::Matched;
use crate::model::{ClusterSpecifier, Fault, FilterOverrides, HttpRbac, Override, RouteActionKind, WeightedCluster};
use std::sync::Arc;

/// The fault that applies; `None` when it is switched off.
pub fn fault<'a>(own: &'a Arc<Fault>, matched: Option<&Matched<'a>>) -> Option<&'a Arc<Fault>> {
    resolve(own, matched, |overrides| overrides.fault.as_ref())
}

/// The rules that apply; `None` when they are switched off.
pub fn rbac<'a>(own: &'a Arc<HttpRbac>, matched: Option<&Matched<'a>>) -> Option<&'a Arc<HttpRbac>> {
    resolve(own, matched, |overrides| overrides.rbac.as_ref())
}

/// The weighted cluster of a match.
pub fn weighted_cluster<'a>(matched: &Matched<'a>) -> Option<&'a WeightedCluster> {
    let RouteActionKind::Forward(action) = &matched.route.action else { return None };
    let ClusterSpecifier::Weighted { clusters, .. } = &action.cluster else { return None };
    clusters.get(matched.weighted?)
}

fn resolve<'a, T>(
    own: &'a T,
    matched: Option<&Matched<'a>>,
    of: impl Fn(&'a FilterOverrides) -> Option<&'a Override<T>>,
) -> Option<&'a T> {
    let specific = matched.and_then(|matched| {
        let weighted = weighted_cluster(matched).map(|cluster| &cluster.overrides);
        let levels = [weighted, Some(&matched.route.overrides), Some(&matched.virtual_host.overrides)];
        levels.into_iter().flatten().find_map(of)
    });
    match specific {
        None => Some(own),
        Some(Override::Config(config)) => Some(config),
        Some(Override::Disabled) => None,
    }
}
