//! One pod's stream, until istiod has answered everything that is asked and says nothing more.

use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use istio_dpu_adapter::node::{self, MeshSettings};
use istio_dpu_adapter::pod::Pod;
use istio_dpu_adapter::translate::{Contents, Kind, Sidecar};
use mesh_api::{Any, type_url};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tonic::transport::Channel;
use xds::Backoff;
use xds::client::{self, Event, Handle, Interest, Mode, Options, Update};

/// A stream that is silent for this long has said everything.
const SILENCE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// Resources by type and name.
pub type Recording = BTreeMap<String, BTreeMap<String, Any>>;

/// What istiod tells the sidecar of a pod.
pub async fn record(channel: Channel, pod: &Pod, settings: &MeshSettings) -> Result<Recording> {
    let options = Options {
        node: node::node(pod, settings, None),
        mode: Mode::Delta,
        metadata: vec![("clusterid".to_owned(), settings.cluster_id.clone())],
        interests: interests(),
        backoff: Backoff::default(),
    };
    let (handle, mut events) = client::spawn(move || std::future::ready(Ok(channel.clone())).boxed(), options);
    let mut told = Told { handle, sidecar: Sidecar::default(), contents: Contents::default(), recording: empty() };
    let until_silent = async {
        loop {
            match tokio::time::timeout(SILENCE, events.recv()).await {
                Ok(Some(Event::Update(update))) => told.take(update),
                Ok(Some(Event::Connected)) => {}
                Ok(Some(Event::Disconnected { reason, .. })) => bail!("istiod ended the stream: {reason}"),
                Ok(None) => bail!("the client ended"),
                Err(_) if told.sidecar.missing().is_empty() => return Ok(()),
                Err(_) => {}
            }
        }
    };
    let done = tokio::time::timeout(PATIENCE, until_silent).await;
    done.with_context(|| format!("{}: istiod did not answer everything in time", pod.name()))??;
    Ok(told.recording)
}

/// What the adapter asks for, and what an agent asks for beside it.
fn interests() -> Vec<(String, Interest)> {
    let all = [type_url::CLUSTER, type_url::LISTENER, type_url::NAME_TABLE, type_url::PROXY_CONFIG];
    let named = [type_url::CLUSTER_LOAD_ASSIGNMENT, type_url::ROUTE_CONFIGURATION, type_url::EXTENSION_CONFIG];
    let all = all.map(|kind| (kind.to_owned(), Interest::Wildcard));
    all.into_iter().chain(named.map(|kind| (kind.to_owned(), Interest::Names(BTreeSet::new())))).collect()
}

fn empty() -> Recording {
    interests().into_iter().map(|(kind, _)| (kind, BTreeMap::new())).collect()
}

struct Told {
    handle: Handle,
    /// Knows what is referred to, and so what to ask for.
    sidecar: Sidecar,
    contents: Contents,
    recording: Recording,
}

impl Told {
    fn take(&mut self, update: Update) {
        let held = self.recording.entry(update.type_url.clone()).or_default();
        for resource in &update.changed {
            held.insert(resource.name.clone(), resource.body.clone());
        }
        update.removed.iter().for_each(|name| drop(held.remove(name)));
        if let Some(kind) = Kind::of(&update.type_url) {
            let rejected = self.sidecar.apply(&mut self.contents, kind, &update.changed, &update.removed);
            rejected.iter().for_each(|one| eprintln!("the adapter would refuse {}: {}", one.name, one.reason));
            self.ask();
        }
        self.handle.reply(update.token, Ok(()));
    }

    fn ask(&mut self) {
        let interests = self.sidecar.interests();
        for (kind, name) in interests.subscribe {
            self.handle.subscribe(kind.type_url(), [name]);
        }
        for (kind, name) in interests.unsubscribe {
            self.recording.entry(kind.type_url().to_owned()).or_default().remove(&name);
            self.handle.unsubscribe(kind.type_url(), [name]);
        }
    }
}
