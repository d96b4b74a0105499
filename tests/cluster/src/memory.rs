//! The memory of a process, searched for certificates of workloads and for their private keys.
//!
//! In: what a process may write to. Out: public keys (P-256, uncompressed points) of certificates that name a workload, and
//! those of private keys in any form that a program keeps them in: PKCS#8 or SEC1 in DER, PEM, and the bare number as
//! cryptographic libraries calculate with it (four machine words, the lowest first). What is found is judged by its public
//! key, which is calculated from it, so that nothing is taken for a key that is none.

use anyhow::{Context, Result};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// An uncompressed point, without the byte that says so.
pub type PublicKey = Vec<u8>;

/// Stands before the point in a certificate: a P-256 key (RFC 5480).
const POINT: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04";
/// Stands before the number in SEC1 and in PKCS#8 (RFC 5915): version 1, then 32 bytes.
const NUMBER: &[u8] = b"\x02\x01\x01\x04\x20";
/// PKCS#8 of a P-256 key without its public half, up to the number.
const PKCS8: &[u8] =
    b"\x30\x41\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04\x27\x30\x25\x02\x01\x01\x04\x20";
const PEM: &[u8] = b"-----BEGIN ";
const PEM_END: &[u8] = b"PRIVATE KEY-----\n";
/// Longest PEM text of such a key, in bytes.
const PEM_LIMIT: usize = 400;
/// Bytes of a page of memory.
const PAGE: u64 = 4096;
/// Bytes of a number or a coordinate.
const SIZE: usize = 32;
/// In a certificate the names come after the key, within so many bytes.
const NAMES_WITHIN: usize = 700;
/// A name of a workload.
const WORKLOAD: &[u8] = b"spiffe://cluster.local/ns/";

/// Memory of one process, as it was.
pub struct Memory {
    regions: Vec<Vec<u8>>,
}

impl Memory {
    /// Reads what is there: allocators reserve more than they use.
    pub fn of(pid: i32) -> Result<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("process {pid}"))?;
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}")).with_context(|| format!("process {pid}"));
        let (memory, pages) = (open("mem")?, open("pagemap")?);
        let used = maps.lines().filter_map(writable).flat_map(|region| used(&pages, region));
        let regions = used.filter_map(|(start, end)| {
            let mut bytes = vec![0; usize::try_from(end - start).ok()?];
            // A region may go while others are read.
            memory.read_exact_at(&mut bytes, start).ok().map(|()| bytes)
        });
        Ok(Self { regions: regions.collect() })
    }

    /// Size, in MiB.
    pub fn mib(&self) -> usize {
        self.regions.iter().map(Vec::len).sum::<usize>() >> 20
    }

    /// Public keys of certificates, and of requests for them, by the workload that they name.
    pub fn certificates(&self) -> BTreeMap<PublicKey, String> {
        let points = self.after(POINT, 2 * SIZE + NAMES_WITHIN);
        points.filter_map(|found| Some((found.get(..2 * SIZE)?.to_vec(), named(&found[2 * SIZE..])?))).collect()
    }

    /// Which of these public keys it has the private halves of.
    pub fn private_keys(&self, of: &BTreeMap<PublicKey, String>) -> BTreeSet<PublicKey> {
        let encoded = self.after(NUMBER, SIZE).filter_map(|found| public_key(&found[..SIZE]));
        let texts = self.after(PEM, PEM_LIMIT).filter_map(of_text);
        let bare = self.numbers().filter_map(|number| public_key(&number));
        encoded.chain(texts).chain(bare).filter(|key| of.contains_key(key)).collect()
    }

    /// What comes after each occurrence of some bytes: `length` bytes, or fewer at the end of a region, but those of a number.
    fn after<'a>(&'a self, pattern: &'a [u8], length: usize) -> impl Iterator<Item = &'a [u8]> {
        let within = move |region: &'a Vec<u8>| {
            let starts = region.windows(pattern.len()).enumerate().filter(move |(_, bytes)| *bytes == pattern);
            starts.map(move |(start, _)| {
                let rest = &region[start + pattern.len()..];
                &rest[..length.min(rest.len())]
            })
        };
        self.regions.iter().flat_map(within).filter(|found| found.len() >= SIZE)
    }

    /// What may be a bare number, highest byte first.
    fn numbers(&self) -> impl Iterator<Item = Vec<u8>> {
        let within = |region: &Vec<u8>| {
            let words = region.windows(SIZE).enumerate().step_by(8);
            let likely = words.filter(|(at, bytes)| is_random(bytes) && stands_alone(region, *at));
            likely.map(|(_, bytes)| bytes.iter().rev().copied().collect()).collect::<Vec<_>>()
        };
        self.regions.iter().flat_map(within)
    }
}

/// Start and end of a region that the process may write to.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split(' ');
    let (range, rights) = (words.next()?, words.next()?);
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    rights.starts_with("rw").then_some((number(start)?, number(end)?))
}

/// Parts of a region that are in memory or swapped: `/proc/PID/pagemap` has eight bytes a page, the two highest bits say so.
fn used(pages: &File, (start, end): (u64, u64)) -> Vec<(u64, u64)> {
    let first = start / PAGE;
    let mut entries = vec![0; ((end - start) / PAGE * 8) as usize];
    if pages.read_exact_at(&mut entries, first * 8).is_err() {
        return Vec::new();
    }
    let is_used = entries.chunks_exact(8).map(|entry| entry[7] & 0xc0 != 0);
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for (page, _) in (first..).zip(is_used).filter(|(_, is_used)| *is_used) {
        match parts.last_mut() {
            Some((_, end)) if *end == page * PAGE => *end += PAGE,
            _ => parts.push((page * PAGE, (page + 1) * PAGE)),
        }
    }
    parts
}

/// The workload among the names of a certificate: a URI with its length before it.
fn named(bytes: &[u8]) -> Option<String> {
    let start = bytes.windows(WORKLOAD.len()).position(|part| part == WORKLOAD)?;
    let length = usize::from(*bytes.get(start.checked_sub(1)?)?);
    String::from_utf8(bytes.get(start..start + length)?.to_vec()).ok()
}

/// Whether a number that was drawn at random looks so: of ten thousand such, two don't. Addresses, texts, counters and
/// zeros don't, which saves most of the calculations.
fn is_random(bytes: &[u8]) -> bool {
    let (mut seen, mut high) = ([false; 256], 0);
    for byte in bytes {
        seen[usize::from(*byte)] = true;
        high += usize::from(*byte >= 0x80);
    }
    high >= 6 && seen.iter().filter(|is_seen| **is_seen).count() >= 24
}

/// Before or after a number is something small (the size of an allocation, a length, a flag, nothing), unlike within a
/// longer text of random bytes, such as an encrypted message.
fn stands_alone(region: &[u8], at: usize) -> bool {
    let is_small = |word: Option<&[u8]>| word.is_none_or(|word| word.iter().filter(|byte| **byte == 0).count() >= 4);
    is_small(at.checked_sub(8).and_then(|before| region.get(before..at)))
        || is_small(region.get(at + SIZE..at + SIZE + 8))
}

/// The public key of a number.
fn public_key(number: &[u8]) -> Option<PublicKey> {
    let encoded = [PKCS8, number].concat();
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&encoded.as_slice().into(), &PKCS_ECDSA_P256_SHA256).ok()?;
    Some(pair.der_bytes()[1..].to_vec())
}

fn of_text(bytes: &[u8]) -> Option<PublicKey> {
    let begin = bytes.windows(PEM_END.len()).position(|part| part == PEM_END)? + PEM_END.len();
    let end = bytes.windows(PEM.len()).position(|part| part == b"-----END EC" || part == b"-----END PR")?;
    let text = std::str::from_utf8(bytes.get(begin..end)?).ok()?;
    let text = format!("-----BEGIN PRIVATE KEY-----\n{text}-----END PRIVATE KEY-----\n");
    let pair = KeyPair::from_pem(&text).ok()?;
    pair.der_bytes().get(1..).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, SanType};

    const NAME: &str = "spiffe://cluster.local/ns/a/sa/b";

    fn number(pair: &KeyPair) -> Vec<u8> {
        let encoded = pair.serialize_der();
        let start = encoded.windows(NUMBER.len()).position(|part| part == NUMBER).expect("a P-256 key") + NUMBER.len();
        encoded[start..start + SIZE].to_vec()
    }

    fn memory(parts: &[&[u8]]) -> Memory {
        Memory { regions: vec![[parts.concat(), vec![0; 800]].concat()] }
    }

    #[test]
    fn a_key_is_found_in_every_form_and_known_by_its_certificate() {
        let pair = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(NAME.try_into().expect("ascii"))];
        let certificate = params.self_signed(&pair).expect("a certificate");
        let certificates = memory(&[b"x", certificate.der()]).certificates();
        assert_eq!(certificates.values().collect::<Vec<_>>(), [NAME]);
        let words: Vec<u8> = number(&pair).into_iter().rev().collect();
        for form in [pair.serialize_der(), pair.serialize_pem().into_bytes(), words] {
            let found = memory(&[&[0; 8], &form]).private_keys(&certificates);
            assert_eq!(found.len(), 1, "{form:x?}");
        }
        assert_eq!(memory(&[certificate.der()]).private_keys(&certificates).len(), 0);
        let other = KeyPair::generate().expect("a key").serialize_der();
        assert_eq!(memory(&[&other]).private_keys(&certificates).len(), 0);
    }

    #[test]
    fn the_memory_of_a_process_is_read_where_it_may_write() {
        let line = "7f00-8f00 rw-p 00000000 00:00 0 [heap]";
        assert_eq!(writable(line), Some((0x7f00, 0x8f00)));
        assert_eq!(writable("7f00-8f00 r-xp 00000000 00:00 0 /bin/x"), None);
        let secret = b"a text that is on this heap".repeat(4);
        let own = Memory::of(std::process::id().try_into().expect("a pid")).expect("our own");
        assert!(own.after(b"a text that is on this heap", 64).count() > 0, "{}", secret.len());
    }
}
