//! HTTP/2 on either side.

use super::*;
use ::h2::RecvStream;
use ::h2::client::SendRequest;
use bytes::Bytes;

/// Echoes body and trailers, as gRPC servers do.
async fn echo(tcp: TcpStream) {
    let mut connection = ::h2::server::handshake(tcp).await.expect("handshake");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::task::spawn_local(async move {
            let (body, trailers) = collect(request.into_body()).await;
            let mut send = respond.send_response(::http::Response::new(()), false).expect("head");
            send.send_data(body, false).expect("data");
            send.send_trailers(trailers).expect("trailers");
        });
    }
}

async fn collect(mut body: RecvStream) -> (Bytes, ::http::HeaderMap) {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        body.flow_control().release_capacity(data.len()).expect("capacity");
        all.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.expect("trailers").unwrap_or_default();
    (all.into(), trailers)
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(address).await.expect("connect");
    let (client, driver) = ::h2::client::handshake(tcp).await.expect("handshake");
    tokio::task::spawn_local(driver);
    client
}

fn post(path: &str) -> ::http::Request<()> {
    ::http::Request::post(format!("http://h{path}")).body(()).expect("valid")
}

#[test]
fn streams_with_trailers_pass_at_once_over_one_upstream_connection() {
    run(async {
        let connections = Rc::new(std::cell::Cell::new(0));
        let count = Rc::clone(&connections);
        let upstream = backend(move |tcp| {
            count.set(count.get() + 1);
            echo(tcp)
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http2).await;
        let client = client(proxy).await;
        let calls = (0..20usize).map(|number| {
            let mut client = client.clone();
            async move {
                let (response, mut send) = client.send_request(post("/call"), false).expect("send");
                let body = Bytes::from(vec![number as u8; 100_000]);
                send.send_data(body.clone(), false).expect("data");
                let trailers = [("x-end", number.to_string())].map(|(name, value)| {
                    (::http::HeaderName::from_static(name), ::http::HeaderValue::from_str(&value).expect("valid"))
                });
                send.send_trailers(trailers.into_iter().collect()).expect("trailers");
                let (got, trailers) = collect(response.await.expect("response").into_body()).await;
                assert_eq!(got, body);
                assert_eq!(trailers["x-end"], number.to_string());
            }
        });
        futures_util::future::join_all(calls).await;
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn http2_is_translated_to_http1_and_back() {
    run(async {
        let upstream = backend(|mut tcp| async move {
            let request = read_until(&mut tcp, "0\r\n\r\n").await;
            assert!(request.starts_with("POST /x HTTP/1.1\r\nhost: h\r\n"), "{request}");
            assert!(request.contains("5\r\nhello\r\n"), "{request}");
            tcp.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nhi").await.expect("write");
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http1).await;
        let mut client = client(proxy).await;
        let (response, mut send) = client.send_request(post("/x"), false).expect("send");
        send.send_data(Bytes::from_static(b"hello"), true).expect("data");
        let response = response.await.expect("response");
        assert_eq!(response.status(), 201);
        assert_eq!(collect(response.into_body()).await.0, "hi");
    });
}

#[test]
fn http1_is_translated_to_http2_and_back() {
    run(async {
        let upstream = backend(echo).await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http2).await;
        let mut client = send(proxy, "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello").await;
        let answer = read_until(&mut client, "0\r\n\r\n").await;
        assert!(answer.contains("5\r\nhello\r\n"), "{answer}");
    });
}

#[test]
fn a_reset_upstream_stream_is_an_answer_before_the_head_and_a_reset_after_it() {
    run(async {
        let upstream = backend(|tcp| async move {
            let mut connection = ::h2::server::handshake(tcp).await.expect("handshake");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if request.uri().path() == "/before" {
                    respond.send_reset(::h2::Reason::INTERNAL_ERROR);
                } else {
                    let mut send = respond.send_response(::http::Response::new(()), false).expect("head");
                    tokio::task::spawn_local(async move {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        send.send_reset(::h2::Reason::INTERNAL_ERROR);
                    });
                }
            }
        })
        .await;
        let proxy = proxy_to(upstream, UpstreamProtocol::Http2).await;
        let mut client = client(proxy).await;
        let before = client.send_request(post("/before"), true).expect("send").0.await.expect("an answer");
        assert_eq!(before.status(), 503);
        let after = client.send_request(post("/after"), true).expect("send").0.await.expect("a head");
        let error = after.into_body().data().await.expect("an end").expect_err("a reset");
        assert!(error.is_reset(), "{error}");
    });
}
