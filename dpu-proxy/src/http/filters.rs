//! The HTTP filters of a connection manager, in order, up to the router.

use super::reply::Reply;
use super::session::Pass;
use crate::authorize;
use crate::stream_info::ResponseFlags;
use crate::worker::Worker;
use dpu_proxy_core::matching::route;
use dpu_proxy_core::model::{Fault, FaultStatus, HttpFilter, HttpRbac};
use dpu_proxy_core::policy::cors::{self, CorsDecision, CorsPolicies};
use dpu_proxy_core::policy::rbac;
use dpu_proxy_core::policy::{fault, overrides};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A request that is delayed counts as a fault in progress.
#[derive(Debug)]
pub struct ActiveFault(Rc<Cell<u32>>);

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Runs the filters that are left; a delay to wait before the next call.
pub fn run(worker: &Worker, pass: &mut Pass) -> Result<Option<Duration>, Reply> {
    pass.active_fault = None;
    if let Some(status) = pass.abort.take() {
        return Err(abort(pass, status));
    }
    let manager = Arc::clone(&pass.manager);
    while let Some(filter) = manager.filters.get(pass.next_filter) {
        pass.next_filter += 1;
        match filter {
            HttpFilter::Rbac(own) => authorize(worker, pass, own)?,
            HttpFilter::Fault(own) => {
                let delay = inject(worker, pass, own)?;
                if delay.is_some() {
                    return Ok(delay);
                }
            }
            HttpFilter::Cors => cross_origin(pass)?,
            HttpFilter::IstioAlpn(list) => pass.alpn = Some(Arc::clone(list)),
            // Counts only, in `Request::finish`.
            HttpFilter::GrpcStats => {}
        }
    }
    Ok(None)
}

fn authorize(worker: &Worker, pass: &Pass, own: &Arc<HttpRbac>) -> Result<(), Reply> {
    let matched = pass.chosen.as_ref().map(|chosen| chosen.matched());
    let Some(rules) = overrides::rbac(own, matched.as_ref()) else { return Ok(()) };
    let verdict = rbac::evaluate(rules, &authorize::facts(&pass.connection, Some(&pass.head), pass.client));
    if verdict.shadow.is_some_and(|shadow| !shadow.allowed) {
        worker.stats.counter("envoy_http_rbac_shadow_denied", &[("prefix", &rules.shadow_stat_prefix)]).inc();
    }
    if verdict.allowed {
        return Ok(());
    }
    worker.stats.counter("envoy_http_rbac_denied", &[("prefix", &rules.stat_prefix)]).inc();
    Err(Reply::new(403, verdict.details()).text(rbac::DENIED_BODY))
}

fn inject(worker: &Worker, pass: &mut Pass, own: &Arc<Fault>) -> Result<Option<Duration>, Reply> {
    let matched = pass.chosen.as_ref().map(|chosen| chosen.matched());
    let Some(fault) = overrides::fault(own, matched.as_ref()) else { return Ok(None) };
    let cluster = pass
        .chosen
        .as_ref()
        .and_then(|chosen| chosen.action().map(|action| route::cluster_name(action, chosen.weighted, &pass.head)));
    let active = worker.http.faults.get();
    let random = [worker.random(), worker.random()];
    let decision = fault::decide(fault, &pass.head, cluster.as_deref().unwrap_or(""), active, random);
    match (decision.delay, decision.abort) {
        (Some(delay), abort) => {
            worker.http.faults.set(active + 1);
            pass.active_fault = Some(ActiveFault(Rc::clone(&worker.http.faults)));
            pass.info.flags.insert(ResponseFlags::DELAY_INJECTED);
            pass.abort = abort;
            Ok(Some(delay))
        }
        (None, Some(status)) => Err(abort(pass, status)),
        (None, None) => Ok(None),
    }
}

fn abort(pass: &mut Pass, status: FaultStatus) -> Reply {
    pass.info.flags.insert(ResponseFlags::FAULT_INJECTED);
    let (status, grpc_status) = match status {
        FaultStatus::Http(status) => (status, None),
        // A request that is no gRPC call gets 200, as Envoy answers it.
        FaultStatus::Grpc(status) => (200, Some(status)),
    };
    Reply::new(status, fault::ABORT_DETAILS).text(fault::ABORT_BODY).grpc(grpc_status)
}

fn cross_origin(pass: &mut Pass) -> Result<(), Reply> {
    let Some(chosen) = &pass.chosen else { return Ok(()) };
    let matched = chosen.matched();
    let policies = CorsPolicies::of(&matched);
    match cors::decide(policies, &pass.head) {
        CorsDecision::Pass => Ok(()),
        CorsDecision::AddHeaders => {
            pass.is_cross_origin = true;
            Ok(())
        }
        CorsDecision::Answer => {
            Err(Reply::new(200, cors::PREFLIGHT_DETAILS).prepared(cors::preflight(policies, &pass.head)))
        }
    }
}
