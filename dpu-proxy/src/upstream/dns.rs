//! Endpoints of STRICT_DNS and LOGICAL_DNS clusters: one resolving task per cluster in the process,
//! followed by every worker; it ends when nobody follows.

use dpu_proxy_core::model::{
    Discovery, DnsFamily, DnsHost, Endpoint, EndpointSet, LocalityEndpoints, Priority, ScopedCluster,
};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Retried this soon after a failure, as Envoy's default failure refresh rate is the refresh rate itself.
const FAILURE_DELAY: Duration = Duration::from_secs(5);
const MIN_DELAY: Duration = Duration::from_millis(500);

/// Resolved clusters, by scoped cluster id.
#[derive(Debug)]
pub struct Names {
    runtime: Handle,
    followed: Mutex<HashMap<u64, watch::Sender<Arc<EndpointSet>>>>,
    resolvers: Arc<Resolvers>,
}

#[derive(Default)]
struct Resolvers(Mutex<HashMap<u8, Arc<TokioResolver>>>);

impl std::fmt::Debug for Resolvers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolvers")
    }
}

#[derive(Clone, Copy)]
struct Schedule {
    family: DnsFamily,
    refresh_rate: Duration,
    respect_ttl: bool,
    /// LOGICAL_DNS: the first address only.
    logical: bool,
}

impl Names {
    /// Resolves on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, followed: Mutex::default(), resolvers: Arc::default() }
    }

    /// The endpoints of a cluster that is resolved by name; `None` for other clusters.
    pub fn follow(&self, scoped: &Arc<ScopedCluster>) -> Option<watch::Receiver<Arc<EndpointSet>>> {
        let (hosts, schedule) = plan(&scoped.cluster.discovery)?;
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|_, sender| !sender.is_closed());
        let sender = followed.entry(scoped.id).or_insert_with(|| self.start(scoped, hosts, schedule));
        Some(sender.subscribe())
    }

    fn start(
        &self,
        scoped: &ScopedCluster,
        hosts: Vec<DnsHost>,
        schedule: Schedule,
    ) -> watch::Sender<Arc<EndpointSet>> {
        let (sender, _) = watch::channel(literal(&hosts));
        if hosts.iter().any(|host| host.host.parse::<IpAddr>().is_err()) {
            let (updates, resolvers) = (sender.clone(), Arc::clone(&self.resolvers));
            let name = scoped.cluster.name.clone();
            self.runtime.spawn(async move { resolve(&name, &hosts, schedule, &updates, &resolvers).await });
        }
        sender
    }
}

fn plan(discovery: &Discovery) -> Option<(Vec<DnsHost>, Schedule)> {
    match discovery {
        Discovery::StrictDns { hosts, refresh_rate, respect_ttl, family } => Some((
            hosts.clone(),
            Schedule { family: *family, refresh_rate: *refresh_rate, respect_ttl: *respect_ttl, logical: false },
        )),
        Discovery::LogicalDns { host, refresh_rate, respect_ttl, family } => Some((
            vec![host.clone()],
            Schedule { family: *family, refresh_rate: *refresh_rate, respect_ttl: *respect_ttl, logical: true },
        )),
        _ => None,
    }
}

fn literal(hosts: &[DnsHost]) -> Arc<EndpointSet> {
    let answers: Vec<_> = hosts.iter().map(|host| host.host.parse::<IpAddr>().into_iter().collect()).collect();
    Arc::new(endpoint_set(hosts, &answers))
}

async fn resolve(
    cluster: &str,
    hosts: &[DnsHost],
    schedule: Schedule,
    updates: &watch::Sender<Arc<EndpointSet>>,
    resolvers: &Resolvers,
) {
    let mut answers: Vec<Vec<IpAddr>> = vec![Vec::new(); hosts.len()];
    loop {
        let mut delay = schedule.refresh_rate;
        for (host, answer) in hosts.iter().zip(&mut answers) {
            match lookup(&host.host, schedule, resolvers).await {
                Ok((addresses, ttl)) => {
                    *answer = addresses;
                    delay = if schedule.respect_ttl { delay.min(ttl.max(MIN_DELAY)) } else { delay };
                }
                Err(error) => {
                    tracing::warn!(cluster, host = host.host, error, "cannot resolve; the last answer stays");
                    delay = delay.min(FAILURE_DELAY);
                }
            }
        }
        let set = endpoint_set(hosts, &answers);
        updates.send_if_modified(|current| match **current == set {
            true => false,
            false => {
                *current = Arc::new(set);
                true
            }
        });
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = updates.closed() => return,
        }
    }
}

async fn lookup(host: &str, schedule: Schedule, resolvers: &Resolvers) -> Result<(Vec<IpAddr>, Duration), String> {
    if let Ok(address) = host.parse() {
        return Ok((vec![address], Duration::MAX));
    }
    let found = resolvers.of(schedule.family)?.lookup_ip(host).await.map_err(|error| error.to_string())?;
    let ttl = found.valid_until().saturating_duration_since(Instant::now());
    let mut addresses: Vec<IpAddr> = found.iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(if schedule.logical { 1 } else { usize::MAX });
    Ok((addresses, ttl))
}

impl Resolvers {
    fn of(&self, family: DnsFamily) -> Result<Arc<TokioResolver>, String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolver) = all.get(&(family as u8)) {
            return Ok(Arc::clone(resolver));
        }
        let mut builder = TokioResolver::builder_tokio().map_err(|error| error.to_string())?;
        builder.options_mut().ip_strategy = strategy(family);
        let resolver = Arc::new(builder.build().map_err(|error| error.to_string())?);
        all.insert(family as u8, Arc::clone(&resolver));
        Ok(resolver)
    }
}

fn strategy(family: DnsFamily) -> LookupIpStrategy {
    match family {
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        // Envoy: IPv6 first, IPv4 only if there is none.
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    }
}

fn endpoint_set(hosts: &[DnsHost], answers: &[Vec<IpAddr>]) -> EndpointSet {
    let mut set = EndpointSet { priorities: Vec::new(), overprovisioning_factor_percent: 140 };
    for (host, addresses) in hosts.iter().zip(answers) {
        let priority = host.priority as usize;
        if set.priorities.len() <= priority {
            set.priorities.resize_with(priority + 1, Priority::default);
        }
        let localities = &mut set.priorities[priority].localities;
        let endpoints = addresses.iter().map(|ip| Arc::new(endpoint(host, *ip)));
        match localities.iter_mut().find(|group| group.locality == host.locality) {
            Some(group) => group.endpoints.extend(endpoints),
            None => localities.push(LocalityEndpoints {
                locality: host.locality.clone(),
                weight: 0,
                endpoints: endpoints.collect(),
            }),
        }
    }
    set
}

fn endpoint(host: &DnsHost, ip: IpAddr) -> Endpoint {
    let named = if host.template.hostname.is_empty() { &host.host } else { &host.template.hostname };
    Endpoint { address: SocketAddr::new(ip, host.port), hostname: named.clone(), ..host.template.clone() }
}
