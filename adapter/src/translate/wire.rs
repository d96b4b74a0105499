//! Edits protobuf messages in their encoded form.
//!
//! In: an encoded message and numbers of top-level fields. Out: the same bytes without those
//! fields. What is not touched stays byte for byte as it was: unknown fields survive, and the
//! order of map entries, which decoding and encoding would shuffle, does not change the hash.

/// Wire types of the protobuf encoding.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// The message is cut off, or is no protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the encoded message is malformed at byte {at}")]
pub struct Malformed {
    at: usize,
}

/// The message without these top-level fields.
pub fn without(message: &[u8], fields: &[u64]) -> Result<Vec<u8>, Malformed> {
    let mut kept = Vec::with_capacity(message.len());
    let mut at = 0;
    while at < message.len() {
        let (field, end) = next_field(message, at)?;
        if !fields.contains(&field) {
            kept.extend_from_slice(&message[at..end]);
        }
        at = end;
    }
    Ok(kept)
}

/// Number of the field that starts at `at`, and where it ends.
fn next_field(message: &[u8], at: usize) -> Result<(u64, usize), Malformed> {
    let (tag, value) = varint(message, at)?;
    let end = match tag & 7 {
        VARINT => varint(message, value)?.1,
        FIXED64 => value + 8,
        LENGTH_DELIMITED => {
            let (length, start) = varint(message, value)?;
            usize::try_from(length).ok().and_then(|length| start.checked_add(length)).ok_or(Malformed { at })?
        }
        FIXED32 => value + 4,
        _ => return Err(Malformed { at }),
    };
    match end <= message.len() {
        true => Ok((tag >> 3, end)),
        false => Err(Malformed { at }),
    }
}

/// The number at `at`, and where it ends.
fn varint(message: &[u8], at: usize) -> Result<(u64, usize), Malformed> {
    let mut value = 0_u64;
    for (index, byte) in message.iter().skip(at).take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index as u32).min(63);
        if byte & 0x80 == 0 {
            return Ok((value, at + index + 1));
        }
    }
    Err(Malformed { at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::envoy::config::cluster::v3::Cluster;
    use mesh_api::envoy::config::core::v3::BindConfig;
    use proptest::prelude::*;
    use prost::Message;

    #[test]
    fn a_field_is_removed_and_the_rest_stays_byte_for_byte() {
        let plain = Cluster { name: "a".to_owned(), alt_stat_name: "b".to_owned(), ..Cluster::default() };
        let bound = Cluster { upstream_bind_config: Some(BindConfig::default()), ..plain.clone() };
        assert_eq!(without(&bound.encode_to_vec(), &[21]).expect("valid"), plain.encode_to_vec());
        // Field 536870911, a varint that no schema knows.
        let unknown = [0xf8, 0xff, 0xff, 0xff, 0x0f, 0x07];
        let message = [bound.encode_to_vec().as_slice(), &unknown].concat();
        assert_eq!(without(&message, &[21]).expect("valid"), [plain.encode_to_vec().as_slice(), &unknown].concat());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(kept) = without(&bytes, &[1, 21]) {
                prop_assert!(kept.len() <= bytes.len());
            }
        }
    }
}
