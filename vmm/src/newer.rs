//! Plays the next release, for tests of guests that move between two: with the feature `newer` this
//! program speaks one version of the protocol more, in which machines have a record more.

use std::ops::RangeInclusive;

use wherry_codec::records::{Record, RecordError, Records, Writer};
use wherry_migration::wire::version::{NEWEST, VERSIONS};

/// Versions of the protocol that this program speaks.
pub fn versions() -> RangeInclusive<u16> {
    match cfg!(feature = "newer") {
        true => NEWEST..=NEWEST + 1,
        false => VERSIONS,
    }
}

/// The record, where a peer knows it.
pub fn push(out: &mut Writer, version: u16) {
    if cfg!(feature = "newer") && version > NEWEST {
        out.push(Record { id: "newer", kind: "newer", version: 1, bytes: &7u32.to_le_bytes() });
    }
}

/// Takes it out of what came.
///
/// # Errors
/// It is another.
pub fn take(records: &mut Records<'_>) -> Result<(), RecordError> {
    if cfg!(feature = "newer") && records.has("newer") {
        records.take::<u32>("newer", "newer", 1)?;
    }
    Ok(())
}
