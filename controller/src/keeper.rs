//! Keeps the controller as its source says, and tells how that goes.

use crate::Controller;
use crate::authorize::Nodes;
use crate::cluster::Seen;
use crate::metrics::Metrics;
use crate::tables::Changes;
use crate::watch::FolderWatch;
use service::health::Health;
use service::http::Routes;
use service::signal::CancellationToken;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What is seen of the API server together is published together.
const SETTLE: Duration = Duration::from_millis(20);
/// At most so much of it.
const BATCH: usize = 4096;

/// Condition of a folder: it was read, and every file in it was good at least once.
pub const MANIFESTS: &str = "manifests";
/// Condition of an API server: everything was listed, and is followed.
pub const KUBERNETES: &str = "kubernetes";

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper {
    controller: Arc<Mutex<Controller>>,
    /// Nodes that have a view.
    pub nodes: Nodes,
    health: Health,
    metrics: Metrics,
    /// Version of the tables.
    version: Arc<watch::Sender<u64>>,
}

impl Keeper {
    /// Of a controller that has read nothing yet.
    pub fn new(controller: Controller, health: Health, metrics: Metrics) -> Self {
        Self {
            controller: Arc::new(Mutex::new(controller)),
            nodes: Nodes::default(),
            health,
            metrics,
            version: Arc::default(),
        }
    }

    /// The controller, as it is now.
    pub fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings when the tables change.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What the program shows of it.
    pub fn routes(&self, routes: Routes) -> Routes {
        let keeper = self.clone();
        routes.get("/refusals", move || {
            let refusals = keeper.controller().refusals();
            serde_json::to_string_pretty(&refusals).unwrap_or_else(|error| error.to_string())
        })
    }

    /// Follows a folder until the stop.
    pub async fn follow_folder(&self, mut folder: FolderWatch, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = folder.changed() => self.load(&mut folder),
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Reads the folder.
    pub fn load(&self, folder: &mut FolderWatch) {
        let files = match folder.read() {
            Ok(files) => files,
            // What was read before stays in force.
            Err(error) => return self.health.set(MANIFESTS, Err(error.to_string())),
        };
        let mut controller = self.controller();
        let changes = controller.load(files);
        self.changed(&controller, changes, MANIFESTS);
    }

    /// Follows the API server until the stop.
    pub async fn follow_cluster(&self, mut seen: mpsc::Receiver<Seen>, shutdown: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let number = tokio::select! {
                number = seen.recv_many(&mut batch, BATCH) => number,
                () = shutdown.cancelled() => return,
            };
            if number == 0 {
                return;
            }
            self.see(std::mem::take(&mut batch));
            tokio::time::sleep(SETTLE).await;
        }
    }

    fn see(&self, seen: Vec<Seen>) {
        let mut controller = self.controller();
        let changes = controller.see(seen);
        self.changed(&controller, changes, KUBERNETES);
    }

    fn changed(&self, controller: &Controller, changes: Changes, condition: &str) {
        if changes != Changes::default() {
            let version = controller.version();
            tracing::debug!(changes.put, changes.removed, version, "objects changed");
            self.version.send_replace(version);
        }
        self.nodes.set(controller.nodes());
        self.metrics.loaded(controller, changes);
        self.health.set(condition, controller.state());
    }
}
