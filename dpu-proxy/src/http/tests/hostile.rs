//! Clients that mean no good: each meets a limit that is told and counted, and others are served meanwhile.

use super::*;
use bytes::Bytes;
use std::cell::Cell;

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

/// A proxy whose upstream counts what it is asked.
struct Victim {
    proxy: SocketAddr,
    worker: Rc<Worker>,
    asked: Rc<Cell<u32>>,
}

impl Victim {
    async fn new(change: impl FnOnce(&mut HttpConnectionManager)) -> Self {
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let upstream = backend(move |mut tcp| {
            let count = Rc::clone(&count);
            async move {
                let mut head = Vec::new();
                // Whoever gives a request up closes its connection.
                while matches!(tcp.read_buf(&mut head).await, Ok(1..)) {
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        count.set(count.get() + 1);
                        let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    }
                }
            }
        })
        .await;
        let mut manager = manager(routes(vec![route("/", forward("a"))]));
        change(&mut manager);
        let proxy = Proxy::new(manager, vec![cluster(1, "a", upstream, UpstreamProtocol::Http1)]);
        let worker = Rc::clone(&proxy.worker);
        Self { proxy: proxy.listen().await, worker, asked }
    }

    /// Somebody else is served.
    async fn serves_others(&self) {
        let mut client = send(self.proxy, GET).await;
        let answer = read_until(&mut client, "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    fn counted(&self, name: &'static str) -> u64 {
        self.worker.stats.counter(name, &[("envoy_http_conn_manager_prefix", "test")]).get()
    }

    /// What the connection answers until it ends.
    async fn answers(&self, text: &[u8]) -> String {
        let mut client = TcpStream::connect(self.proxy).await.expect("connect");
        let (mut read, mut write) = client.split();
        let mut answer = Vec::new();
        // The proxy may close before it has read all.
        let (_, _) = tokio::join!(write.write_all(text), read.read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[test]
fn a_head_that_comes_too_slowly_is_answered_and_ends() {
    run(async {
        let victim = Victim::new(|manager| manager.request_headers_timeout = Some(Duration::from_millis(100))).await;
        for beginning in ["GET / HTTP/1.1\r\nho", "PRI * HT", "P"] {
            let mut client = send(victim.proxy, beginning).await;
            victim.serves_others().await;
            let answer = read_until(&mut client, "request header timeout").await;
            assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{beginning:?}: {answer}");
        }
        assert_eq!(victim.counted("envoy_http_downstream_rq_header_timeout"), 3);
    });
}

#[test]
fn heads_that_are_too_large_are_refused_before_they_are_read() {
    run(async {
        let victim = Victim::new(|_| ()).await;
        let long = format!("GET / HTTP/1.1\r\nhost: h\r\nx-long: {}\r\n\r\n", "a".repeat(10 << 20));
        let many = format!("GET / HTTP/1.1\r\nhost: h\r\n{}\r\n", "x-many: 1\r\n".repeat(100_000));
        let endless = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "a".repeat(10 << 20));
        for text in [long, many, endless] {
            let answer = victim.answers(text.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{answer}");
            victim.serves_others().await;
        }
        assert_eq!(victim.counted("envoy_http_downstream_cx_protocol_error"), 3);
    });
}

#[test]
fn what_two_parsers_could_read_differently_is_refused_and_never_forwarded() {
    run(async {
        let victim = Victim::new(|_| ()).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
        let heads = [
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: 5, 6\r\n",
            "content-length: +5\r\n",
            "content-length: 0x5\r\n",
            "content-length: -1\r\n",
            "content-length: 99999999999999999999999\r\n",
            "transfer-encoding : chunked\r\n",
            "transfer-encoding: xchunked\r\n",
            "transfer-encoding: chunked, identity\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
            "transfer-encoding: \u{b}chunked\r\n",
            "x: a\r\n transfer-encoding: chunked\r\n",
            "x: a\rtransfer-encoding: chunked\r\n",
            "x: a\0b\r\n",
            "x\0y: a\r\n",
            ": a\r\n",
            "host: other\r\n",
        ];
        for head in heads {
            let text = format!("POST / HTTP/1.1\r\nhost: h\r\n{head}\r\n{smuggled}");
            let answer = victim.answers(text.as_bytes()).await;
            let refused = ["HTTP/1.1 400 ", "HTTP/1.1 501 "].iter().any(|status| answer.starts_with(status));
            assert!(refused && answer.matches("HTTP/1.1 ").count() == 1, "{head:?}: {answer:?}");
        }
        assert_eq!(victim.asked.get(), 0, "nothing was forwarded");
        victim.serves_others().await;
    });
}

#[test]
fn garbage_is_answered_and_ends() {
    run(async {
        let victim = Victim::new(|_| ()).await;
        for garbage in [
            &b"\x16\x03\x01\x00\xff\x01\x00\x00\xfb\x03\x03"[..],
            b"\0\0\0\0\r\n\r\n",
            b"GET\r\n\r\n",
            b"\xff\xfe\xfd\n",
        ] {
            let answer = victim.answers(garbage).await;
            assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{garbage:?}: {answer}");
        }
        victim.serves_others().await;
    });
}

#[test]
fn streams_that_are_opened_and_given_up_at_once_end_the_connection() {
    run(async {
        let victim = Victim::new(|_| ()).await;
        let tcp = TcpStream::connect(victim.proxy).await.expect("connect");
        let (mut client, driver) = ::h2::client::handshake(tcp).await.expect("handshake");
        let driver = tokio::task::spawn_local(driver);
        for _ in 0..20_000 {
            let Ok(ready) = client.ready().await else { break };
            client = ready;
            let request = ::http::Request::post("http://h/").body(()).expect("valid");
            let Ok((_, mut body)) = client.send_request(request, false) else { break };
            tokio::task::yield_now().await;
            body.send_reset(::h2::Reason::CANCEL);
        }
        let ended = tokio::time::timeout(Duration::from_secs(10), driver).await.expect("it ends").expect("joined");
        let reason = ended.expect_err("the proxy ends it").reason();
        assert_eq!(reason, Some(::h2::Reason::ENHANCE_YOUR_CALM));
        victim.serves_others().await;
    });
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

#[test]
fn a_head_in_endless_continuations_ends_the_connection() {
    run(async {
        let victim = Victim::new(|_| ()).await;
        let mut text = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, &[0x82])].concat();
        for _ in 0..100_000 {
            text.extend(frame(CONTINUATION, 0, 1, &[0x40, 1, b'x', 1, b'y']));
        }
        victim.answers(&text).await;
        victim.serves_others().await;
        assert_eq!(victim.counted("envoy_http_downstream_cx_protocol_error"), 1);
    });
}

#[test]
fn floods_of_control_frames_hold_neither_memory_nor_other_connections() {
    run(async {
        let victim = Victim::new(|_| ()).await;
        for (kind, payload) in [(SETTINGS, &[][..]), (PING, &[0; 8])] {
            let mut flood = TcpStream::connect(victim.proxy).await.expect("connect");
            flood.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.expect("write");
            let many = Bytes::from(frame(kind, 0, 0, payload).repeat(10_000));
            let mut written = 0usize;
            // Answers are never read: in the end the proxy takes no more.
            while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(300), flood.write_all(&many)).await {
                written += many.len();
                assert!(written < 256 << 20, "the proxy takes and keeps everything");
            }
            victim.serves_others().await;
        }
    });
}
