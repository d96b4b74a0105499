//! The stream on which dpu-proxy keeps its keys at our service. In: its messages. Out: steps of `Keys`.

use super::keys::Keys;
use super::server::Guard;
use mesh_api::ca::key_holder_server::KeyHolder;
use mesh_api::ca::{FromHolder, ToHolder, from_holder};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The service that dpu-proxy calls.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) keys: Keys,
    pub(super) guard: Guard,
}

#[tonic::async_trait]
impl KeyHolder for Holding {
    type HoldStream = tonic::codegen::BoxStream<ToHolder>;

    async fn hold(&self, request: Request<Streaming<FromHolder>>) -> Result<Response<Self::HoldStream>, Status> {
        self.guard.check(&request)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let call = self.keys.connected(sender);
        tracing::info!("dpu-proxy holds the keys");
        tokio::spawn(follow(self.keys.clone(), call, request.into_inner()));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver).map(Ok))))
    }
}

async fn follow(keys: Keys, call: u64, mut incoming: Streaming<FromHolder>) {
    let reason = loop {
        match incoming.message().await {
            Ok(Some(FromHolder { message: Some(message) })) => take(&keys, call, message),
            Ok(Some(FromHolder { message: None })) => {}
            Ok(None) => break "it ended the stream".to_owned(),
            Err(status) => break xds::client::describe(&status),
        }
    };
    tracing::info!(reason, "dpu-proxy no longer holds the keys");
    keys.disconnected(call);
}

fn take(keys: &Keys, call: u64, message: from_holder::Message) {
    match message {
        from_holder::Message::Keys(held) => keys.held(call, held),
        from_holder::Message::Signature(signature) => keys.signed(signature),
    }
}
