//! What the fabric carried, judged frame by frame; pure.
//!
//! Every TCP stream between pods must be TLS records from its first byte to its last. Bytes that are not are
//! counted, as are frames that contain the applications' marker, and source addresses that no pod has.

use crate::apps::MARKER;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub frames: u64,
    /// TCP payload, in bytes.
    pub tcp_bytes: u64,
    /// Of these: inside TLS records.
    pub tls_bytes: u64,
    /// Not in a TLS record.
    pub plaintext_bytes: u64,
    /// After a gap in what was captured: only searched for the marker.
    pub unjudged_bytes: u64,
    /// Frames that contain the marker.
    pub marker_frames: u64,
    /// TCP streams (each direction is one).
    pub streams: u64,
    /// IPv4 source addresses and their frames.
    pub sources: BTreeMap<Ipv4Addr, u64>,
    /// First frames of what should not be there, for a person.
    pub suspects: BTreeSet<String>,
}

/// Judges frames one after another.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    seen: Seen,
    streams: HashMap<(Ipv4Addr, u16, Ipv4Addr, u16), Stream>,
}

/// One direction of a connection: where the next byte belongs.
#[derive(Clone, Debug)]
enum Stream {
    /// In order so far. `left` bytes of the current record; `head` of the next one.
    Ordered { next: u32, left: usize, head: Vec<u8> },
    /// A gap, or it was open before the capture began.
    Lost,
}

/// IP protocol number.
const IGMP: u8 = 2;

struct Segment<'a> {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    sequence: u32,
    is_syn: bool,
    payload: &'a [u8],
}

impl Judge {
    /// What was seen until now.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Takes an Ethernet frame.
    pub fn take(&mut self, frame: &[u8]) {
        self.seen.frames += 1;
        let has_marker = contains(frame, MARKER.as_bytes());
        self.seen.marker_frames += u64::from(has_marker);
        let Some(packet) = ipv4(frame) else { return };
        let source = Ipv4Addr::from([packet[12], packet[13], packet[14], packet[15]]);
        // A link that comes up without an address reports its groups so (RFC 3376, section 4.2.13).
        let is_group_report = source.is_unspecified() && packet[9] == IGMP;
        if !is_group_report {
            *self.seen.sources.entry(source).or_default() += 1;
        }
        if let Some(segment) = tcp(packet) {
            self.segment(&segment);
        }
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        let key = (segment.from.0, segment.from.1, segment.to.0, segment.to.1);
        if segment.is_syn {
            let next = segment.sequence.wrapping_add(1);
            self.streams.insert(key, Stream::Ordered { next, left: 0, head: Vec::new() });
            self.seen.streams += 1;
            return;
        }
        if segment.payload.is_empty() {
            return;
        }
        let stream = self.streams.entry(key).or_insert(Stream::Lost);
        let (total, counted) = (segment.payload.len() as u64, stream.judge(segment));
        let Counted { tls, plaintext, repeated } = counted;
        self.seen.tcp_bytes += total;
        self.seen.tls_bytes += tls;
        self.seen.plaintext_bytes += plaintext;
        self.seen.unjudged_bytes += total - tls - plaintext - repeated;
        if plaintext > 0 && self.seen.suspects.len() < 5 {
            let start: String = segment.payload.iter().take(40).map(|byte| byte.escape_ascii().to_string()).collect();
            self.seen.suspects.insert(format!("{}:{} → {}:{}: {start}", key.0, key.1, key.2, key.3));
        }
    }
}

#[derive(Default)]
struct Counted {
    tls: u64,
    plaintext: u64,
    repeated: u64,
}

impl Stream {
    fn judge(&mut self, segment: &Segment<'_>) -> Counted {
        let Self::Ordered { next, left, head } = self else { return Counted::default() };
        let ahead = segment.sequence.wrapping_sub(*next) as i32;
        if ahead > 0 {
            *self = Self::Lost;
            return Counted::default();
        }
        // Retransmitted bytes were judged before.
        let known = (ahead.unsigned_abs() as usize).min(segment.payload.len());
        let fresh = &segment.payload[known..];
        *next = next.wrapping_add(fresh.len() as u32);
        let plaintext = records(fresh, left, head) as u64;
        Counted { tls: fresh.len() as u64 - plaintext, plaintext, repeated: known as u64 }
    }
}

/// Walks over TLS records (RFC 8446, section 5.1); the number of bytes that belong to none.
fn records(mut bytes: &[u8], left: &mut usize, head: &mut Vec<u8>) -> usize {
    while !bytes.is_empty() {
        let body = (*left).min(bytes.len());
        *left -= body;
        bytes = &bytes[body..];
        let missing = (5 - head.len()).min(bytes.len());
        head.extend_from_slice(&bytes[..missing]);
        if !is_record_head(head) {
            let wrong = bytes.len();
            head.clear();
            return wrong;
        }
        bytes = &bytes[missing..];
        if head.len() == 5 {
            *left = usize::from(u16::from_be_bytes([head[3], head[4]]));
            head.clear();
        }
    }
    0
}

/// Content type 20 to 24, version 3.1 to 3.4, at most 2^14 + 256 bytes: as far as it is there.
fn is_record_head(head: &[u8]) -> bool {
    let length = || usize::from(u16::from_be_bytes([head[3], head[4]]));
    head.first().is_none_or(|kind| (20..=24).contains(kind))
        && head.get(1).is_none_or(|major| *major == 3)
        && head.get(2).is_none_or(|minor| (1..=4).contains(minor))
        && (head.len() < 5 || length() <= (1 << 14) + 256)
}

fn ipv4(frame: &[u8]) -> Option<&[u8]> {
    let is_ipv4 = frame.get(12..14)? == [0x08, 0x00];
    let packet = frame.get(14..).filter(|packet| is_ipv4 && packet.len() >= 20)?;
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    // Zero: larger than 64 KiB, by segmentation offload.
    packet.get(..if length == 0 { packet.len() } else { length.min(packet.len()) })
}

fn tcp(packet: &[u8]) -> Option<Segment<'_>> {
    let header = usize::from(packet[0] & 0x0f) * 4;
    let segment = packet.get(header..).filter(|rest| packet[9] == 6 && rest.len() >= 20)?;
    let address = |at: usize| Ipv4Addr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    Some(Segment {
        from: (address(12), port(0)),
        to: (address(16), port(2)),
        sequence: u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]),
        is_syn: segment[13] & 0x02 != 0,
        payload: segment.get(usize::from(segment[12] >> 4) * 4..)?,
    })
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 244, 1, 10, 10, 244, 2, 10]);
        frame.extend([0x80, 0, 0x23, 0x78]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn judged(frames: &[Vec<u8>]) -> Seen {
        let mut judge = Judge::default();
        frames.iter().for_each(|frame| judge.take(frame));
        judge.seen().clone()
    }

    const SYN: u8 = 2;

    #[test]
    fn records_may_be_cut_anywhere() {
        let records = [22, 3, 1, 0, 3, 1, 2, 3, 23, 3, 3, 0, 2, 9, 9];
        for cut in 1..records.len() {
            let (one, two) = records.split_at(cut);
            let seen = judged(&[frame(6, SYN, &[]), frame(7, 0, one), frame(7 + cut as u32, 0, two)]);
            assert_eq!((seen.tls_bytes, seen.plaintext_bytes, seen.unjudged_bytes), (15, 0, 0), "cut at {cut}");
        }
    }

    #[test]
    fn plaintext_is_counted_and_shown() {
        let seen = judged(&[frame(6, SYN, &[]), frame(7, 0, b"GET / HTTP/1.1\r\n")]);
        assert_eq!((seen.plaintext_bytes, seen.tls_bytes), (16, 0));
        assert!(seen.suspects.iter().any(|text| text.contains("GET /")));
    }

    #[test]
    fn a_repeated_segment_is_judged_once_and_a_gap_ends_the_judgement() {
        let record = [23, 3, 3, 0, 1, 7];
        let seen = judged(&[frame(6, SYN, &[]), frame(7, 0, &record), frame(7, 0, &record), frame(40, 0, &record)]);
        assert_eq!((seen.tls_bytes, seen.plaintext_bytes, seen.unjudged_bytes), (6, 0, 6));
    }

    #[test]
    fn the_marker_is_found_wherever_it_is() {
        let seen = judged(&[frame(1, 0, MARKER.as_bytes())]);
        assert_eq!(seen.marker_frames, 1);
    }
}
