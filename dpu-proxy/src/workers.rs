//! The worker threads: one per core, each with a single-threaded runtime and a `Worker` of its own.
//!
//! In: listening sockets to accept from, questions about a worker's state. Out: the answers of all.

use crate::connection::Gate;
use crate::listener::accept;
use crate::shared::{Phase, Shared};
use crate::stats::Merged;
use crate::worker::Worker;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

type Question = Box<dyn FnOnce(&Rc<Worker>) + Send>;

enum Command {
    Listen { gate: Gate, listener: TcpListener, stop: CancellationToken },
    Ask(Question),
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

/// Handles of all worker threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workers {
    commands: Arc<[mpsc::UnboundedSender<Command>]>,
}

/// Joins the threads when the process ends.
#[derive(Debug)]
pub struct Threads(Vec<std::thread::JoinHandle<()>>);

impl Threads {
    /// Waits for every worker to end.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

impl Workers {
    /// Starts `shared.settings.workers` threads.
    pub fn start(shared: &Arc<Shared>) -> std::io::Result<(Self, Threads)> {
        let mut commands = Vec::new();
        let mut threads = Vec::new();
        for index in 0..shared.settings.workers {
            let (sender, receiver) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let shared = Arc::clone(shared);
            let thread = std::thread::Builder::new().name(format!("worker-{index}"));
            threads.push(thread.spawn(move || {
                let tasks = tokio::task::LocalSet::new();
                tasks.block_on(&runtime, run(index, shared, receiver));
            })?);
            commands.push(sender);
        }
        Ok((Self { commands: commands.into() }, Threads(threads)))
    }

    /// Number of workers.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// True without workers.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Has a worker accept from a socket until `stop`.
    pub fn listen(&self, index: usize, gate: Gate, listener: TcpListener, stop: CancellationToken) {
        // A worker that has ended accepts nothing.
        let _ = self.commands[index].send(Command::Listen { gate, listener, stop });
    }

    /// Asks every worker the same; the answers of those that still run.
    pub async fn gather<T: Send + 'static>(&self, ask: impl Fn(&Rc<Worker>) -> T + Clone + Send + 'static) -> Vec<T> {
        let asked = self.commands.iter().map(|commands| {
            let (answer, answered) = oneshot::channel();
            let ask = ask.clone();
            // Who asks may be gone before the answer is there.
            let question: Question = Box::new(move |worker| drop(answer.send(ask(worker))));
            let _ = commands.send(Command::Ask(question));
            async move {
                tokio::select! {
                    biased;
                    answer = answered => answer.ok(),
                    // A question that is sent while the worker ends may lie in the channel for ever.
                    () = commands.closed() => None,
                }
            }
        });
        let answers = futures_util::future::join_all(asked.collect::<Vec<_>>()).await;
        answers.into_iter().flatten().collect()
    }

    /// The statistics of all workers, added up.
    pub async fn stats(&self) -> Merged {
        let mut merged = Merged::default();
        for samples in self.gather(|worker| worker.stats.samples()).await {
            merged.add(samples);
        }
        merged
    }
}

async fn run(index: usize, shared: Arc<Shared>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut states = shared.state.subscribe();
    let mut phase = shared.phase.subscribe();
    let worker = Worker::new(index, shared);
    loop {
        tokio::select! {
            biased;
            changed = states.changed() => match changed {
                Ok(()) => {
                    let state = states.borrow_and_update().clone();
                    worker.apply(state);
                }
                Err(_) => break,
            },
            command = commands.recv() => match command {
                Some(command) => obey(&worker, command),
                None => break,
            },
            ended = phase.wait_for(|phase| *phase == Phase::Ending) => {
                drop(ended);
                break;
            }
        }
    }
    tracing::debug!(index, connections = worker.connections(), "worker ends");
}

fn obey(worker: &Rc<Worker>, command: Command) {
    match command {
        Command::Ask(question) => question(worker),
        Command::Listen { gate, listener, stop } => match tokio::net::TcpListener::from_std(listener) {
            Ok(socket) => drop(tokio::task::spawn_local(accept::accept(Rc::clone(worker), gate, socket, stop))),
            Err(error) => tracing::error!(?gate, %error, "a worker cannot accept"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn nobody_waits_for_the_answer_of_a_worker_that_has_ended() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let workers = Workers { commands: [sender].into() };
        let asking = tokio::spawn(async move { workers.gather(|worker| worker.connections()).await });
        // Neither answered nor dropped.
        let question = receiver.recv().await;
        drop(receiver);
        let answers = tokio::time::timeout(Duration::from_secs(5), asking).await.expect("an end").expect("a task");
        assert!(answers.is_empty());
        drop(question);
    }
}
