//! Where the data path asks the core: what becomes of a request, and of a response.

use super::plan::{Limits, Plan, Retries};
use super::reply::Reply;
use super::session::{Chosen, Pass};
use crate::stream_info::{ResponseFlags, UpstreamInfo};
use crate::telemetry::Context;
use crate::upstream::{Host, NoEndpoint, PickContext};
use crate::worker::Worker;
use dpu_proxy_core::balance::hash_policy;
use dpu_proxy_core::head::{HeaderBlock, RequestHead, ResponseHead, Version};
use dpu_proxy_core::http1::RequestMeta;
use dpu_proxy_core::matching::path::{self, Normalised, PathOptions};
use dpu_proxy_core::matching::route::{self, RouteDecision, RouteFacts};
use dpu_proxy_core::matching::virtual_host;
use dpu_proxy_core::model::{
    Cluster, HostRewrite, HttpConnectionManager, RouteAction, RouteActionKind, RouteConfig, RouteSource,
    UnderscoresInHeaders, UpstreamProtocol,
};
use dpu_proxy_core::policy::cors::{self, CorsPolicies};
use dpu_proxy_core::policy::headers::EditLevels;
use dpu_proxy_core::policy::local_reply::LocalReply;
use dpu_proxy_core::policy::retry::Retry;
use dpu_proxy_core::policy::sanitize::{self, ClientFacts};
use dpu_proxy_core::policy::timeout;
use dpu_proxy_core::policy::xfcc::{self, ClientCertificate};
use dpu_proxy_core::policy::{redirect, rewrite};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// What the connection manager does with a request before its filters.
pub fn admit(worker: &Worker, pass: &mut Pass, meta: &RequestMeta) -> Result<(), Reply> {
    check(worker, pass, meta).map_err(Reply::close)
}

fn check(worker: &Worker, pass: &mut Pass, meta: &RequestMeta) -> Result<(), Reply> {
    let manager = Arc::clone(&pass.manager);
    check_version(&manager, pass, meta)?;
    check_names(&manager, &mut pass.head.headers)?;
    if pass.head.version == Version::Http2 || pass.head.headers.get(b"te").is_some() {
        sanitize::hop_by_hop(&mut pass.head.headers, meta.upgrade)
            .map_err(|error| Reply::new(400, error.to_string()).flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))?;
    }
    normalise(&manager, pass, meta)?;
    describe_client(worker, &manager, pass);
    choose(pass);
    check_upgrade(&manager, pass, meta)
}

fn check_version(manager: &HttpConnectionManager, pass: &mut Pass, meta: &RequestMeta) -> Result<(), Reply> {
    let options = &manager.http1;
    let is_old = pass.head.version == Version::Http10;
    if is_old && !options.accept_http_10 {
        let reply = Reply::new(426, "low_version").text("Upgrade Required");
        return Err(reply.flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR));
    }
    match (meta.has_host, is_old && !options.default_host_for_http_10.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => {
            pass.head.set_authority(options.default_host_for_http_10.as_bytes());
            Ok(())
        }
        (false, false) => Err(Reply::new(400, "missing_host_header")),
    }
}

fn check_names(manager: &HttpConnectionManager, headers: &mut HeaderBlock) -> Result<(), Reply> {
    let has_underscore = |name: &[u8]| name.contains(&b'_');
    match manager.underscores_in_headers {
        UnderscoresInHeaders::Allow => Ok(()),
        UnderscoresInHeaders::DropHeader => {
            headers.retain(|name, _| !has_underscore(name));
            Ok(())
        }
        UnderscoresInHeaders::RejectRequest if headers.iter().any(|(name, _)| has_underscore(name)) => {
            Err(Reply::new(400, "http1.unexpected_underscore").text("Bad Request"))
        }
        UnderscoresInHeaders::RejectRequest => Ok(()),
    }
}

fn normalise(manager: &HttpConnectionManager, pass: &mut Pass, meta: &RequestMeta) -> Result<(), Reply> {
    if meta.connect {
        return Ok(());
    }
    let options = PathOptions {
        normalize: manager.normalize_path,
        merge_slashes: manager.merge_slashes,
        escaped_slashes: manager.escaped_slashes,
    };
    if pass.head.path().contains(&b'#') {
        return Err(local(LocalReply::path_rejected()));
    }
    match path::normalise(pass.head.path(), options) {
        Normalised::Unchanged => {}
        Normalised::Changed(path) => pass.head.set_path(&path),
        Normalised::Rejected => return Err(local(LocalReply::path_rejected())),
        Normalised::Redirect(path) => {
            let location = String::from_utf8_lossy(&path).into_owned();
            return Err(Reply::new(307, "path_normalization_failed").header("location", location));
        }
    }
    strip_port(manager, pass);
    Ok(())
}

fn strip_port(manager: &HttpConnectionManager, pass: &mut Pass) {
    let port = pass.connection.original_destination.port();
    let listener_port = match (manager.strip_any_host_port, manager.strip_matching_host_port) {
        (true, _) => None,
        (false, true) => Some(port),
        (false, false) => return,
    };
    let stripped = virtual_host::stripped(pass.head.authority(), listener_port).map(<[u8]>::to_vec);
    if let Some(host) = stripped {
        pass.head.set_authority(&host);
    }
}

/// What the request says of its client, and its id.
fn describe_client(worker: &Worker, manager: &HttpConnectionManager, pass: &mut Pass) {
    let connection = &pass.connection;
    let certificate = connection.peer().map(|peer| ClientCertificate {
        uri_sans: &peer.uri_sans,
        dns_sans: &peer.dns_sans,
        subject: &peer.subject,
        sha256: &peer.sha256,
        chain_der: &peer.chain_der,
        local_uri_sans: connection.tls.as_ref().map_or(&[], |tls| &tls.local_uri_sans),
    });
    xfcc::apply(manager.forward_client_cert, manager.set_client_cert_details, certificate.as_ref(), &mut pass.head);
    let config = route_config(pass);
    let facts = ClientFacts {
        remote: pass.connection.remote.ip(),
        is_tls: pass.connection.tls.is_some(),
        own_address: worker.http.own_address(),
        internal_networks: &[],
        internal_only: config.as_ref().map_or(&[], |config| &config.internal_only_headers),
    };
    let client = sanitize::request(manager, &facts, &mut pass.head);
    pass.client = client.address;
    if client.needs_request_id {
        sanitize::set_request_id([worker.random(), worker.random()], &mut pass.head);
    }
    if let Some(id) = pass.head.headers.get_str("x-request-id") {
        pass.info.stream_id.push_str(id);
    }
}

/// Finds the route.
fn choose(pass: &mut Pass) {
    let Some(config) = route_config(pass) else { return };
    let facts = RouteFacts { random: pass.random };
    let chosen = match route::route(&config, &pass.head, &facts) {
        RouteDecision::Matched(matched) => Some(Chosen::new(Arc::clone(&config), &matched)),
        RouteDecision::RequireTls(_) => {
            pass.requires_tls = true;
            None
        }
        RouteDecision::NotFound => None,
    };
    pass.info.route_config = Some(config);
    if let Some(chosen) = &chosen {
        pass.info.virtual_host = Some(Arc::clone(&chosen.virtual_host));
        pass.info.route.push_str(&chosen.route.name);
        pass.info.upstream = expected_upstream(pass, chosen);
    }
    pass.chosen = chosen;
}

/// The cluster that the route names, for the log, whatever the filters say.
fn expected_upstream(pass: &Pass, chosen: &Chosen) -> Option<UpstreamInfo> {
    let name = route::cluster_name(chosen.action()?, chosen.weighted, &pass.head);
    let cluster = Arc::clone(pass.connection.scope.clusters.get(&*name)?);
    Some(UpstreamInfo {
        cluster,
        endpoint: None,
        local_address: None,
        own_identity: None,
        peer: None,
        is_local: false,
        transport_failure: String::new(),
    })
}

fn route_config(pass: &Pass) -> Option<Arc<RouteConfig>> {
    match &pass.manager.routes {
        RouteSource::Inline(config) => Some(Arc::clone(config)),
        RouteSource::Rds(name) => pass.connection.scope.routes.get(name).cloned(),
    }
}

/// An upgrade must be allowed by the route, or else by the connection manager.
fn check_upgrade(manager: &HttpConnectionManager, pass: &Pass, meta: &RequestMeta) -> Result<(), Reply> {
    let asked = match (meta.upgrade, meta.connect) {
        (true, _) => pass.head.headers.get_str("upgrade").unwrap_or_default().to_ascii_lowercase(),
        (false, true) => "connect".to_owned(),
        (false, false) => return Ok(()),
    };
    let of_route =
        pass.chosen.as_ref().and_then(Chosen::action).and_then(|action| {
            action.upgrades.iter().find(|(name, _)| *name == asked).map(|(_, is_enabled)| *is_enabled)
        });
    match of_route.unwrap_or_else(|| manager.upgrades.contains(&asked)) {
        true => Ok(()),
        false => Err(local(LocalReply::upgrade_refused())),
    }
}

/// What the router does.
pub fn plan<'a>(worker: &Rc<Worker>, pass: &mut Pass, chosen: Option<&'a Chosen>) -> Result<Plan<'a>, Reply> {
    let Some(chosen) = chosen else { return Err(no_route(pass)) };
    let action = match &chosen.route.action {
        RouteActionKind::Forward(action) => action,
        RouteActionKind::DirectResponse { status, body } => {
            let location = redirect::of_direct_response(*status, &pass.head);
            let reply = Reply::new(*status, "direct_response").body(body.clone());
            return Err(match location {
                Some(location) => reply.header("location", String::from_utf8_lossy(&location)),
                None => reply,
            });
        }
        RouteActionKind::Redirect(redirect) => {
            let location = redirect::location(redirect, &chosen.route.matches, &pass.head);
            let location = String::from_utf8_lossy(&location).into_owned();
            return Err(Reply::new(redirect.status, "direct_response").header("location", location));
        }
        RouteActionKind::NonForwarding => return Err(no_route(pass)),
    };
    let name = route::cluster_name(action, chosen.weighted, &pass.head);
    let Some(cluster) = worker.cluster(&pass.connection.scope, &name) else {
        let reply = LocalReply::cluster_not_found(action.cluster_not_found_status);
        return Err(local(reply).flag(ResponseFlags::NO_CLUSTER));
    };
    let (limits, retry) = prepare(worker, pass, chosen, action);
    Plan::new(cluster, limits, Retries::new(retry)).ok_or_else(|| super::outcome::overflow(false))
}

fn no_route(pass: &Pass) -> Reply {
    if pass.requires_tls {
        let location = String::from_utf8_lossy(&redirect::to_https(&pass.head)).into_owned();
        return Reply::new(301, "direct_response").header("location", location);
    }
    local(LocalReply::route_not_found()).flag(ResponseFlags::NO_ROUTE)
}

/// Makes of the request what goes upstream; its limits and retries.
fn prepare<'a>(
    worker: &Worker,
    pass: &mut Pass,
    chosen: &'a Chosen,
    action: &'a RouteAction,
) -> (Limits, Option<Retry<'a>>) {
    let manager = Arc::clone(&pass.manager);
    let policy = action.retry.as_deref().or(chosen.virtual_host.retry.as_deref());
    let timeouts = timeout::resolve(action, policy, &manager.router, &mut pass.head);
    let retry = Retry::begin(policy, &mut pass.head);
    let matched = chosen.matched();
    // Templates see the headers as they are edited; the protocol is known before.
    let mut protocol = RequestHead::default();
    protocol.version = pass.head.version;
    let context = Context {
        connection: &pass.connection,
        info: &pass.info,
        request: Some(&protocol),
        response: None,
        hostname: &worker.shared.settings.hostname,
    };
    EditLevels::of(&chosen.config, &matched).edit_request(&mut pass.head, &context);
    let tells_original = !manager.router.suppress_envoy_headers;
    rewrite::rewrite(&chosen.route.matches, action, chosen.weighted_cluster(), tells_original, &mut pass.head);
    let limits = Limits {
        timeout: timeouts.global,
        stream_timeout: timeouts.stream,
        avoids_tried: policy.is_some_and(|policy| policy.avoid_previous_hosts),
        per_try_timeout: timeouts.per_try,
        idle_timeout: action.idle_timeout,
        timeouts,
        hash: hash(pass, action),
    };
    (limits, retry)
}

/// The hash by which a host is chosen; a cookie that was made for it is set in the response.
fn hash(pass: &mut Pass, action: &RouteAction) -> Option<u64> {
    if action.hash_policy.is_empty() {
        return None;
    }
    let (remote, local) = (pass.connection.remote, pass.connection.original_destination);
    let found = hash_policy::evaluate(&action.hash_policy, &pass.head, remote, local);
    pass.set_cookies = found.set_cookies;
    found.hash
}

/// Chooses a host for the next attempt.
pub fn pick(plan: &Plan<'_>, pass: &Pass) -> Result<Rc<Host>, Reply> {
    let context = PickContext {
        hash: plan.hash,
        original_destination: Some(pass.connection.original_destination),
        avoid: if plan.avoids_tried { &plan.tried } else { &[] },
    };
    plan.cluster.pick(&context).map_err(|error| {
        let reply = local(LocalReply::no_healthy_upstream()).flag(ResponseFlags::NO_HEALTHY_UPSTREAM);
        match error {
            NoEndpoint::NoHealthyUpstream => reply,
            NoEndpoint::NoOriginalDestination => reply.details(error.to_string()),
        }
    })
}

/// What changes with each attempt: the host name where it is that of the endpoint, and the attempt's number.
pub fn address(pass: &mut Pass, plan: &Plan<'_>, host: &Host) {
    if pass.info.attempts > 1 {
        let elapsed = pass.info.started.elapsed();
        let router = &pass.manager.router;
        timeout::write_expected(&plan.timeouts, elapsed, router, &mut pass.head);
    }
    let Some(chosen) = &pass.chosen else { return };
    let Some(action) = chosen.action() else { return };
    if matches!(action.host_rewrite, HostRewrite::Auto) && !host.endpoint.hostname.is_empty() {
        let tells_original = !pass.manager.router.suppress_envoy_headers;
        let hostname = host.endpoint.hostname.as_bytes();
        rewrite::set_host(hostname, action.append_x_forwarded_host, tells_original, &mut pass.head);
    }
    if chosen.virtual_host.include_request_attempt_count {
        set_number(&mut pass.head.headers, b"x-envoy-attempt-count", u64::from(pass.info.attempts));
    }
}

fn set_number(headers: &mut HeaderBlock, name: &[u8], number: u64) {
    headers.set(name, itoa::Buffer::new().format(number).as_bytes());
}

/// ALPN that takes the place of the configured list, for the protocol that the upstream is spoken to in.
pub fn alpn<'a>(pass: &'a Pass, cluster: &Cluster) -> Option<&'a [String]> {
    let list = pass.alpn.as_ref()?;
    let names = match (cluster.protocol, pass.head.version) {
        (UpstreamProtocol::Http2, _) | (UpstreamProtocol::Downstream, Version::Http2) => &list.http2,
        (_, Version::Http10) => &list.http10,
        _ => &list.http11,
    };
    Some(names.as_slice()).filter(|names| !names.is_empty())
}

/// What is done to the response of an upstream before it goes on.
pub fn upstream_response(worker: &Worker, pass: &mut Pass, response: &mut ResponseHead, attempted_at: Instant) {
    if !pass.manager.router.suppress_envoy_headers && response.status != 101 {
        let answered = pass.info.started + pass.info.response_started.unwrap_or_default();
        let milliseconds = answered.saturating_duration_since(attempted_at).as_millis() as u64;
        set_number(&mut response.headers, b"x-envoy-upstream-service-time", milliseconds);
    }
    edit(worker, pass, response);
    leave(worker, pass, response);
}

/// Makes an answer of our own; its body.
pub fn local_response(worker: &Worker, pass: &mut Pass, reply: &Reply, response: &mut ResponseHead) -> Vec<u8> {
    pass.info.flags.insert(reply.flags);
    pass.info.status = if route::is_grpc(&pass.head) { 200 } else { reply.status };
    pass.details(&reply.details);
    let body = reply.head(&pass.head, response, |response| edit(worker, pass, response)).to_vec();
    leave(worker, pass, response);
    pass.info.grpc_status = response.headers.get_str("grpc-status").and_then(|status| status.parse().ok());
    body
}

/// The route's edits.
fn edit(worker: &Worker, pass: &Pass, response: &mut ResponseHead) {
    let Some(chosen) = &pass.chosen else { return };
    let matched = chosen.matched();
    let context = Context {
        connection: &pass.connection,
        info: &pass.info,
        request: Some(&pass.head),
        response: None,
        hostname: &worker.shared.settings.hostname,
    };
    EditLevels::of(&chosen.config, &matched).edit_response(response, &context);
}

/// What every response gets on its way out.
fn leave(worker: &Worker, pass: &mut Pass, response: &mut ResponseHead) {
    if let Some(chosen) = &pass.chosen {
        if chosen.virtual_host.include_attempt_count_in_response && pass.info.attempts > 0 {
            set_number(&mut response.headers, b"x-envoy-attempt-count", u64::from(pass.info.attempts));
        }
        if pass.is_cross_origin {
            cors::add_headers(CorsPolicies::of(&chosen.matched()), &pass.head, response);
        }
    }
    for cookie in pass.set_cookies.drain(..) {
        response.headers.append(b"set-cookie", cookie.as_bytes());
    }
    sanitize::response(&pass.manager, &pass.head, response.status == 101, response);
    if response.headers.get(b"date").is_none() {
        let now = pass.info.started_wall + pass.info.elapsed();
        response.headers.append(b"date", &worker.http.date.at(now));
    }
}

/// An answer of the core's, with our flags to come.
fn local(reply: LocalReply) -> Reply {
    Reply::from(reply)
}
