//! Copies of requests.

use super::*;
use std::cell::RefCell;

/// Records whole requests that end with `end`, and answers them.
async fn recorder(end: &'static str, asked: &Rc<RefCell<Vec<String>>>) -> SocketAddr {
    let asked = Rc::clone(asked);
    backend(move |mut tcp| {
        let asked = Rc::clone(&asked);
        async move {
            let request = read_until(&mut tcp, end).await;
            asked.borrow_mut().push(request);
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("write");
        }
    })
    .await
}

async fn mirrored(upstream: SocketAddr, copy: SocketAddr) -> SocketAddr {
    let all = Fraction { numerator: 100, denominator: 100 };
    let action = RouteAction { mirrors: vec![Mirror { cluster: "b".into(), fraction: all }], ..forward("a") };
    let clusters = [("a", upstream), ("b", copy)];
    let clusters = clusters.map(|(name, address)| {
        let id = u64::from(address.port());
        cluster(id, name, address, UpstreamProtocol::Http1)
    });
    Proxy::new(manager(routes(vec![route("/", action)])), clusters.into()).listen().await
}

#[test]
fn a_copy_of_a_request_with_its_body_goes_to_another_cluster() {
    run(async {
        let (asked, copied) = (Rc::default(), Rc::default());
        let (upstream, copy) = (recorder("hello", &asked).await, recorder("hello", &copied).await);
        let proxy = mirrored(upstream, copy).await;
        let mut client = send(proxy, "POST /x HTTP/1.1\r\nhost: h:80\r\ncontent-length: 5\r\n\r\nhello").await;
        assert!(read_until(&mut client, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
        while copied.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(copied.borrow()[0].contains("host: h-shadow:80\r\n"), "{copied:?}");
        assert!(asked.borrow()[0].contains("host: h:80\r\n"), "{asked:?}");
    });
}

#[test]
fn a_copy_that_nobody_takes_harms_nobody() {
    run(async {
        let asked = Rc::default();
        let upstream = recorder("world", &asked).await;
        // Accepts and never reads: the copy falls behind, the request does not.
        let stuck = backend(|tcp| async move {
            tokio::time::sleep(Duration::from_secs(30)).await;
            drop(tcp);
        })
        .await;
        let proxy = mirrored(upstream, stuck).await;
        let body = "x".repeat(16 << 20) + "world";
        let head = format!("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut client = send(proxy, &head).await;
        client.write_all(body.as_bytes()).await.expect("write");
        assert!(read_until(&mut client, "ok").await.starts_with("HTTP/1.1 200 OK\r\n"));
    });
}
