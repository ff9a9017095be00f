//! Which protocol two sides speak.
//!
//! A source says Hello: the versions that it can write, the features that it needs and those that
//! it could use. A destination answers Welcome: the newest version that both know, and the features
//! that will be used. From there on both write that version, frames and machine state alike.
//!
//! Hello, Welcome and Abort have one layout in every version from [`FIRST`] on, so that two sides
//! that cannot work together can still say why. Bytes behind the fields that this side knows belong
//! to a later version and are ignored.
//!
//! A release reads and writes its own version and the one before.
//!
//! | version | since | what is new |
//! |---|---|---|
//! | 2 | 0.2.0 | two sides agree on a version |
//! | 3 | after 0.2.0 | the balloon's state has a form for torn sets of pages |

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use wherry_codec::text::printable;

use super::codec::decode_front;
use super::error::{NoCommonVersion, WireError};
use super::kind::Kind;

/// The first version in which two sides agree on one.
pub const FIRST: u16 = 2;
/// The newest version that this side speaks.
pub const NEWEST: u16 = 3;
/// All versions that this side speaks.
pub const VERSIONS: RangeInclusive<u16> = NEWEST - 1..=NEWEST;
/// This program's name and version, for the other side's messages.
pub const RELEASE: &str = concat!("wherry ", env!("CARGO_PKG_VERSION"));
/// Longest name of a release in bytes.
const MAX_RELEASE: usize = 64;

/// Payload of [`super::Kind::Hello`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest version that the source can write.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
    /// Features that the destination must have and use, of [`super::FEATURES`].
    pub needed: u64,
    /// Features that it may use.
    pub offered: u64,
    /// Which program this is, for people.
    pub release: String,
}

/// Payload of [`super::Kind::Welcome`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of all that follows.
    pub version: u16,
    /// Features that will be used: those needed, and some of those offered.
    pub features: u64,
    /// Which program this is, for people.
    pub release: String,
}

/// What was agreed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Version of frames and machine state.
    pub version: u16,
    /// Features that are used.
    pub features: u64,
}

impl Hello {
    /// Of a source that speaks these versions and needs these features.
    pub fn new(versions: &RangeInclusive<u16>, needed: u64) -> Self {
        let (oldest, newest) = (*versions.start(), *versions.end());
        Self { oldest, newest, needed, offered: 0, release: RELEASE.into() }
    }

    /// From the wire.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let hello: Self = decode_front(bytes, Kind::Hello)?;
        let fine = hello.oldest <= hello.newest && hello.release.len() <= MAX_RELEASE;
        if fine { Ok(hello) } else { Err(WireError::Payload(Kind::Hello)) }
    }

    /// What a destination that speaks `versions` and knows `features` agrees to.
    pub(crate) fn agree(
        &self,
        versions: &RangeInclusive<u16>,
        features: u64,
    ) -> Result<Agreed, WireError> {
        let version = self.newest.min(*versions.end());
        if version < self.oldest || version < *versions.start() {
            let theirs = Speaks { versions: self.oldest..=self.newest, release: &self.release };
            return Err(nothing_in_common(&theirs, versions));
        }
        match self.needed & !features {
            0 => Ok(Agreed { version, features: self.needed | self.offered & features }),
            unknown => Err(WireError::Features(unknown)),
        }
    }
}

impl Welcome {
    /// Of a destination that agreed to this.
    pub fn new(agreed: Agreed) -> Self {
        let Agreed { version, features } = agreed;
        Self { version, features, release: RELEASE.into() }
    }

    /// From the wire, as the answer to `hello`.
    pub(crate) fn decode(bytes: &[u8], hello: &Hello) -> Result<Agreed, WireError> {
        let Self { version, features, release } = decode_front(bytes, Kind::Welcome)?;
        if !(hello.oldest..=hello.newest).contains(&version) || release.len() > MAX_RELEASE {
            return Err(WireError::Payload(Kind::Welcome));
        }
        let wrong = hello.needed & !features | features & !(hello.needed | hello.offered);
        if wrong == 0 { Ok(Agreed { version, features }) } else { Err(WireError::Features(wrong)) }
    }
}

/// The error of this side, whose peer's frame is of a version that was never agreed on.
pub(crate) fn not_agreed(theirs: u16) -> WireError {
    nothing_in_common(&Speaks { versions: theirs..=theirs, release: "" }, &VERSIONS)
}

fn nothing_in_common(theirs: &Speaks<'_>, ours: &RangeInclusive<u16>) -> WireError {
    let ours = Speaks { versions: ours.clone(), release: RELEASE };
    let version = *theirs.versions.end();
    let (theirs, ours) = (theirs.to_string(), ours.to_string());
    WireError::Version(NoCommonVersion { theirs, ours, version })
}

/// What a side speaks, in words.
struct Speaks<'a> {
    versions: RangeInclusive<u16>,
    release: &'a str,
}

impl fmt::Display for Speaks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.versions.start(), self.versions.end()) {
            (oldest, newest) if oldest == newest => write!(f, "version {newest}")?,
            (oldest, newest) => write!(f, "versions {oldest} to {newest}")?,
        }
        match self.release {
            "" => Ok(()),
            release => write!(f, " ({})", printable(release)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::FEATURES;
    use super::*;

    fn hello(oldest: u16, newest: u16) -> Hello {
        Hello { release: "wherry 9.9\u{1b}".into(), ..Hello::new(&(oldest..=newest), 1) }
    }

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        let agreed =
            |hello: Hello, ours| hello.agree(&ours, FEATURES).map(|agreed| agreed.version).ok();
        assert_eq!(agreed(hello(2, 3), 2..=3), Some(3));
        assert_eq!(agreed(hello(2, 3), 3..=4), Some(3));
        assert_eq!(agreed(hello(3, 4), 2..=3), Some(3));
        assert_eq!(agreed(hello(2, 2), 2..=3), Some(2));
        assert_eq!(agreed(hello(4, 5), 2..=3), None);
        assert_eq!(agreed(hello(2, 2), 3..=4), None);
    }

    #[test]
    fn two_that_have_no_version_in_common_are_both_named() {
        let error = hello(4, 5).agree(&(2..=3), FEATURES).unwrap_err().to_string();
        assert!(error.contains("versions 4 to 5 (wherry 9.9\u{fffd})"), "{error}");
        assert!(error.contains(&format!("versions 2 to 3 ({RELEASE})")), "{error}");
    }

    #[test]
    fn features_that_are_needed_and_unknown_are_refused_and_those_offered_are_not() {
        let offers = Hello { offered: 2 * FEATURES + 1, ..hello(2, 2) };
        let agreed = |known| offers.agree(&(2..=2), known).unwrap().features;
        assert_eq!((agreed(FEATURES), agreed(5)), (FEATURES, 5));
        let needs = Hello { needed: (FEATURES + 1) | 1, ..hello(2, 2) };
        assert!(needs.agree(&(2..=2), FEATURES).is_err());
    }

    #[test]
    fn what_a_later_version_adds_is_ignored_and_what_it_may_not_change_is_checked() {
        let said = hello(2, 3);
        let mut bytes = wherry_codec::encode(&said).unwrap();
        bytes.extend([7; 100]);
        assert_eq!(Hello::decode(&bytes), Ok(said.clone()));
        assert!(Hello::decode(&bytes[..19]).is_err());
        let answer = |version, features| {
            let welcome = Welcome::new(Agreed { version, features });
            let mut bytes = wherry_codec::encode(&welcome).unwrap();
            bytes.push(1);
            Welcome::decode(&bytes, &said)
        };
        assert_eq!(answer(3, 1), Ok(Agreed { version: 3, features: 1 }));
        assert!(answer(4, 1).is_err() && answer(1, 1).is_err());
        assert!(answer(3, 0).is_err() && answer(3, 3).is_err());
        let long = Hello { release: "x".repeat(65), ..said };
        assert!(Hello::decode(&wherry_codec::encode(&long).unwrap()).is_err());
        assert!(Hello::decode(&wherry_codec::encode(&hello(3, 2)).unwrap()).is_err());
    }
}
