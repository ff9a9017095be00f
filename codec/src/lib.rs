//! Plain data as bytes, decoded without trust: frames of a migration, saved devices and vCPUs.
//!
//! bincode's default functions have no limit: eight hostile bytes as the length of a vector abort
//! the process. Here the input is a slice whose length somebody has bounded, the decoder is limited
//! to that length again, and bytes left over are an error.
//!
//! `kvm-bindings` decodes its structures from any number of bytes, padding with zeros or cutting
//! off what is too much. So a decoded value counts only if it encodes to the very bytes that it
//! came from.
//!
//! [`records`] puts a name, a kind and a version in front of such bytes; [`base64`] makes text of
//! any; [`text`] makes words that are not trusted fit to be shown.

#![forbid(unsafe_code)]

pub mod base64;
#[cfg(feature = "golden")]
pub mod golden;
pub mod records;
pub mod text;

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

/// Why a value cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The type has no encoding.
    #[error("it cannot be encoded")]
    Encode(#[source] bincode::Error),
    /// Not an encoding of the expected type.
    #[error("it cannot be decoded")]
    Decode(#[source] bincode::Error),
    /// Decodes, but the encoding is not the one that this type has.
    #[error("it has fields of the wrong size")]
    NotCanonical,
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding()
}

/// Encodes with fixed-width little-endian integers.
///
/// # Errors
/// The type has no encoding; plain data always has.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    options().serialize(value).map_err(CodecError::Encode)
}

/// Decodes all of `bytes`, and allocates no more than they are long.
///
/// # Errors
/// Not an encoding of `T`, bytes left over, or fields of the wrong size.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    // DefaultOptions rejects trailing bytes.
    let limited = options().with_limit(bytes.len() as u64);
    let value: T = limited.deserialize(bytes).map_err(CodecError::Decode)?;
    if encode(&value)? == bytes { Ok(value) } else { Err(CodecError::NotCanonical) }
}

/// Decodes the front of `bytes`; what follows it is not looked at. Else as [`decode`].
///
/// # Errors
/// It does not begin with an encoding of `T`.
pub fn decode_front<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let limited = options().with_limit(bytes.len() as u64).allow_trailing_bytes();
    let value: T = limited.deserialize(bytes).map_err(CodecError::Decode)?;
    if bytes.starts_with(&encode(&value)?) { Ok(value) } else { Err(CodecError::NotCanonical) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_length_allocates_nothing() {
        assert!(matches!(decode::<Vec<u64>>(&[0xFF; 8]), Err(CodecError::Decode(_))));
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(decode::<(u64, u64, Vec<u8>)>(&bytes).is_err());
    }

    #[test]
    fn bytes_left_over_or_missing_are_an_error() {
        let mut bytes = encode(&(5u64, 6u32)).unwrap();
        assert_eq!(decode::<(u64, u32)>(&bytes).unwrap(), (5, 6));
        assert!(decode::<(u64, u32)>(&bytes[..11]).is_err());
        bytes.push(0);
        assert!(decode::<(u64, u32)>(&bytes).is_err());
        assert_eq!(decode_front::<(u64, u32)>(&bytes).unwrap(), (5, 6));
        assert!(decode_front::<(u64, u64)>(&bytes).is_err());
    }
}
