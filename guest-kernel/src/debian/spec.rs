//! Which image: release, kernel, what is in it beside the base, its size.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::kernels::Flavour;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Release {
    /// Debian 12, with Linux 6.1 and systemd 252.
    Bookworm,
    /// Debian 13, with Linux 6.12 and systemd 257.
    Trixie,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        })
    }
}

impl FromStr for Release {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        known("release", word, &[Self::Bookworm, Self::Trixie])
    }
}

/// What an image can have beside its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extra {
    /// What tests work with: fio, iperf3, and what serves DHCP.
    Test,
    /// PostgreSQL, with a cluster that starts at boot.
    Postgres,
}

impl Extra {
    /// Its packages.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Test => &["dnsmasq-base", "fio", "iperf3"],
            Self::Postgres => &["postgresql"],
        }
    }
}

impl fmt::Display for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Test => "test",
            Self::Postgres => "postgres",
        })
    }
}

impl FromStr for Extra {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        known("addition", word, &[Self::Test, Self::Postgres])
    }
}

/// The one of `all` that is called `word`.
fn known<T: Copy + fmt::Display>(what: &'static str, word: &str, all: &[T]) -> Result<T> {
    all.iter().copied().find(|one| one.to_string() == word).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(ToString::to_string).collect();
        Error::Unknown { what, given: word.to_owned(), known: names.join(", ") }
    })
}

/// The kernel's flavour, by its name.
pub fn flavour(word: &str) -> Result<Flavour> {
    known("kernel", word, &[Flavour::Cloud, Flavour::Generic])
}

/// The base needs about 400 MiB, generic kernels and PostgreSQL twice that.
const LEAST_MIB: u32 = 1024;
/// Sparse, so a matter of plausibility.
const MOST_MIB: u32 = 1024 * 1024;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Debian's release.
    pub release: Release,
    /// Which of its kernels.
    pub flavour: Flavour,
    /// What is in it beside the base.
    pub extras: BTreeSet<Extra>,
    /// Size of the disk in MiB.
    pub mib: u32,
    /// The root file system is a partition (GPT), not the whole disk.
    pub gpt: bool,
}

impl Spec {
    /// The size that an image has if none is asked for.
    pub const DEFAULT_MIB: u32 = 4096;

    /// A stock Debian of this release.
    pub fn new(release: Release, flavour: Flavour) -> Self {
        Self { release, flavour, extras: BTreeSet::new(), mib: Self::DEFAULT_MIB, gpt: false }
    }

    /// Refuses what cannot be built.
    pub fn check(&self) -> Result<()> {
        if (LEAST_MIB..=MOST_MIB).contains(&self.mib) {
            return Ok(());
        }
        Err(Error::Size { given: self.mib, least: LEAST_MIB, most: MOST_MIB })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.release, self.flavour)?;
        self.extras.iter().try_for_each(|extra| write!(f, "-{extra}"))?;
        f.write_str(if self.gpt { "-gpt" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_known_or_refused_with_those_that_are() {
        assert_eq!("trixie".parse::<Release>().unwrap(), Release::Trixie);
        assert_eq!("postgres".parse::<Extra>().unwrap(), Extra::Postgres);
        assert_eq!(flavour("generic").unwrap(), Flavour::Generic);
        let error = "sid".parse::<Release>().unwrap_err().to_string();
        assert_eq!(error, "no release is called `sid`; there are bookworm, trixie");
        assert!(flavour("rt").unwrap_err().to_string().contains("cloud, generic"));
    }

    #[test]
    fn names_tell_images_apart_and_sizes_are_bounded() {
        let mut spec = Spec::new(Release::Bookworm, Flavour::Cloud);
        assert_eq!(spec.to_string(), "bookworm-cloud");
        spec.extras = [Extra::Postgres, Extra::Test].into();
        assert_eq!(spec.to_string(), "bookworm-cloud-test-postgres");
        assert_eq!(Spec { gpt: true, ..spec.clone() }.to_string(), format!("{spec}-gpt"));
        for (mib, fine) in [(1023, false), (1024, true), (1 << 20, true), (u32::MAX, false)] {
            assert_eq!(Spec { mib, ..spec.clone() }.check().is_ok(), fine, "{mib}");
        }
    }
}
