//! Discovery streams that the adapter opens: to the controller, to the node daemon, and one for each
//! workload to the control plane.

use super::args::Args;
use super::authority::CertificateAuthority;
use super::istiod::{Caller, Istiod};
use super::keys::Keys;
use super::troubles::Troubles;
use crate::pod::Pod;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::type_url;
use mesh_model::Identity;
use rustls::pki_types::ServerName;
use service::grpc::{GrpcError, TlsArgs};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Uri};
use xds::Backoff;
use xds::client::{self, Event, Handle, Interest, Mode, Options};

/// Connections to the control plane: one for each identity, shared by its pods.
#[derive(Debug)]
pub(super) struct ControlPlane {
    way: Way,
    keys: Keys,
    cluster_id: String,
}

/// How the control plane is reached.
#[derive(Debug)]
enum Way {
    /// As each workload, by its certificate. Channels connect again when they were lost.
    AsWorkload { istiod: Istiod, channels: BTreeMap<Identity, Channel> },
    /// Plaintext on loopback: nobody is asked who he is.
    Plain(Channel),
}

impl ControlPlane {
    pub(super) fn new(args: &Args, keys: Keys, troubles: Troubles) -> Result<Self, GrpcError> {
        let way = match istiod(args, &args.control_plane, keys.clone(), troubles)? {
            Some(istiod) => Way::AsWorkload { istiod, channels: BTreeMap::new() },
            None => Way::Plain(plain(args, &args.control_plane)?),
        };
        Ok(Self { way, keys, cluster_id: args.cluster_id.clone() })
    }

    /// Opens a pod's stream, as soon as there is a key of its identity.
    pub(super) fn open(&mut self, pod: &Pod, node: Node) -> (Handle, mpsc::Receiver<Event>) {
        let options = Options {
            node,
            mode: Mode::Delta,
            metadata: vec![("clusterid".to_owned(), self.cluster_id.clone())],
            interests: sidecar_interests(),
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(15)),
        };
        let (channel, identity) = (self.channel(&pod.identity), pod.identity.clone());
        let keys = matches!(self.way, Way::AsWorkload { .. }).then(|| self.keys.clone());
        client::spawn(move || ready(keys.clone(), identity.clone(), channel.clone()).boxed(), options)
    }

    /// Forgets connections of identities that are gone.
    pub(super) fn retain(&mut self, identities: &BTreeSet<Identity>) {
        if let Way::AsWorkload { channels, .. } = &mut self.way {
            channels.retain(|identity, _| identities.contains(identity));
        }
    }

    fn channel(&mut self, identity: &Identity) -> Channel {
        match &mut self.way {
            Way::Plain(channel) => channel.clone(),
            Way::AsWorkload { istiod, channels } => {
                let new = || istiod.channel(Caller::Workload(identity.clone()));
                channels.entry(identity.clone()).or_insert_with(new).clone()
            }
        }
    }
}

/// A channel for which there is a key.
async fn ready(keys: Option<Keys>, identity: Identity, channel: Channel) -> Result<Channel, String> {
    if let Some(keys) = keys {
        keys.wait(&identity).await;
    }
    Ok(channel)
}

/// The certificate service, asked with a token over TLS.
pub(super) fn authority(args: &Args, keys: Keys, troubles: Troubles) -> Result<CertificateAuthority, GrpcError> {
    let uri = args.authority();
    let (channel, token) = match istiod(args, uri, keys, troubles)? {
        Some(istiod) => (istiod.channel(Caller::Nobody), Some(args.istio_token.clone())),
        None => (plain(args, uri)?, None),
    };
    Ok(CertificateAuthority::new(channel, &args.cluster_id, token))
}

/// An istiod behind `https://`; `None` for plaintext.
fn istiod(args: &Args, uri: &str, keys: Keys, troubles: Troubles) -> Result<Option<Istiod>, GrpcError> {
    let address = || GrpcError::Address { uri: uri.to_owned() };
    let parsed: Uri = uri.parse().map_err(|_| address())?;
    if parsed.scheme_str() != Some("https") {
        return Ok(None);
    }
    parsed.host().ok_or_else(address)?;
    let authority = args.control_plane_authority().ok_or_else(|| GrpcError::NoCertificate { uri: uri.to_owned() })?;
    let name = ServerName::try_from(args.control_plane_server_name.clone());
    let name = name.map_err(|_| GrpcError::Address { uri: args.control_plane_server_name.clone() })?;
    Ok(Some(Istiod::new(parsed, authority, name, keys, troubles)))
}

/// `http://` on loopback, or anywhere with --insecure.
fn plain(args: &Args, uri: &str) -> Result<Channel, GrpcError> {
    let endpoint = service::grpc::endpoint(uri, &args.tls, &args.control_plane_server_name)?;
    Ok(endpoint.connect_lazy())
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
