//! What people are told of the recorded configurations.

mod support;

use istio_dpu_adapter::translate::status::Obstacles;
use istio_dpu_adapter::translate::{Aggregate, Kind};
use mesh_api::report::{Configuration, ConfigurationState as State, MutualTls};
use mesh_api::type_url;
use support::{DEMO, Proxy, feed, pod, recorded, update};
use xds::Rejected;

fn told(aggregate: &Aggregate, obstacles: &Obstacles) -> Configuration {
    let (_, configuration) = aggregate.configurations(|_| obstacles.clone()).next().expect("one workload");
    configuration
}

/// A workload whose recorded configuration the proxy took over.
fn accepted(scenario: &str, name: &str) -> (Aggregate, Configuration) {
    let mut aggregate = Aggregate::default();
    let mut proxy = Proxy::default();
    aggregate.join(pod(name));
    proxy.take(&feed(&mut aggregate, scenario, name));
    let waiting = told(&aggregate, &Obstacles::default()).reason;
    assert!(waiting.contains("dpu-proxy's answer"), "{scenario} {name}: {waiting}");
    accept(&mut aggregate, &mut proxy, name);
    let configuration = told(&aggregate, &Obstacles::default());
    (aggregate, configuration)
}

fn accept(aggregate: &mut Aggregate, proxy: &mut Proxy, name: &str) {
    let uid = format!("uid-{name}");
    let version = proxy.held[&(type_url::PROXY_WORKLOAD.to_owned(), uid.clone())].version.clone();
    proxy.take(&aggregate.acked(type_url::PROXY_WORKLOAD, &[(uid, version)], 1_700_000_000_000));
}

#[test]
fn an_accepted_scope_tells_the_objects_that_shape_it() {
    let (_, curl) = accepted(DEMO, "curl");
    assert_eq!((curl.state(), curl.reason.as_str()), (State::Accepted, ""));
    assert_eq!(curl.acknowledged_unix_ms, 1_700_000_000_000);
    assert!(curl.scope.starts_with("scope@"));
    let shared = ["DestinationRule bookinfo/reviews", "VirtualService bookinfo/reviews"];
    assert_eq!(curl.istio_objects, shared);
    let (_, ratings) = accepted(DEMO, "ratings-v1");
    assert!(ratings.istio_objects.contains(&"AuthorizationPolicy bookinfo/ratings-readers".to_owned()));
    for (name, object) in [
        ("details-v1", "AuthorizationPolicy bookinfo/custom"),
        ("reviews-v1", "AuthorizationPolicy bookinfo/jwt-allow"),
        ("reviews-v1", "VirtualService bookinfo/ratings"),
        ("productpage-v1", "WasmPlugin bookinfo/w"),
    ] {
        let (_, rich) = accepted("3-rich", name);
        assert!(rich.istio_objects.contains(&object.to_owned()), "{object} is not in {:?}", rich.istio_objects);
    }
}

#[test]
fn a_later_istiod_tells_of_the_same_objects() {
    for name in ["curl", "ratings-v1", "mongodb-v1"] {
        let ((_, recorded), (_, later)) = (accepted(DEMO, name), accepted("../istiod-1.31/0-demo", name));
        assert_eq!(later.istio_objects, recorded.istio_objects);
        assert_eq!(later.mutual_tls(), MutualTls::Strict);
    }
}

#[test]
fn how_ports_take_connections_is_read_from_the_inbound_chains() {
    for (scenario, expected) in
        [(DEMO, MutualTls::Strict), ("1-permissive", MutualTls::Permissive), ("2-strict-authz", MutualTls::Strict)]
    {
        let (_, reviews) = accepted(scenario, "reviews-v1");
        assert_eq!(reviews.mutual_tls(), expected, "{scenario}");
    }
}

#[test]
fn until_everything_is_there_what_is_awaited_is_told() {
    let mut aggregate = Aggregate::default();
    aggregate.join(pod("curl"));
    let stream = |denied: bool| Obstacles { stream: Some(("no such pod".to_owned(), denied)), proxy_is_away: true };
    let waiting = told(&aggregate, &stream(false));
    assert_eq!((waiting.state(), waiting.reason.as_str()), (State::Waiting, "no such pod"));
    let denied = told(&aggregate, &stream(true));
    assert_eq!((denied.state(), denied.reason.as_str()), (State::Denied, "no such pod"));
    aggregate.update("uid-curl", &update(Kind::Cluster, recorded(DEMO, "curl", Kind::Cluster), Vec::new()));
    let missing = told(&aggregate, &Obstacles::default());
    assert!(missing.reason.contains("every listener") && missing.reason.contains("more"), "{}", missing.reason);
    feed(&mut aggregate, DEMO, "curl");
    let away = Obstacles { stream: None, proxy_is_away: true };
    assert_eq!(told(&aggregate, &away).reason, "dpu-proxy is not connected");
    assert_eq!(told(&aggregate, &Obstacles::default()).reason, "dpu-proxy's answer is awaited");
    assert_eq!(told(&aggregate, &Obstacles::default()).scope, "", "nothing is acknowledged");
}

#[test]
fn a_refused_resource_is_told_while_the_scope_before_stays() {
    let (mut aggregate, before) = accepted(DEMO, "curl");
    let mut bad = recorded(DEMO, "curl", Kind::Cluster)[0].clone();
    bad.name = "bad".to_owned();
    aggregate.update("uid-curl", &update(Kind::Cluster, vec![bad], Vec::new()));
    let changes = aggregate.publish("uid-curl");
    let name = changes.iter().find_map(|(_, name, _)| name.starts_with("bad@").then(|| name.to_owned()));
    let name = name.expect("served");
    let refused = Rejected { name: name.clone(), reason: "no good".to_owned() };
    let _ = aggregate.nacked(type_url::CLUSTER, &[refused]);
    let after = told(&aggregate, &Obstacles::default());
    assert_eq!(after.state(), State::Refused);
    assert!(after.reason.contains("the one before stays in force"), "{}", after.reason);
    assert_eq!((&after.scope, &after.istio_objects), (&before.scope, &before.istio_objects));
    assert_eq!((after.refusals[0].resource.as_str(), after.refusals[0].reason.as_str()), (name.as_str(), "no good"));
    // A control plane that is away for a while changes nothing of that, nor of what is accepted.
    let away = Obstacles { stream: Some(("connection refused".to_owned(), false)), proxy_is_away: false };
    assert_eq!(told(&aggregate, &away).state(), State::Refused);
    let (accepted, _) = accepted(DEMO, "curl");
    assert_eq!(told(&accepted, &away).state(), State::Accepted);
}

#[test]
fn what_the_adapter_itself_refuses_is_told_too() {
    let (mut aggregate, _) = accepted(DEMO, "curl");
    let mut garbage = recorded(DEMO, "curl", Kind::Listener)[0].clone();
    garbage.body.value = vec![0xff, 0xff];
    aggregate.update("uid-curl", &update(Kind::Listener, vec![garbage.clone()], Vec::new()));
    let told = told(&aggregate, &Obstacles::default());
    assert_eq!((told.state(), told.refusals[0].resource.as_str()), (State::Refused, garbage.name.as_str()));
}
