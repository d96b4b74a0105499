//! What a kubelet sends passes, and nothing that looks like it.

use super::http2::{Guard, Refused, acknowledgement};
use super::*;

const GET: &[u8] = b"GET /healthz?full=1 HTTP/1.1\r\nHost: 10.1.0.1:8080\r\nUser-Agent: kube-probe/1.35\r\nAccept: */*\r\nConnection: close\r\n\r\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];

fn http() -> ProbeKind {
    ProbeKind::Http { path: "/healthz?full=1".to_owned() }
}

fn judged(kinds: &[ProbeKind], bytes: &[u8]) -> Verdict {
    let opening = Opening { bytes, has_ended: false, is_greeted: false };
    judge(&kinds.iter().collect::<Vec<_>>(), opening)
}

fn ended(kinds: &[ProbeKind], bytes: &[u8]) -> Verdict {
    let opening = Opening { bytes, has_ended: true, is_greeted: false };
    judge(&kinds.iter().collect::<Vec<_>>(), opening)
}

fn greeted(bytes: &[u8]) -> Verdict {
    judge(&[&ProbeKind::Grpc], Opening { bytes, has_ended: false, is_greeted: true })
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// `POST http PATH 10.1.0.1:9090 application/grpc`, as Go writes it.
fn block(path: &[u8]) -> Vec<u8> {
    let authority = b"\x41\x89\x08\x17\x0a\xe0\x5c\x37\x1f\x03\xe0";
    [&[0x83, 0x86, 0x44, path.len() as u8][..], path, authority].concat()
}

fn raw_block(path: &str) -> Vec<u8> {
    block(path.as_bytes())
}

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// The same, encoded by another implementation (Python's hpack 4.1).
const CHECK_BLOCK: &[u8] = b"\x83\x86\x44\x95\x62\x6b\x2b\x22\xf3\x94\x74\x26\x75\xfb\x85\x7c\x65\x1d\x09\x9d\x8b\xd3\x94\x9d\x7f\x41\x89\x08\x17\x0a\xe0\x5c\x37\x1f\x03\xe0\x5f\x8b\x1d\x75\xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64\x7a\x95\xeb\x6c\x65\x5a\xbb\x0f\x19\x58\x0a\xec\xb6\xa4\xd6\x56\x45\xa6\x3b\x01\x5d\xd1\x7f\x40\x82\x49\x7f\x86\x4d\x83\x35\x05\xb1\x1f";

fn call(block: &[u8]) -> Vec<u8> {
    [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 4, 1, block)].concat()
}

#[test]
fn a_get_of_the_path_is_a_probe_when_its_head_is_whole() {
    for end in 1..GET.len() {
        assert_eq!(judged(&[http()], &GET[..end]), Verdict::More, "{end}");
        assert_eq!(ended(&[http()], &GET[..end]), Verdict::Other, "{end}");
    }
    assert_eq!(judged(&[http()], GET), Verdict::Probe(Known::Http));
    assert_eq!(judged(&[ProbeKind::Grpc, ProbeKind::Tcp, http()], GET), Verdict::Probe(Known::Http));
}

#[test]
fn what_is_not_a_get_of_the_path_alone_is_no_probe() {
    let text = |from: &str, to: &str| String::from_utf8_lossy(GET).replace(from, to).into_bytes();
    for (bytes, what) in [
        (text("GET", "POST"), "another method"),
        (text("/healthz", "/admin"), "another path"),
        (text("?full=1", "?full=1&more"), "a longer path"),
        (text("?full=1", ""), "a shorter path"),
        (text("HTTP/1.1\r", "HTTP/1.1\n"), "a line that ends otherwise"),
        (text("*/*\r\n", "*/*\n\nGET /admin HTTP/1.1\r\n"), "a second request, for who takes a bare LF"),
        (text("*/*\r\n", "*/*\r\rGET /admin HTTP/1.1\r\n"), "a second request, for who takes a bare CR"),
        (text("*/*", "\0"), "a NUL"),
        ([GET, b"G"].concat(), "a byte more"),
        (b"\x16\x03\x01".to_vec(), "TLS"),
    ] {
        assert_eq!(judged(&[http()], &bytes), Verdict::Other, "{what}");
    }
    let long = [b"GET /healthz?full=1 HTTP/1.1\r\nA: ".as_slice(), &vec![b'a'; 20_000]].concat();
    assert_eq!(judged(&[http()], &long), Verdict::Other, "no end of the head");
    assert_eq!(judged(&[ProbeKind::Tcp, ProbeKind::Grpc], GET), Verdict::Other, "no such probe");
}

#[test]
fn a_tcp_probe_sends_nothing() {
    assert_eq!(judged(&[ProbeKind::Tcp], b""), Verdict::More);
    assert_eq!(ended(&[ProbeKind::Tcp], b""), Verdict::Probe(Known::Tcp));
    assert_eq!(judged(&[ProbeKind::Tcp], b"x"), Verdict::Other);
    assert_eq!(ended(&[http()], b""), Verdict::Other);
}

#[test]
fn tls_is_a_probe_only_where_one_asks_with_it() {
    assert_eq!(judged(&[ProbeKind::Https], b"\x16\x03"), Verdict::Probe(Known::Https));
    assert_eq!(judged(&[ProbeKind::Https], GET), Verdict::Other);
}

#[test]
fn a_health_check_is_a_probe_and_another_call_is_not() {
    for (block, verdict) in [
        (CHECK_BLOCK.to_vec(), Verdict::Probe(Known::Grpc)),
        (raw_block(CHECK), Verdict::Probe(Known::Grpc)),
        (raw_block("/grpc.health.v1.Health/Watch"), Verdict::Other),
        (raw_block("/lab.ratings.v1.Ratings/Get"), Verdict::Other),
        ([raw_block(CHECK), raw_block("/a")].concat(), Verdict::Other),
        // `:path: /` of the static table, and the check's path as the value of another header.
        ([&[0x83, 0x84, 0x00, 1, b'a', CHECK.len() as u8], CHECK.as_bytes()].concat(), Verdict::Other),
        // GET instead of POST, both, and a method as a text.
        ([&[0x82], &raw_block(CHECK)[1..]].concat(), Verdict::Other),
        ([&[0x82], raw_block(CHECK).as_slice()].concat(), Verdict::Other),
        ([&[0x42, 3, b'G', b'E', b'T'], raw_block(CHECK).as_slice()].concat(), Verdict::Other),
        // A second `:path` by its name, plain and in Huffman's code.
        ([raw_block(CHECK).as_slice(), b"\x00\x05:path\x02/a"].concat(), Verdict::Other),
        ([raw_block(CHECK).as_slice(), b"\x00\x84\xb9\x58\xd3\x3f\x02/a"].concat(), Verdict::Other),
        // An entry of the dynamic table, and a length that is cut off.
        ([raw_block(CHECK).as_slice(), &[0xbe]].concat(), Verdict::Other),
        (raw_block(CHECK)[..20].to_vec(), Verdict::Other),
        (vec![0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Verdict::Other),
        (Vec::new(), Verdict::Other),
    ] {
        assert_eq!(judged(&[ProbeKind::Grpc], &call(&block)), verdict, "{block:02x?}");
        assert_eq!(judged(&[http()], &call(&block)), Verdict::Other);
    }
}

#[test]
fn a_client_that_waits_for_the_server_is_greeted_and_its_answer_to_that_is_found() {
    let opening = [PREFACE, &frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])].concat();
    assert_eq!(judged(&[ProbeKind::Grpc], &opening[..10]), Verdict::More);
    assert_eq!(judged(&[ProbeKind::Grpc], &opening), Verdict::Greet);
    assert_eq!(greeted(&opening), Verdict::More);
    let headers = frame(1, 4, 1, CHECK_BLOCK);
    let called = [opening.as_slice(), &headers].concat();
    assert_eq!(greeted(&called), Verdict::More, "its acknowledgement has not come");
    let whole = [opening.as_slice(), &ACK, &headers].concat();
    assert_eq!(greeted(&whole), Verdict::Probe(Known::Grpc));
    assert_eq!(acknowledgement(&whole), Some(opening.len()..opening.len() + 9));
    assert_eq!(acknowledgement(&called), None);
    let other = [opening.as_slice(), &ACK, &frame(1, 4, 1, &raw_block("/other"))].concat();
    assert_eq!(greeted(&other), Verdict::Other);
}

#[test]
fn headers_in_parts_on_another_stream_or_with_padding_are_read_or_refused() {
    let judged = |frame: Vec<u8>| judged(&[ProbeKind::Grpc], &[PREFACE, &frame].concat());
    let probe = Verdict::Probe(Known::Grpc);
    assert_eq!(judged(frame(1, 0, 1, CHECK_BLOCK)), Verdict::Other, "CONTINUATION follows");
    assert_eq!(judged(frame(1, 4, 3, CHECK_BLOCK)), Verdict::Other, "stream 3");
    assert_eq!(judged(frame(1, 4 | 8, 1, &[&[2], CHECK_BLOCK, &[0, 0]].concat())), probe);
    assert_eq!(judged(frame(1, 4 | 8, 1, &[255, 1])), Verdict::Other, "more padding than frame");
    assert_eq!(judged(frame(1, 4 | 0x20, 1, &[&[0, 0, 0, 0, 9], CHECK_BLOCK].concat())), probe);
    assert_eq!(judged(vec![1, 0, 0, 0, 0, 0, 0, 0, 0]), Verdict::Other, "a frame of 64 KiB");
}

#[test]
fn after_the_check_no_other_call_passes() {
    let mut guard = Guard::default();
    let first = call(CHECK_BLOCK);
    assert_eq!(guard.pass(&first), Ok(first.len()));
    let data = frame(0, 1, 1, &[0; 5]);
    assert_eq!(guard.pass(&data[..12]), Ok(0), "the frame is not whole");
    let more = [data.as_slice(), &ACK, &frame(6, 1, 0, &[0; 8]), &frame(7, 0, 0, &[0; 8]), &[0, 0]].concat();
    assert_eq!(guard.pass(&more), Ok(more.len() - 2));
    assert_eq!(guard.pass(&frame(1, 4, 3, CHECK_BLOCK)), Err(Refused));
    for other in [frame(0, 0, 3, b"x"), frame(9, 4, 1, b""), frame(5, 4, 1, b"")] {
        let mut guard = Guard::default();
        guard.pass(&first).expect("the check");
        assert_eq!(guard.pass(&other), Err(Refused));
    }
    assert_eq!(Guard::default().pass(&call(&raw_block("/other"))), Err(Refused));
    assert_eq!(Guard::default().pass(&PREFACE[..5]), Ok(0));
}
