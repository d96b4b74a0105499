//! HTTP/1.1 to HTTP/1.1.

use super::*;
use std::cell::Cell;

/// Answers every request without body by its path, on as many connections as come.
async fn echo_paths(mut tcp: TcpStream) {
    loop {
        let head = read_until(&mut tcp, "\r\n\r\n").await;
        let Some(path) = head.split(' ').nth(1) else { return };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
        tcp.write_all(answer.as_bytes()).await.expect("write");
    }
}

const GET: &str = "GET /one HTTP/1.1\r\nhost: h\r\n\r\n";

#[test]
fn requests_of_one_connection_are_answered_in_order_also_when_pipelined() {
    run(async {
        let connections = Rc::new(Cell::new(0));
        let count = Rc::clone(&connections);
        let upstream = backend(move |tcp| {
            count.set(count.get() + 1);
            echo_paths(tcp)
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client = send(proxy, &format!("{GET}GET /two HTTP/1.1\r\nhost: h\r\n\r\n")).await;
        let both = read_until(&mut client, "/two").await;
        assert!(both.contains("/oneHTTP/1.1 200 OK\r\n"), "{both}");
        client.write_all(GET.as_bytes()).await.expect("write");
        assert!(read_until(&mut client, "/one").await.starts_with("HTTP/1.1 200 OK"));
        assert_eq!(connections.get(), 1, "the upstream connection is used again");
    });
}

#[test]
fn a_chunked_body_passes_both_ways() {
    run(async {
        let upstream = backend(|mut tcp| async move {
            let request = read_until(&mut tcp, "0\r\n\r\n").await;
            assert!(request.contains("transfer-encoding: chunked\r\n"), "{request}");
            assert!(request.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{request}");
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
            tcp.write_all(answer.as_bytes()).await.expect("write");
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client =
            send(proxy, "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
                .await;
        let answer = read_until(&mut client, "0\r\n\r\n").await;
        assert!(answer.ends_with("\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), "{answer}");
    });
}

#[test]
fn large_bodies_pass_both_ways_with_bounded_memory() {
    const SIZE: usize = 8 << 20;
    run(async {
        let upstream = backend(|mut tcp| async move {
            let (_, mut body) = read_until_head(&mut tcp).await;
            while body.len() < SIZE {
                assert!(tcp.read_buf(&mut body).await.expect("read") > 0);
            }
            tcp.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n").as_bytes())
                .await
                .expect("write");
            tcp.write_all(&body).await.expect("write");
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client = send(proxy, &format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {SIZE}\r\n\r\n")).await;
        let body: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
        client.write_all(&body).await.expect("write");
        let head = read_until_head(&mut client).await;
        assert!(head.0.starts_with("HTTP/1.1 200"), "{}", head.0);
        let mut got = head.1;
        while got.len() < SIZE {
            assert!(client.read_buf(&mut got).await.expect("read") > 0);
        }
        assert!(got == body);
    });
}

async fn read_until_head(tcp: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return (String::from_utf8_lossy(&bytes).into_owned(), rest);
        }
        assert!(tcp.read_buf(&mut bytes).await.expect("read") > 0);
    }
}

#[test]
fn an_upstream_that_closes_without_an_answer_is_a_503() {
    run(async {
        let upstream = backend(|mut tcp| async move {
            read_until(&mut tcp, "\r\n\r\n").await;
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client = send(proxy, GET).await;
        let answer = read_until(&mut client, "connection termination").await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    });
}

#[test]
fn nobody_at_the_endpoint_is_a_503() {
    run(async {
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
        let proxy = proxy_to(gone, UpstreamProtocol::Http1).await;
        let mut client = send(proxy, GET).await;
        let answer = read_until(&mut client, "reset reason: remote connection failure").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    });
}

#[test]
fn a_response_that_is_cut_short_is_seen_as_cut_short() {
    run(async {
        let upstream = backend(|mut tcp| async move {
            read_until(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.expect("write");
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client = send(proxy, GET).await;
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.expect("read");
        assert!(all.ends_with(b"half"));
    });
}

#[test]
fn the_client_that_leaves_takes_its_request_along() {
    run(async {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let upstream = backend(move |mut tcp| {
            let sender = sender.clone();
            async move {
                read_until(&mut tcp, "\r\n\r\n").await;
                let ended = tcp.read_buf(&mut Vec::new()).await;
                sender.send(ended.is_ok_and(|count| count == 0)).expect("send");
            }
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        drop(send(proxy, GET).await);
        assert_eq!(receiver.recv().await, Some(true), "the upstream connection is closed");
    });
}

#[test]
fn a_slow_upstream_meets_the_routes_timeout() {
    run(async {
        let upstream = backend(|mut tcp| async move {
            read_until(&mut tcp, "\r\n\r\n").await;
            tokio::time::sleep(Duration::from_secs(30)).await;
        })
        .await;
        let action = RouteAction { timeout: Some(Duration::from_millis(50)), ..forward("a") };
        let manager = manager(routes(vec![route("/", action)]));
        let proxy = Proxy::new(manager, vec![cluster(1, "a", upstream, UpstreamProtocol::Http1)]).listen().await;
        let mut client = send(proxy, GET).await;
        let answer = read_until(&mut client, "upstream request timeout").await;
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    });
}

#[test]
fn a_malformed_request_gets_an_answer_and_the_connection_ends() {
    run(async {
        let upstream = backend(echo_paths).await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client =
            send(proxy, "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut all = String::new();
        client.read_to_string(&mut all).await.expect("read");
        assert!(all.starts_with("HTTP/1.1 400") && all.contains("connection: close\r\n"), "{all}");
    });
}

#[test]
fn a_websocket_is_a_tunnel_after_the_101() {
    run(async {
        let upstream = backend(|mut tcp| async move {
            let head = read_until(&mut tcp, "\r\n\r\n").await;
            assert!(head.contains("upgrade: websocket\r\n"), "{head}");
            tcp.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello",
            )
            .await
            .expect("write");
            let mut four = [0; 4];
            tcp.read_exact(&mut four).await.expect("read");
            tcp.write_all(&four).await.expect("write");
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client =
            send(proxy, "GET / HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
        let answer = read_until(&mut client, "hello").await;
        assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("upgrade: websocket\r\n"), "{answer}");
        client.write_all(b"ping").await.expect("write");
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.expect("read");
        assert_eq!(rest, "ping");
    });
}
