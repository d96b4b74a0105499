//! Two loopback pairs with a relay between them.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
    (client, listener.accept().await.expect("accept").0)
}

/// Client, server, and the relay between them.
async fn between(limits: Limits) -> (TcpStream, TcpStream, impl Future<Output = Passed>) {
    let (client, near) = pair().await;
    let (far, server) = pair().await;
    (client, server, relay(Stream::from(near), Stream::from(far), limits))
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let (mut client, mut server, relaying) = between(Limits::default()).await;
    let talk = async {
        client.write_all(b"hello").await.expect("write");
        let mut five = [0; 5];
        server.read_exact(&mut five).await.expect("read");
        server.write_all(b"hi").await.expect("write");
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("read");
        drop(client);
        (five, answer)
    };
    let (passed, (five, answer)) = tokio::join!(relaying, talk);
    assert_eq!((&five[..], &answer[..]), (&b"hello"[..], &b"hi"[..]));
    assert_eq!(passed, Passed { forward: 5, backward: 2, ended: Ended::Closed });
}

#[tokio::test]
async fn one_side_may_end_while_the_other_still_sends() {
    let (mut client, mut server, relaying) = between(Limits::default()).await;
    let talk = async {
        client.write_all(b"question").await.expect("write");
        client.shutdown().await.expect("half close");
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.expect("the end was passed on");
        server.write_all(&vec![7; 3_000_000]).await.expect("write");
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("read");
        (question, answer.len())
    };
    let read_slowly = tokio::join!(relaying, talk);
    assert_eq!(read_slowly.1, (b"question".to_vec(), 3_000_000));
    assert_eq!(read_slowly.0.ended, Ended::Closed);
}

#[tokio::test]
async fn a_silent_connection_ends_at_its_idle_timeout() {
    let limits = Limits { idle: Some(Duration::from_millis(50)), total: None };
    let (_client, _server, relaying) = between(limits).await;
    assert_eq!(relaying.await.ended, Ended::IdleTimeout);
}

#[tokio::test]
async fn a_connection_ends_at_its_longest_duration_however_busy() {
    let limits = Limits { idle: None, total: Some(Duration::from_millis(50)) };
    let (mut client, mut server, relaying) = between(limits).await;
    let chatter = async {
        let mut one = [0; 1];
        while client.write_all(b"x").await.is_ok() && server.read_exact(&mut one).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (passed, ()) = tokio::join!(relaying, chatter);
    assert_eq!(passed.ended, Ended::TotalTimeout);
}
