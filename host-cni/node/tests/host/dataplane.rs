//! A dataplane in the test. Not the real one, because that opens a port only when the proxy on
//! the DPU has a workload's configuration; the whole together is tested in `tests/lab`. It keeps
//! what it is told, all or nothing, and opens ports when the test lets it.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mesh_api::dataplane::dataplane_server::{Dataplane, DataplaneServer};
use mesh_api::dataplane::operation::Operation as Kind;
use mesh_api::dataplane::{
    ApplyRequest, ApplyResponse, Counters, GetCountersRequest, GetStateRequest, Port, PortState, PortStatus,
    PortStatuses, State, WatchPortsRequest,
};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Services of this port find no room.
pub const REFUSED_PORT: u32 = 6666;

#[derive(Debug)]
pub struct FakeDataplane {
    state: watch::Sender<State>,
    /// Ports stay closed, for this reason.
    hold: Mutex<Option<String>>,
    /// No call is answered.
    down: AtomicBool,
}

impl Default for FakeDataplane {
    fn default() -> Self {
        let state = State { uplink_address: "192.168.100.1".to_owned(), ..State::default() };
        Self { state: watch::Sender::new(state), hold: Mutex::default(), down: AtomicBool::new(false) }
    }
}

impl FakeDataplane {
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
        let server = tonic::transport::Server::builder().add_service(DataplaneServer::new(Fake(self)));
        server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)).await.expect("served");
    }

    pub fn ports(&self) -> Vec<Port> {
        self.state.borrow().ports.clone()
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub fn hold(&self, reason: Option<&str>) {
        *self.hold.lock().expect("lock") = reason.map(str::to_owned);
        self.state.send_modify(|_| {});
    }

    /// Has a link to the host from now on.
    pub fn set_host(&self, interface: &str) {
        self.state.send_modify(|state| state.host = interface.to_owned());
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    #[allow(clippy::result_large_err)]
    fn answers(&self) -> Result<(), Status> {
        match self.down.load(Ordering::SeqCst) {
            true => Err(Status::unavailable("the link to the DPU is down")),
            false => Ok(()),
        }
    }

    fn statuses(&self) -> PortStatuses {
        let hold = self.hold.lock().expect("lock").clone();
        let status = |port: &Port| PortStatus {
            id: port.id.clone(),
            state: if hold.is_some() { PortState::Closed } else { PortState::Open }.into(),
            reason: hold.clone().unwrap_or_default(),
            workload_uid: port.workload_uid.clone(),
        };
        PortStatuses { snapshot: true, changed: self.ports().iter().map(status).collect(), removed_ids: Vec::new() }
    }
}

struct Fake(Arc<FakeDataplane>);

#[tonic::async_trait]
impl Dataplane for Fake {
    type WatchPortsStream = BoxStream<'static, Result<PortStatuses, Status>>;

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        self.0.answers()?;
        let mut state = self.0.state();
        for operation in request.into_inner().operations {
            match operation.operation.ok_or_else(|| Status::invalid_argument("empty operation"))? {
                Kind::PutPort(port) if port.addresses.is_empty() => return Err(Status::invalid_argument("no address")),
                Kind::PutPort(port) => {
                    state.ports.retain(|other| other.id != port.id);
                    state.ports.push(port);
                }
                Kind::DeletePortId(id) => state.ports.retain(|port| port.id != id),
                Kind::PutRoute(route) => {
                    state.routes.retain(|other| other.prefix != route.prefix);
                    state.routes.push(route);
                }
                Kind::DeleteRoutePrefix(prefix) => state.routes.retain(|route| route.prefix != prefix),
                Kind::PutService(service) if service.key.as_ref().is_some_and(|key| key.port == REFUSED_PORT) => {
                    return Err(Status::resource_exhausted("there is room for no more services"));
                }
                Kind::PutService(service) => {
                    state.services.retain(|other| other.key != service.key);
                    state.services.push(service);
                }
                Kind::DeleteService(key) => state.services.retain(|service| service.key.as_ref() != Some(&key)),
            }
        }
        state.epoch += 1;
        let epoch = state.epoch;
        self.0.state.send_replace(state);
        Ok(Response::new(ApplyResponse { epoch }))
    }

    async fn get_state(&self, _: Request<GetStateRequest>) -> Result<Response<State>, Status> {
        self.0.answers()?;
        Ok(Response::new(self.0.state()))
    }

    async fn watch_ports(&self, _: Request<WatchPortsRequest>) -> Result<Response<Self::WatchPortsStream>, Status> {
        let fake = Arc::clone(&self.0);
        let changes = tokio_stream::wrappers::WatchStream::new(self.0.state.subscribe());
        Ok(Response::new(changes.map(move |_| Ok(fake.statuses())).boxed()))
    }

    async fn get_counters(&self, _: Request<GetCountersRequest>) -> Result<Response<Counters>, Status> {
        Err(Status::unimplemented("nothing is counted here"))
    }
}
