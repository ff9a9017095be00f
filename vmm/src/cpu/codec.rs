//! Saved state as bytes, decoded without trust.
//!
//! `kvm-bindings` decodes its structures from any number of bytes, padding with zeros or cutting
//! off what is too much. So a decoded value counts only if it encodes to the very bytes that it
//! came from. Sizes are bounded twice: by the slice, and by bincode's limit, without which a
//! hostile length would make it allocate.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wherry_migration::wire::MAX_PAGES;

/// Most bytes that one encoded state may have: a vCPU's is about 20 KiB, and there are at most 254;
/// a balloon whose pages lie scattered takes a bit for each page of RAM. What is decoded lies in
/// memory already, and the wire has held it against the guest's own size.
pub const MAX_STATE_BYTES: u64 = (32 << 20) + MAX_PAGES / 8;

/// Why state cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value is larger than [`MAX_STATE_BYTES`].
    #[error("cannot encode the state")]
    Encode(#[source] bincode::Error),
    /// Not an encoding of the expected type.
    #[error("cannot decode the state")]
    Decode(#[source] bincode::Error),
    /// Decodes, but the encoding is not the one that this type has.
    #[error("the state has fields of the wrong size")]
    NotCanonical,
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(MAX_STATE_BYTES)
}

/// Encodes with fixed-width little-endian integers.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    options().serialize(value).map_err(CodecError::Encode)
}

/// Decodes all of `bytes`; trailing bytes and encodings of the wrong size are errors.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let value: T = options().deserialize(bytes).map_err(CodecError::Decode)?;
    if encode(&value)? == bytes { Ok(value) } else { Err(CodecError::NotCanonical) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_regs;
    use wherry_migration::wire::max_state;

    #[test]
    fn short_and_long_structures_are_refused() {
        let regs = kvm_regs { rip: 0x1234, ..Default::default() };
        let good = encode(&regs).unwrap();
        assert_eq!(decode::<kvm_regs>(&good).unwrap(), regs);
        let short = encode(&vec![1u8, 2, 3]).unwrap();
        assert!(matches!(decode::<kvm_regs>(&short), Err(CodecError::NotCanonical)));
        let long = encode(&vec![0u8; 1000]).unwrap();
        assert!(matches!(decode::<kvm_regs>(&long), Err(CodecError::NotCanonical)));
        let trailing = [good, vec![0]].concat();
        assert!(matches!(decode::<kvm_regs>(&trailing), Err(CodecError::Decode(_))));
    }

    #[test]
    fn a_scattered_balloon_of_a_large_guest_fits() {
        // Every second page of 1 TiB.
        let nr_pages = (1u64 << 40) / 4096;
        let set = vec![0x5555_5555_5555_5555u64; (nr_pages / 64) as usize];
        let bytes = encode(&set).unwrap();
        assert!(bytes.len() < max_state(nr_pages));
        assert!(max_state(MAX_PAGES) as u64 > MAX_STATE_BYTES);
        assert!(decode::<Vec<u64>>(&bytes).unwrap() == set);
    }

    #[test]
    fn a_hostile_length_allocates_nothing() {
        assert!(matches!(decode::<Vec<u64>>(&[0xFF; 8]), Err(CodecError::Decode(_))));
    }
}
