//! Discovery messages: whatever a peer sends, in any order, client and server keep their footing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::envoy::config::core::v3::Node;
use mesh_api::envoy::service::discovery::v3 as discovery;
use mesh_api::{Any, type_url};
use prost::Message;
use xds::Resource;
use xds::client::core::{ClientCore, Request, Response};
use xds::client::{Interest, Mode};
use xds::server::core::StreamCore;
use xds::server::view::View;

fuzz_target!(|messages: Vec<(u8, Vec<u8>)>| {
    let interests = vec![(type_url::CLUSTER.to_owned(), Interest::Wildcard)];
    let mut client = ClientCore::new(Mode::Delta, Node::default(), interests);
    let mut server = StreamCore::new(Mode::Delta);
    let mut view = View::default();
    client.connected();
    for (step, bytes) in messages.iter().take(64) {
        match step % 5 {
            0 => hostile_request(&mut server, bytes),
            1 => hostile_response(&mut client, bytes),
            2 => {
                let body = Any { type_url: type_url::CLUSTER.to_owned(), value: bytes.clone() };
                view.put(type_url::CLUSTER, Resource::from_any(format!("r{}", bytes.len()), body));
            }
            3 => {
                view.remove(type_url::CLUSTER, &format!("r{}", bytes.len()));
            }
            _ => exchange(&mut client, &mut server, &view),
        }
    }
    exchange(&mut client, &mut server, &view);
});

fn hostile_request(server: &mut StreamCore, bytes: &[u8]) {
    if let Ok(request) = discovery::DeltaDiscoveryRequest::decode(bytes) {
        server.handle(Request::Delta(request));
    }
}

fn hostile_response(client: &mut ClientCore, bytes: &[u8]) {
    if let Ok(response) = discovery::DeltaDiscoveryResponse::decode(bytes)
        && let Some(update) = client.handle(Response::Delta(response))
    {
        client.reply(update.token, Ok(()));
    }
}

/// Bounded: a peer that never stops asking is not answered without end here.
fn exchange(client: &mut ClientCore, server: &mut StreamCore, view: &View) {
    for _ in 0..64 {
        while let Some(request) = client.poll() {
            server.handle(request);
        }
        let Some(response) = server.poll(view) else { return };
        if let Some(update) = client.handle(response) {
            client.reply(update.token, Ok(()));
        }
    }
}
