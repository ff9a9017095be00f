//! Control payloads, by the one codec ([`wherry_codec`]), within a frame's limits.

use serde::{Serialize, de::DeserializeOwned};

use super::WireError;

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

#[cfg(test)]
mod tests {
    use super::super::{Hello, Welcome};
    use super::*;

    #[test]
    fn a_giant_length_does_not_allocate() {
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<Hello>(&bytes, "hello").is_err());
        bytes[16..].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(decode::<Hello>(&bytes, "hello").is_err());
    }

    #[test]
    fn a_payload_has_its_length() {
        let welcome = Welcome { features: 5 };
        let mut bytes = encode(&welcome, "welcome", 8).unwrap();
        assert!(encode(&welcome, "welcome", 7).is_err());
        assert_eq!(decode::<Welcome>(&bytes, "w").unwrap().features, 5);
        bytes.push(0);
        assert!(decode::<Welcome>(&bytes, "w").is_err());
        assert!(decode::<Welcome>(&bytes[..7], "w").is_err());
    }
}
