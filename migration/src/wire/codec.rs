//! The one place where control payloads are encoded and decoded.
//!
//! bincode's default functions have no limit: eight hostile bytes as the length of a vector abort
//! the process. Here the input is a slice that its frame has already bounded, the decoder is
//! limited to that length again, and bytes left over are an error.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

use super::WireError;

fn options(limit: usize) -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit as u64)
}

/// Encodes a control payload of at most `limit` bytes.
pub(crate) fn encode<T: Serialize>(
    value: &T,
    name: &'static str,
    limit: usize,
) -> Result<Vec<u8>, WireError> {
    options(limit).serialize(value).map_err(|_| WireError::Payload(name))
}

/// Decodes a control payload that fills `bytes` exactly.
pub(crate) fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    name: &'static str,
) -> Result<T, WireError> {
    // DefaultOptions rejects trailing bytes.
    options(bytes.len()).deserialize(bytes).map_err(|_| WireError::Payload(name))
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
    fn leftover_bytes_are_an_error() {
        let mut bytes = encode(&Welcome { features: 5 }, "welcome", 64).unwrap();
        assert_eq!(decode::<Welcome>(&bytes, "w").unwrap().features, 5);
        bytes.push(0);
        assert!(decode::<Welcome>(&bytes, "w").is_err());
        assert!(decode::<Welcome>(&bytes[..7], "w").is_err());
    }
}
