//! Whatever the order in which files change, the same files end in the same tables and views.

use istio_dpu_controller::Controller;
use istio_dpu_controller::object::Kind;
use mesh_api::type_url;
use proptest::prelude::*;
use std::collections::BTreeMap;
use xds::Resource;
use xds::server::Store;

const TYPES: [&str; 4] = [type_url::WORKLOAD, type_url::NODE, type_url::SERVICE, type_url::NETWORK];

/// One change of the folder: a file gets a content, or goes.
#[derive(Clone, Debug)]
struct Change {
    file: u8,
    content: Option<Content>,
}

#[derive(Clone, Debug)]
enum Content {
    Pod { name: u8, node: u8, app: u8, ready: bool, owned: bool },
    Node { name: u8, zone: u8 },
    Namespace { injected: bool },
    Service { name: u8, app: u8 },
    Slice { name: u8, service: u8, port: u8 },
    ReplicaSet { owner: u8 },
    Network { vni: u8 },
    Bad,
}

impl Content {
    fn text(&self) -> String {
        match self {
            Self::Pod { name, node, app, ready, owned } => {
                let owner = if *owned {
                    ", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: rs, uid: u, controller: true}]"
                } else {
                    ""
                };
                let ready = if *ready { "True" } else { "False" };
                format!(
                    "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{name}, namespace: n, labels: {{app: a{app}}}{owner}}}\nspec: {{nodeName: h{node}, containers: []}}\nstatus: {{podIP: 10.0.{node}.{name}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
                )
            }
            Self::Node { name, zone } => {
                format!(
                    "apiVersion: v1\nkind: Node\nmetadata: {{name: h{name}, labels: {{topology.kubernetes.io/zone: z{zone}}}}}\n"
                )
            }
            Self::Namespace { injected } => {
                let label = if *injected { "enabled" } else { "disabled" };
                format!(
                    "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{istio-injection: {label}}}}}\n"
                )
            }
            Self::Service { name, app } => format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{name}, namespace: n}}\nspec: {{clusterIP: 10.96.0.{name}, selector: {{app: a{app}}}, ports: [{{port: 80}}]}}\n"
            ),
            Self::Slice { name, service, port } => format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{name}, namespace: n, labels: {{kubernetes.io/service-name: s{service}}}}}\naddressType: IPv4\nports: [{{port: {}}}]\nendpoints: [{{addresses: [10.0.0.1]}}]\n",
                u32::from(*port) + 1
            ),
            Self::ReplicaSet { owner } => format!(
                "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: rs, namespace: n, ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: d{owner}, uid: u, controller: true}}]}}\nspec: {{selector: {{}}}}\n"
            ),
            Self::Network { vni } => {
                format!("apiVersion: dpumesh.io/v1\nkind: Network\nmetadata: {{name: blue}}\nspec: {{vni: {vni}}}\n")
            }
            Self::Bad => "kind: [".to_owned(),
        }
    }
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        4 => (0..4u8, 0..3u8, 0..2u8, any::<bool>(), any::<bool>())
            .prop_map(|(name, node, app, ready, owned)| Content::Pod { name, node, app, ready, owned }),
        2 => (0..3u8, 0..2u8).prop_map(|(name, zone)| Content::Node { name, zone }),
        1 => any::<bool>().prop_map(|injected| Content::Namespace { injected }),
        2 => (0..2u8, 0..2u8).prop_map(|(name, app)| Content::Service { name, app }),
        1 => (0..2u8, 0..2u8, 0..2u8).prop_map(|(name, service, port)| Content::Slice { name, service, port }),
        1 => (0..2u8).prop_map(|owner| Content::ReplicaSet { owner }),
        1 => (0..3u8).prop_map(|vni| Content::Network { vni }),
        1 => Just(Content::Bad),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change =
        (0..8u8, proptest::option::weighted(0.8, content())).prop_map(|(file, content)| Change { file, content });
    proptest::collection::vec(change, 1..40)
}

/// Resources by node and type.
type Views = BTreeMap<(String, &'static str), Vec<Resource>>;

/// Everything that a controller serves and counts.
fn outcome(controller: &Controller, store: &Store) -> (Vec<usize>, Views) {
    let counts = Kind::ALL.map(|kind| controller.count(kind)).to_vec();
    let mut views = BTreeMap::new();
    for node in controller.nodes().expect("a folder is complete") {
        for kind in TYPES {
            views.insert((node.clone(), kind), store.get(&node, kind));
        }
    }
    (counts, views)
}

fn fresh(orders: impl Iterator<Item = BTreeMap<String, String>>) -> (Controller, Store) {
    let store = Store::new();
    let mut controller = Controller::new(store.clone());
    for files in orders {
        controller.load(files);
    }
    (controller, store)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_changes_ends_where_a_fresh_start_does(changes in changes(), backwards in any::<bool>()) {
        let store = Store::new();
        let mut controller = Controller::new(store.clone());
        // What is on disk, and what of it is in force: a bad content leaves the last good one.
        let (mut files, mut in_force) = (BTreeMap::new(), BTreeMap::new());
        for Change { file, content } in changes {
            let name = format!("f{file}.yaml");
            match content {
                Some(content) => {
                    files.insert(name.clone(), content.text());
                    if !matches!(content, Content::Bad) {
                        in_force.insert(name, content.text());
                    }
                }
                None => {
                    files.remove(&name);
                    in_force.remove(&name);
                }
            }
            controller.load(files.clone());
        }
        let expected = outcome(&controller, &store);
        let (at_once, at_once_store) = fresh(std::iter::once(in_force.clone()));
        prop_assert_eq!(&outcome(&at_once, &at_once_store), &expected);
        let mut names: Vec<String> = in_force.keys().cloned().collect();
        if backwards {
            names.reverse();
        }
        let steps = (1..=names.len()).map(|upto| {
            names[..upto].iter().map(|name| (name.clone(), in_force[name].clone())).collect::<BTreeMap<_, _>>()
        });
        let (one_by_one, one_by_one_store) = fresh(steps);
        prop_assert_eq!(&outcome(&one_by_one, &one_by_one_store), &expected);
    }
}
