//! Bytes with a name in front: the envelope of a machine's description and of its state.
//!
//! A list of records begins with a header; each record says what it is before its content is looked
//! at, so that what is unknown is refused by name and not as noise. All numbers are little-endian.
//!
//! | header | bytes | | record | bytes |
//! |---|---|---|---|---|
//! | magic | 8 | | length of the id, id | 1, 1 to 32 |
//! | version | 4 | | length of the kind, kind | 1, 1 to 32 |
//! | flags | 4 | | version | 4 |
//! | number of records | 4 | | length of the content, content | 8, any |
//!
//! An id is unique in its list. Ids and kinds consist of `a`-`z`, `0`-`9` and `-`.

use serde::{Serialize, de::DeserializeOwned};

use crate::{CodecError, decode};

/// Longest id or kind in bytes.
pub const MAX_NAME: usize = 32;

/// A kind of list.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// First bytes.
    pub magic: [u8; 8],
    /// Version of the header and of the envelopes.
    pub version: u32,
    /// Flags that have a meaning.
    pub flags: u32,
    /// Most records.
    pub most: usize,
    /// Its name in messages.
    pub what: &'static str,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Which one it is.
    pub id: &'a str,
    /// What it is.
    pub kind: &'a str,
    /// Version of its content.
    pub version: u32,
    /// Its content.
    pub bytes: &'a [u8],
}

/// Why a list or a record is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RecordError {
    #[error("this is no {0}")]
    Magic(&'static str),
    #[error("the {0} has version {1}, this wherry knows {2}")]
    Version(&'static str, u32, u32),
    #[error("the {0} has flags {1:#x}, which this wherry does not know")]
    Flags(&'static str, u32),
    #[error("the {0} has {1} records, more than any machine")]
    TooMany(&'static str, u32),
    #[error("the {0} is malformed")]
    Malformed(&'static str),
    #[error("the {0} has `{1}` twice")]
    Twice(&'static str, String),
    #[error("the {what} has `{id}` of kind `{kind}`, which this wherry does not know")]
    UnknownKind { what: &'static str, id: String, kind: String },
    #[error(
        "the {what} has `{id}` of kind `{kind}` in version {theirs}, this wherry knows {knows}"
    )]
    UnknownVersion { what: &'static str, id: String, kind: String, theirs: u32, knows: u32 },
    #[error("the {what} has `{id}` of kind `{kind}`, where it should have {should}")]
    OtherKind { what: &'static str, id: String, kind: String, should: String },
    #[error("the {0} lacks `{1}`")]
    Missing(&'static str, String),
    #[error("the {0} has `{1}`, which belongs to nothing")]
    LeftOver(&'static str, String),
    #[error("the {0}'s `{1}` is malformed")]
    Content(&'static str, String, #[source] CodecError),
}

/// Writes a list.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    nr: u32,
}

/// Where the number of records is.
const NR_AT: usize = 16;

impl Writer {
    /// A list without records.
    pub fn new(format: &Format, flags: u32) -> Self {
        let mut bytes = format.magic.to_vec();
        for word in [format.version, flags, 0] {
            bytes.extend(word.to_le_bytes());
        }
        Self { bytes, nr: 0 }
    }

    /// One more record. Its id and kind must be such as [the module](self) allows.
    pub fn push(&mut self, record: Record<'_>) {
        for name in [record.id, record.kind] {
            debug_assert!(is_name(name.as_bytes()), "{name}");
            self.bytes.push(name.len() as u8);
            self.bytes.extend(name.bytes());
        }
        self.bytes.extend(record.version.to_le_bytes());
        self.bytes.extend((record.bytes.len() as u64).to_le_bytes());
        self.bytes.extend(record.bytes);
        self.nr += 1;
        self.bytes[NR_AT..NR_AT + 4].copy_from_slice(&self.nr.to_le_bytes());
    }

    /// The list.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Whether a record may be called so.
#[must_use]
pub fn is_name(bytes: &[u8]) -> bool {
    let legal = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=MAX_NAME).contains(&bytes.len()) && bytes.iter().all(legal)
}

/// Takes a list apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (now, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(now)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn name(&mut self) -> Option<&'a str> {
        let len = self.take(1)?.first().copied()?;
        let name = self.take(len.into()).filter(|name| is_name(name))?;
        std::str::from_utf8(name).ok()
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let (id, kind, version) = (self.name()?, self.name()?, self.u32()?);
        let len = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
        Some(Record { id, kind, version, bytes: self.take(len)? })
    }
}

/// A list that was read: each record is to be taken once.
#[derive(Debug)]
pub struct Records<'a> {
    what: &'static str,
    flags: u32,
    left: Vec<Record<'a>>,
}

impl<'a> Records<'a> {
    /// Reads the envelopes and no content.
    ///
    /// # Errors
    /// Not such a list, of another version, too long, malformed, or with an id twice.
    pub fn read(format: &Format, bytes: &'a [u8]) -> Result<Self, RecordError> {
        let what = format.what;
        let malformed = || RecordError::Malformed(what);
        let mut from = Reader(bytes);
        if from.take(8) != Some(&format.magic) {
            return Err(RecordError::Magic(what));
        }
        let version = from.u32().ok_or_else(malformed)?;
        if version != format.version {
            return Err(RecordError::Version(what, version, format.version));
        }
        let flags = from.u32().ok_or_else(malformed)?;
        if flags & !format.flags != 0 {
            return Err(RecordError::Flags(what, flags));
        }
        let nr = from.u32().ok_or_else(malformed)?;
        if nr as usize > format.most {
            return Err(RecordError::TooMany(what, nr));
        }
        let mut left: Vec<Record<'a>> = Vec::new();
        for _ in 0..nr {
            let record = from.record().ok_or_else(malformed)?;
            if left.iter().any(|other| other.id == record.id) {
                return Err(RecordError::Twice(what, record.id.into()));
            }
            left.push(record);
        }
        if from.0.is_empty() { Ok(Self { what, flags, left }) } else { Err(malformed()) }
    }

    /// The header's flags.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Takes the record with this id and decodes it.
    ///
    /// # Errors
    /// It is missing, of another kind or version, or malformed.
    pub fn take<T: Serialize + DeserializeOwned>(
        &mut self,
        id: &str,
        kind: &str,
        version: u32,
    ) -> Result<T, RecordError> {
        let missing = || RecordError::Missing(self.what, id.into());
        let at = self.left.iter().position(|r| r.id == id).ok_or_else(missing)?;
        self.left.remove(at).decode(self.what, kind, version)
    }

    /// Whether a record of this id is there and was not taken.
    pub fn has(&self, id: &str) -> bool {
        self.left.iter().any(|r| r.id == id)
    }

    /// Takes all that are left, in order.
    pub fn take_rest(self) -> Vec<Record<'a>> {
        self.left
    }
}

impl Record<'_> {
    /// Decodes a record of `what`.
    ///
    /// # Errors
    /// It is of another kind or version, or malformed.
    pub fn decode<T: Serialize + DeserializeOwned>(
        &self,
        what: &'static str,
        kind: &str,
        version: u32,
    ) -> Result<T, RecordError> {
        self.is(what, kind, version)?;
        decode(self.bytes).map_err(|e| RecordError::Content(what, self.id.into(), e))
    }

    /// Refuses a record of `what` that is of another kind or version.
    ///
    /// # Errors
    /// It is.
    pub fn is(&self, what: &'static str, kind: &str, version: u32) -> Result<(), RecordError> {
        let (id, theirs) = (self.id.to_owned(), self.version);
        if self.kind != kind {
            let (kind, should) = (self.kind.to_owned(), kind.to_owned());
            Err(RecordError::OtherKind { what, id, kind, should })
        } else if theirs != version {
            let kind = kind.to_owned();
            Err(RecordError::UnknownVersion { what, id, kind, theirs, knows: version })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode;

    const LIST: Format =
        Format { magic: *b"WHRYTEST", version: 7, flags: 2, most: 3, what: "list" };

    fn record<'a>(id: &'a str, kind: &'a str, version: u32, bytes: &'a [u8]) -> Record<'a> {
        Record { id, kind, version, bytes }
    }

    fn list(flags: u32, records: &[Record<'_>]) -> Vec<u8> {
        let mut writer = Writer::new(&LIST, flags);
        records.iter().for_each(|r| writer.push(*r));
        writer.finish()
    }

    fn refusal(bytes: &[u8]) -> String {
        Records::read(&LIST, bytes).expect_err("refused").to_string()
    }

    #[test]
    fn golden_bytes_of_the_envelope() {
        let five = encode(&5u64).unwrap();
        let bytes = list(2, &[record("blk0", "virtio-blk", 3, &five), record("x", "y", 1, b"")]);
        crate::golden::check(env!("CARGO_MANIFEST_DIR"), "envelope.bin", &bytes);
        let mut records = Records::read(&LIST, &bytes).unwrap();
        assert_eq!(records.flags(), 2);
        assert_eq!(records.take::<u64>("blk0", "virtio-blk", 3).unwrap(), 5);
        assert_eq!(records.take_rest(), [record("x", "y", 1, b"")]);
    }

    #[test]
    fn a_record_is_refused_by_name() {
        let bytes = list(0, &[record("blk0", "virtio-blk", 3, &[0; 7])]);
        let take = |kind, version| {
            let mut records = Records::read(&LIST, &bytes).unwrap();
            records.take::<u64>("blk0", kind, version).expect_err("refused").to_string()
        };
        assert_eq!(
            take("virtio-net", 3),
            "the list has `blk0` of kind `virtio-blk`, where it should have virtio-net"
        );
        assert_eq!(
            take("virtio-blk", 2),
            "the list has `blk0` of kind `virtio-blk` in version 3, this wherry knows 2"
        );
        assert_eq!(take("virtio-blk", 3), "the list's `blk0` is malformed");
        let mut records = Records::read(&LIST, &bytes).unwrap();
        let missing = records.take::<u64>("blk1", "virtio-blk", 3).unwrap_err();
        assert_eq!(missing.to_string(), "the list lacks `blk1`");
    }

    #[test]
    fn a_list_is_refused_before_any_content() {
        let one = record("a", "b", 1, b"content");
        let good = list(0, &[one]);
        let spoil = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            refusal(&bytes)
        };
        assert_eq!(spoil(0, 0), "this is no list");
        assert_eq!(spoil(8, 9), "the list has version 9, this wherry knows 7");
        assert_eq!(spoil(12, 4), "the list has flags 0x4, which this wherry does not know");
        assert_eq!(spoil(16, 4), "the list has 4 records, more than any machine");
        // One record too many or too few, a name's length or letter, the content's length.
        for (at, byte) in [(16, 2), (16, 0), (20, 0), (20, 33), (21, b'A'), (28, 8), (35, 0xff)] {
            assert_eq!(spoil(at, byte), "the list is malformed", "{at}");
        }
        for len in 0..good.len() {
            Records::read(&LIST, &good[..len]).expect_err("cut off");
        }
        assert_eq!(refusal(&list(0, &[one, one])), "the list has `a` twice");
    }
}
