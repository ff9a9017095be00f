//! Control payloads, by the one codec ([`wherry_codec`]), within a frame's limits.

use serde::{Serialize, de::DeserializeOwned};

use super::error::WireError;
use super::kind::Kind;

/// Encodes a control payload.
pub(crate) fn encode<T: Serialize>(value: &T, kind: Kind) -> Result<Vec<u8>, WireError> {
    let bytes = wherry_codec::encode(value).ok().filter(|bytes| bytes.len() <= kind.limit());
    bytes.ok_or(WireError::Payload(kind))
}

/// Decodes a control payload that fills `bytes` exactly.
pub(crate) fn decode<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    kind: Kind,
) -> Result<T, WireError> {
    wherry_codec::decode(bytes).map_err(|_| WireError::Payload(kind))
}

/// Decodes a control payload that later versions may add to: what is behind it is left.
pub(crate) fn decode_front<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    kind: Kind,
) -> Result<T, WireError> {
    wherry_codec::decode_front(bytes).map_err(|_| WireError::Payload(kind))
}

#[cfg(test)]
mod tests {
    use super::super::{Abort, Machine, SyncPoint};
    use super::*;

    #[test]
    fn a_giant_length_does_not_allocate() {
        let mut bytes = vec![0; 8];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<Machine>(&bytes, Kind::Machine).is_err());
        bytes[8..].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(decode::<Machine>(&bytes, Kind::Machine).is_err());
    }

    #[test]
    fn a_payload_has_its_length() {
        let sync = SyncPoint { round: 5 };
        let mut bytes = encode(&sync, Kind::Sync).unwrap();
        let long = Abort { reason: "x".repeat(Kind::Abort.limit()) };
        assert!(encode(&long, Kind::Abort).is_err());
        assert_eq!(decode::<SyncPoint>(&bytes, Kind::Sync).unwrap().round, 5);
        bytes.push(0);
        assert!(decode::<SyncPoint>(&bytes, Kind::Sync).is_err());
        assert!(decode::<SyncPoint>(&bytes[..3], Kind::Sync).is_err());
    }
}
