//! The gRPC API on the management link.

use crate::DropReason;
use crate::engine::{Door, Engine, EngineError, Ports};
use crate::state::Code;
use crate::sys::abi;
use crate::sys::programs::CounterReader;
use futures_util::Stream;
use mesh_api::dataplane as wire;
use mesh_api::dataplane::dataplane_server::Dataplane;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Who may call: the node daemon of whatever host has this DPU.
const CALLERS: &str = "spiffe://dpumesh/cni-node/";

/// The service.
#[allow(missing_debug_implementations)]
pub struct Api<D> {
    pub engine: Arc<Mutex<Engine<D>>>,
    pub ports: watch::Receiver<Ports>,
    pub counters: CounterReader,
    pub uplink: String,
    /// Link to the host; empty: none is named.
    pub host: String,
    /// False where the server has no TLS (loopback).
    pub check_caller: bool,
}

type Statuses = BTreeMap<String, wire::PortStatus>;

impl<D> Api<D> {
    // The error is tonic's own and as large as it is.
    #[allow(clippy::result_large_err)]
    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match self.check_caller {
            true => permitted(&service::grpc::peer_identities(request)),
            false => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl<D: Door + 'static> Dataplane for Api<D> {
    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Result<Response<wire::ApplyResponse>, Status> {
        self.authorize(&request)?;
        let (engine, operations) = (Arc::clone(&self.engine), request.into_inner().operations);
        // A caller that hangs up must not stop it half way.
        let applied = tokio::spawn(async move { engine.lock().await.apply(&operations).await });
        let epoch = applied.await.map_err(|error| Status::internal(error.to_string()))?;
        let epoch = epoch.map_err(|error| status(&error))?;
        Ok(Response::new(wire::ApplyResponse { epoch }))
    }

    async fn get_state(&self, request: Request<wire::GetStateRequest>) -> Result<Response<wire::State>, Status> {
        self.authorize(&request)?;
        let mut engine = self.engine.lock().await;
        let mut state = engine.state().to_wire();
        state.uplink.clone_from(&self.uplink);
        state.host.clone_from(&self.host);
        let address = engine.door().uplink_address().await.map_err(|error| Status::internal(error.to_string()))?;
        state.uplink_address = address.map(|address| address.to_string()).unwrap_or_default();
        Ok(Response::new(state))
    }

    type WatchPortsStream = Pin<Box<dyn Stream<Item = Result<wire::PortStatuses, Status>> + Send>>;

    async fn watch_ports(
        &self,
        request: Request<wire::WatchPortsRequest>,
    ) -> Result<Response<Self::WatchPortsStream>, Status> {
        self.authorize(&request)?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(follow(self.ports.clone(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_counters(
        &self,
        request: Request<wire::GetCountersRequest>,
    ) -> Result<Response<wire::Counters>, Status> {
        self.authorize(&request)?;
        let ports = Arc::clone(&self.ports.borrow());
        let read = |slot| self.counters.read(slot).map_err(|error| Status::internal(error.to_string()));
        let mut counters = wire::Counters { ports: Vec::new(), uplink_drops: drops(&read(0)?) };
        for port in ports.values() {
            counters.ports.push(port_counters(&port.wire.id, &read(port.slot)?));
        }
        Ok(Response::new(counters))
    }
}

// The error is tonic's own and as large as it is.
#[allow(clippy::result_large_err)]
fn permitted(shown: &[String]) -> Result<(), Status> {
    match shown
        .iter()
        .any(|name| name.strip_prefix(CALLERS).is_some_and(|node| !node.is_empty() && !node.contains('/')))
    {
        true => Ok(()),
        false => Err(Status::permission_denied(format!("the caller must be {CALLERS}NODE; it showed {shown:?}"))),
    }
}

fn status(error: &EngineError) -> Status {
    let text = error.to_string();
    match error.code() {
        Some(Code::Invalid) => Status::invalid_argument(text),
        Some(Code::Precondition) => Status::failed_precondition(text),
        Some(Code::NotSupported) => Status::unimplemented(text),
        Some(Code::Full) => Status::resource_exhausted(text),
        None => Status::internal(text),
    }
}

/// Sends all statuses, then what changes, until the receiver goes.
async fn follow(mut ports: watch::Receiver<Ports>, sender: mpsc::Sender<Result<wire::PortStatuses, Status>>) {
    let mut told: Option<Statuses> = None;
    loop {
        let now: Statuses = ports.borrow_and_update().iter().map(|(id, port)| (id.clone(), port.status())).collect();
        let news = news(told.as_ref(), &now);
        let is_worth_it = news.snapshot || !news.changed.is_empty() || !news.removed_ids.is_empty();
        if is_worth_it && sender.send(Ok(news)).await.is_err() {
            return;
        }
        told = Some(now);
        tokio::select! {
            changed = ports.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

fn news(told: Option<&Statuses>, now: &Statuses) -> wire::PortStatuses {
    let known = |id: &String| told.and_then(|told| told.get(id));
    wire::PortStatuses {
        snapshot: told.is_none(),
        changed: now
            .iter()
            .filter(|(id, status)| known(id) != Some(status))
            .map(|(_, status)| status.clone())
            .collect(),
        removed_ids: told.into_iter().flat_map(BTreeMap::keys).filter(|id| !now.contains_key(*id)).cloned().collect(),
    }
}

fn port_counters(id: &str, counters: &abi::Counters) -> wire::PortCounters {
    wire::PortCounters {
        id: id.to_owned(),
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        tx_packets: counters.tx_packets,
        tx_bytes: counters.tx_bytes,
        steered_connections: counters.steered,
        drops: drops(counters),
    }
}

fn drops(counters: &abi::Counters) -> Vec<wire::DropCounter> {
    let all = DropReason::ALL.iter().zip(counters.drops);
    let some = all.filter(|(_, packets)| *packets > 0);
    some.map(|(reason, packets)| wire::DropCounter { reason: reason.name().to_owned(), packets }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_daemon_may_call() {
        let shown = |name: &str| permitted(&["dataplane".to_owned(), name.to_owned()]);
        assert!(shown("spiffe://dpumesh/cni-node/host1").is_ok());
        for other in
            ["spiffe://dpumesh/adapter/host1", "spiffe://dpumesh/cni-node/", "spiffe://cluster.local/cni-node/host1"]
        {
            assert_eq!(shown(other).expect_err(other).code(), tonic::Code::PermissionDenied);
        }
        assert!(permitted(&[]).is_err());
    }

    #[test]
    fn a_watcher_hears_everything_first_and_changes_later() {
        let status = |id: &str, reason: &str| {
            let status =
                wire::PortStatus { id: id.to_owned(), reason: reason.to_owned(), ..wire::PortStatus::default() };
            (id.to_owned(), status)
        };
        let before: Statuses = [status("a", ""), status("b", ""), status("c", "")].into();
        assert!(news(None, &before).snapshot && news(None, &before).changed.len() == 3);
        let after: Statuses = [status("a", ""), status("b", "closed"), status("d", "")].into();
        let news = news(Some(&before), &after);
        assert!(!news.snapshot);
        assert_eq!(news.changed.iter().map(|status| status.id.as_str()).collect::<Vec<_>>(), ["b", "d"]);
        assert_eq!(news.removed_ids, ["c"]);
    }
}
