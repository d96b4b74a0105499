//! The task around `core`: connects, keeps one stream, hands updates to the consumer.

use super::core::{ClientCore, Interest, Mode, Request, Response, Token, Update};
use crate::{Backoff, MESSAGE_LIMIT_BYTES, Rejected};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::Channel;

/// A stream that lived this long was healthy: the next wait starts small again.
const HEALTHY: Duration = Duration::from_secs(5);

/// Makes a channel; called for every attempt.
pub type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Channel, String>> + Send>;

/// How to be a client.
#[derive(Clone, Debug)]
pub struct Options {
    pub node: Node,
    pub mode: Mode,
    /// Metadata of the stream, e.g. `clusterid`.
    pub metadata: Vec<(String, String)>,
    /// Types in the order in which they are asked for.
    pub interests: Vec<(String, Interest)>,
    pub backoff: Backoff,
}

/// What the consumer is told.
#[derive(Debug)]
pub enum Event {
    Connected,
    Disconnected {
        reason: String,
        /// The server does not accept this client: to try again helps only when something has changed.
        is_denied: bool,
    },
    Update(Update),
}

enum Command {
    Reply(Token, Result<(), Vec<Rejected>>),
    Subscribe(String, Vec<String>),
    Unsubscribe(String, Vec<String>),
}

/// Talks back to the client. When the last one is dropped, the stream ends.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

impl Handle {
    /// Acknowledges an update, or refuses resources of it by name.
    pub fn reply(&self, token: Token, result: Result<(), Vec<Rejected>>) {
        self.send(Command::Reply(token, result));
    }

    /// Wants these resources too.
    pub fn subscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Subscribe(type_url.to_owned(), names.into_iter().collect()));
    }

    /// No longer wants these.
    pub fn unsubscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Unsubscribe(type_url.to_owned(), names.into_iter().collect()));
    }

    fn send(&self, command: Command) {
        // A client that has ended needs no commands.
        let _ = self.commands.send(command);
    }
}

/// Starts a client. Every update must be answered with `Handle::reply`.
pub fn spawn(
    connect: impl Fn() -> BoxFuture<'static, Result<Channel, String>> + Send + 'static,
    options: Options,
) -> (Handle, mpsc::Receiver<Event>) {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (events, receiver) = mpsc::channel(64);
    let core = ClientCore::new(options.mode, options.node.clone(), options.interests.clone());
    let client = Client { connect: Box::new(connect), options, core, inbox, events };
    tokio::spawn(client.run());
    (Handle { commands }, receiver)
}

struct Client {
    connect: Connect,
    options: Options,
    core: ClientCore,
    inbox: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
}

/// Why a stream ended.
enum End {
    /// The consumer is gone.
    Finished,
    Failed(Failure),
}

struct Failure {
    reason: String,
    is_denied: bool,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, is_denied: false }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let is_denied = matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied);
        Self { reason: describe(&status), is_denied }
    }
}

impl Client {
    async fn run(mut self) {
        let mut backoff = self.options.backoff;
        loop {
            let started = Instant::now();
            let Failure { reason, is_denied } = match self.session().await {
                End::Finished => return,
                End::Failed(failure) => failure,
            };
            self.core.disconnected();
            if started.elapsed() > HEALTHY {
                backoff.reset();
            }
            let wait = backoff.next(fastrand::f64());
            tracing::debug!(node = %self.options.node.id, reason, wait_ms = wait.as_millis() as u64, "discovery stream ended");
            let event = Event::Disconnected { reason, is_denied };
            if self.events.send(event).await.is_err() || self.sleep(wait).await.is_err() {
                return;
            }
        }
    }

    /// Waits, and takes commands meanwhile. An error: the last handle is gone.
    async fn sleep(&mut self, wait: Duration) -> Result<(), ()> {
        let timer = tokio::time::sleep(wait);
        tokio::pin!(timer);
        loop {
            tokio::select! {
                () = &mut timer => return Ok(()),
                command = self.inbox.recv() => self.command(command.ok_or(())?),
            }
        }
    }

    async fn session(&mut self) -> End {
        let (requests, receiver) = mpsc::unbounded_channel();
        let mut responses = match self.open(&requests, receiver).await {
            Ok(responses) => responses,
            Err(end) => return end,
        };
        if self.events.send(Event::Connected).await.is_err() {
            return End::Finished;
        }
        loop {
            if let Err(end) = self.flush(&requests) {
                return end;
            }
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => return End::Finished,
                },
                response = responses.next() => match response {
                    Some(Ok(response)) => if let Some(end) = self.deliver(response).await { return end },
                    Some(Err(status)) => return End::Failed(status.into()),
                    None => return End::Failed("the server ended the stream".to_owned().into()),
                },
            }
        }
    }

    /// Opens the stream. The first requests go out before the server's headers come: some servers
    /// send none until they have something to say.
    async fn open(
        &mut self,
        requests: &Requests,
        receiver: mpsc::UnboundedReceiver<Request>,
    ) -> Result<Responses, End> {
        let channel = self.channel().await?;
        self.core.connected();
        self.flush(requests)?;
        let (metadata, mode) = (self.options.metadata.clone(), self.options.mode);
        let opening = open(channel, receiver, &metadata, mode);
        tokio::pin!(opening);
        loop {
            tokio::select! {
                opened = &mut opening => return opened.map_err(End::Failed),
                command = self.inbox.recv() => self.command(command.ok_or(End::Finished)?),
            }
            self.flush(requests)?;
        }
    }

    /// Connects, which may take as long as it likes, and takes commands meanwhile.
    async fn channel(&mut self) -> Result<Channel, End> {
        let mut connecting = (self.connect)();
        loop {
            tokio::select! {
                channel = &mut connecting => return channel.map_err(|reason| End::Failed(reason.into())),
                command = self.inbox.recv() => self.command(command.ok_or(End::Finished)?),
            }
        }
    }

    /// Sends what the core has to say.
    fn flush(&mut self, requests: &Requests) -> Result<(), End> {
        while let Some(request) = self.core.poll() {
            let closed = |_| End::Failed("the request stream was closed by the server".to_owned().into());
            requests.send(request).map_err(closed)?;
        }
        Ok(())
    }

    async fn deliver(&mut self, response: Response) -> Option<End> {
        let update = self.core.handle(response)?;
        self.events.send(Event::Update(update)).await.is_err().then_some(End::Finished)
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Reply(token, result) => self.core.reply(token, result),
            Command::Subscribe(type_url, names) => self.core.subscribe(&type_url, names),
            Command::Unsubscribe(type_url, names) => self.core.unsubscribe(&type_url, names),
        }
    }
}

/// A status for a person, with its causes: a connection that failed says why only there.
pub fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

type Requests = mpsc::UnboundedSender<Request>;
type Responses = BoxStream<'static, Result<Response, tonic::Status>>;

async fn open(
    channel: Channel,
    requests: mpsc::UnboundedReceiver<Request>,
    metadata: &[(String, String)],
    mode: Mode,
) -> Result<Responses, Failure> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    let outgoing = UnboundedReceiverStream::new(requests);
    let responses: BoxStream<'static, _> = match mode {
        Mode::Delta => {
            let outgoing = outgoing.filter_map(|request| async move {
                match request {
                    Request::Delta(request) => Some(request),
                    Request::StateOfTheWorld(_) => None,
                }
            });
            let request = with_metadata(outgoing, metadata).map_err(Failure::from)?;
            let answer = client.delta_aggregated_resources(request).await.map_err(Failure::from)?;
            answer.into_inner().map(|response| response.map(Response::Delta)).boxed()
        }
        Mode::StateOfTheWorld => {
            let outgoing = outgoing.filter_map(|request| async move {
                match request {
                    Request::StateOfTheWorld(request) => Some(request),
                    Request::Delta(_) => None,
                }
            });
            let request = with_metadata(outgoing, metadata).map_err(Failure::from)?;
            let answer = client.stream_aggregated_resources(request).await.map_err(Failure::from)?;
            answer.into_inner().map(|response| response.map(Response::StateOfTheWorld)).boxed()
        }
    };
    Ok(responses)
}

fn with_metadata<T>(body: T, metadata: &[(String, String)]) -> Result<tonic::Request<T>, String> {
    let mut request = tonic::Request::new(body);
    add_metadata(request.metadata_mut(), metadata)?;
    Ok(request)
}

fn add_metadata(map: &mut MetadataMap, metadata: &[(String, String)]) -> Result<(), String> {
    for (name, value) in metadata {
        let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no metadata name"))?;
        // The value may be a token: it is not repeated.
        let value =
            MetadataValue::try_from(value).map_err(|_| format!("the value of metadata {name:?} is not ASCII"))?;
        map.insert(key, value);
    }
    Ok(())
}
