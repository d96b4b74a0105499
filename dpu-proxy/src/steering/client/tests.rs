//! A dataplane of the test's own, on a real socket.

use super::super::session::Ready;
use super::*;
use mesh_api::steering::{self as wire, FromProxy, from_dataplane, from_proxy};
use mesh_model::{PortId, WorkloadUid};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketType, accept, bind,
    listen, recvmsg, send, socket,
};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::TcpListener;

/// Takes one message and the address that its socket listens on, if it carries one.
fn receive(peer: &OwnedFd) -> (FromProxy, Option<std::net::SocketAddr>) {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(peer, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::empty()).expect("message");
    let mut address = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut carried) = message {
            let socket = TcpListener::from(carried.next().expect("a descriptor"));
            address = socket.local_addr().ok();
        }
    }
    (FromProxy::decode(&bytes[..got.bytes]).expect("a message of ours"), address)
}

/// One life of a dataplane: takes the greeting, says its ports, expects the socket and the readiness.
fn serve_once(listener: &OwnedFd, expected: std::net::SocketAddr) {
    let peer = accept(listener).expect("the proxy connects");
    assert!(matches!(receive(&peer).0.message, Some(from_proxy::Message::Hello(_))));
    let port = wire::Port { id: "vf1".to_owned(), representor: "rep1".to_owned(), ..wire::Port::default() };
    let ports = wire::Ports {
        snapshot: true,
        changed: vec![port],
        removed_ids: vec![],
        uplink: "up0".to_owned(),
        host: String::new(),
    };
    let message = wire::FromDataplane { message: Some(from_dataplane::Message::Ports(ports)) };
    send(&peer, &message.encode_to_vec(), rustix::net::SendFlags::empty()).expect("send");
    let (message, address) = receive(&peer);
    assert!(matches!(message.message, Some(from_proxy::Message::RegisterListener(_))), "{message:?}");
    assert_eq!(address, Some(expected), "the very socket was passed");
    assert!(matches!(receive(&peer).0.message, Some(from_proxy::Message::PortReady(_))));
}

#[tokio::test]
async fn sockets_and_readiness_reach_every_dataplane_that_comes() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("steering.sock");
    let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
    bind(&listener, &SocketAddrUnix::new(&path).expect("path")).expect("bind");
    listen(&listener, 1).expect("listen");
    let own = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = own.local_addr().expect("address");
    let dataplane = tokio::task::spawn_blocking(move || {
        serve_once(&listener, address);
        serve_once(&listener, address);
    });
    let (client, mut events) = start(path);
    let socket = Arc::new(OwnedFd::from(own));
    let port = PortId("vf1".to_owned());
    while let Some(event) = events.recv().await {
        let Event::Ports(ports) = event else { break };
        assert_eq!(ports.uplink.as_deref(), Some("up0"));
        let device = Arc::clone(&ports.ports[&port].representor);
        let registration = Registration { port: Some(port.clone()), is_host: false, device, ifindex: 0, is_ipv4: true };
        let ready = Ready { workload: WorkloadUid("w".to_owned()), probed: BTreeMap::new() };
        let readiness = Readiness::from([(port.clone(), Ok(ready))]);
        client.offer(BTreeMap::from([(registration, Arc::clone(&socket))]), readiness, Standing::Serving);
    }
    // The second life of the dataplane hears at once what the first was told.
    dataplane.await.expect("both lives of the dataplane went as expected");
}
