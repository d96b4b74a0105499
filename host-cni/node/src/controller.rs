//! Follows the node's view at the controller.

use crate::mesh::Mesh;
use futures_util::FutureExt;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::type_url;
use service::grpc::TlsArgs;
use service::health::Health;
use tokio::sync::{mpsc, watch};
use xds::Backoff;
use xds::client::{Event, Handle, Interest, Mode, Options};

/// The controller answered, and the stream to it lives.
pub const CONDITION: &str = "controller";

/// Keeps `mesh` as the controller says. Ends when the client does.
pub async fn follow(uri: String, tls: TlsArgs, node: String, mesh: watch::Sender<Mesh>, health: Health) {
    let connect = move || {
        let (uri, tls) = (uri.clone(), tls.clone());
        async move { service::grpc::channel(&uri, &tls, "controller").await.map_err(|error| error.to_string()) }.boxed()
    };
    let types = [type_url::NETWORK, type_url::NODE, type_url::SERVICE, type_url::WORKLOAD];
    let options = Options {
        node: Node { id: node, ..Node::default() },
        mode: Mode::Delta,
        metadata: Vec::new(),
        interests: types.map(|kind| (kind.to_owned(), Interest::Wildcard)).to_vec(),
        backoff: Backoff::default(),
    };
    let (handle, events) = xds::client::spawn(connect, options);
    take(handle, events, &mesh, &health).await;
}

async fn take(handle: Handle, mut events: mpsc::Receiver<Event>, mesh: &watch::Sender<Mesh>, health: &Health) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Connected => {
                if mesh.borrow().is_complete() {
                    health.set(CONDITION, Ok(()));
                }
            }
            Event::Disconnected { reason, .. } => health.set(CONDITION, Err(reason)),
            Event::Update(update) => {
                let mut outcome = Ok(());
                mesh.send_modify(|mesh| outcome = mesh.apply(&update.type_url, &update.changed, &update.removed));
                if let Err(rejected) = &outcome {
                    tracing::error!(
                        kind = update.type_url,
                        ?rejected,
                        "the controller's resources were refused by name"
                    );
                }
                handle.reply(update.token, outcome);
                if mesh.borrow().is_complete() {
                    health.set(CONDITION, Ok(()));
                }
            }
        }
    }
}
