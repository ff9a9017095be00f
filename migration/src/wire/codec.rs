//! Control payloads, by the one codec ([`wherry_codec`]), within a frame's limits.

use serde::{Serialize, de::DeserializeOwned};

use super::error::WireError;

/// Encodes a control payload of at most `limit` bytes.
pub(crate) fn encode<T: Serialize>(
    value: &T,
    name: &'static str,
    limit: usize,
) -> Result<Vec<u8>, WireError> {
    let bytes = wherry_codec::encode(value).map_err(|_| WireError::Payload(name))?;
    if bytes.len() <= limit { Ok(bytes) } else { Err(WireError::Payload(name)) }
}

/// Decodes a control payload that fills `bytes` exactly.
pub(crate) fn decode<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    name: &'static str,
) -> Result<T, WireError> {
    wherry_codec::decode(bytes).map_err(|_| WireError::Payload(name))
}

/// Decodes a control payload that later versions may add to: what is behind it is left.
pub(crate) fn decode_front<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    name: &'static str,
) -> Result<T, WireError> {
    wherry_codec::decode_front(bytes).map_err(|_| WireError::Payload(name))
}

#[cfg(test)]
mod tests {
    use super::super::{Machine, SyncPoint};
    use super::*;

    #[test]
    fn a_giant_length_does_not_allocate() {
        let mut bytes = vec![0; 8];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<Machine>(&bytes, "machine").is_err());
        bytes[8..].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(decode::<Machine>(&bytes, "machine").is_err());
    }

    #[test]
    fn a_payload_has_its_length() {
        let sync = SyncPoint { round: 5 };
        let mut bytes = encode(&sync, "sync", 4).unwrap();
        assert!(encode(&sync, "sync", 3).is_err());
        assert_eq!(decode::<SyncPoint>(&bytes, "s").unwrap().round, 5);
        bytes.push(0);
        assert!(decode::<SyncPoint>(&bytes, "s").is_err());
        assert!(decode::<SyncPoint>(&bytes[..3], "s").is_err());
    }
}
