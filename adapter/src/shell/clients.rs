//! Discovery streams that the adapter opens: to the controller, to the node daemon, and one for each
//! workload to the control plane.

use super::args::Args;
use crate::pod::Pod;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::type_url;
use mesh_model::Identity;
use service::grpc::{Endpoint, GrpcError, TlsArgs};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use xds::Backoff;
use xds::client::{self, Event, Handle, Interest, Mode, Options};

/// How a workload's stream authenticates to the control plane.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// The adapter's own certificate, which the control plane lets speak for any workload of the node.
    Program,
}

impl Credentials {
    /// Streams with the same key may share a connection. `None`: all may. A certificate or token of
    /// the workload's identity makes it one connection per identity.
    fn connection(&self, _identity: &Identity) -> Option<Identity> {
        match self {
            Self::Program => None,
        }
    }
}

/// Connections to the control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    endpoint: Endpoint,
    credentials: Credentials,
    cluster_id: String,
    /// Each connects when it is first used, and again when it was lost.
    channels: HashMap<Option<Identity>, Channel>,
}

impl ControlPlane {
    pub(super) fn new(args: &Args) -> Result<Self, GrpcError> {
        Ok(Self {
            endpoint: args.control_plane()?,
            credentials: Credentials::Program,
            cluster_id: args.cluster_id.clone(),
            channels: HashMap::new(),
        })
    }

    /// Opens a pod's stream.
    pub(super) fn open(&mut self, pod: &Pod, node: Node) -> (Handle, mpsc::Receiver<Event>) {
        let key = self.credentials.connection(&pod.identity);
        let channel = self.channels.entry(key).or_insert_with(|| self.endpoint.connect_lazy()).clone();
        let options = Options {
            node,
            mode: Mode::Delta,
            metadata: vec![("clusterid".to_owned(), self.cluster_id.clone())],
            interests: sidecar_interests(),
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(15)),
        };
        client::spawn(move || std::future::ready(Ok(channel.clone())).boxed(), options)
    }
}

/// CDS and LDS as a whole, the others by the names that those refer to.
fn sidecar_interests() -> Vec<(String, Interest)> {
    let named = || Interest::Names(BTreeSet::new());
    vec![
        (type_url::CLUSTER.to_owned(), Interest::Wildcard),
        (type_url::CLUSTER_LOAD_ASSIGNMENT.to_owned(), named()),
        (type_url::LISTENER.to_owned(), Interest::Wildcard),
        (type_url::ROUTE_CONFIGURATION.to_owned(), named()),
        (type_url::EXTENSION_CONFIG.to_owned(), named()),
    ]
}

/// The stream of this node's view from the controller.
pub(super) fn controller(args: &Args) -> (Handle, mpsc::Receiver<Event>) {
    let (uri, tls, name) = (args.controller.clone(), args.tls.clone(), args.controller_server_name.clone());
    let connect = move || connect(uri.clone(), tls.clone(), name.clone());
    client::spawn(connect, own_options(&args.node, &[type_url::NODE, type_url::WORKLOAD]))
}

/// The stream of attached pods from the node daemon.
pub(super) fn attachments(args: &Args) -> (Handle, mpsc::Receiver<Event>) {
    let path = args.attachments.clone();
    client::spawn(move || connect_unix(path.clone()), own_options(&args.node, &[type_url::ATTACHMENT]))
}

fn own_options(node: &str, types: &[&str]) -> Options {
    Options {
        node: Node { id: node.to_owned(), ..Node::default() },
        mode: Mode::Delta,
        metadata: Vec::new(),
        interests: types.iter().map(|type_url| ((*type_url).to_owned(), Interest::Wildcard)).collect(),
        backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
    }
}

fn connect(uri: String, tls: TlsArgs, name: String) -> BoxFuture<'static, Result<Channel, String>> {
    async move { service::grpc::channel(&uri, &tls, &name).await.map_err(|error| error.to_string()) }.boxed()
}

fn connect_unix(path: PathBuf) -> BoxFuture<'static, Result<Channel, String>> {
    async move { service::grpc::unix_channel(&path).await.map_err(|error| error.to_string()) }.boxed()
}
