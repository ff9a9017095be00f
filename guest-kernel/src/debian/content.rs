//! What is in a finished image, by name, version and digest.

use std::hash::Hasher;
use std::path::PathBuf;

use twox_hash::XxHash64;

use crate::error::{Error, Result};

/// An image, in the cache or on its way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The disk: a sparse file that must not be written to.
    pub path: PathBuf,
    /// Its size as a disk.
    pub bytes: u64,
    /// `uname -r` of its kernel.
    pub kernel: String,
    /// The root file system's.
    pub uuid: String,
    /// Names and versions of all its packages.
    pub packages: Vec<(String, String)>,
}

/// A digest of 128 bits that tells images apart. Not against forgery: the archive's signatures
/// guard what goes into an image, and who can write to the cache needs no collision.
#[derive(Clone)]
pub struct Digest([XxHash64; 2]);

impl Default for Digest {
    fn default() -> Self {
        Self([XxHash64::with_seed(1), XxHash64::with_seed(2)])
    }
}

impl Digest {
    /// Adds a part, and where it ends.
    pub fn part(&mut self, text: &str) -> &mut Self {
        for half in &mut self.0 {
            half.write(&(text.len() as u64).to_le_bytes());
            half.write(text.as_bytes());
        }
        self
    }

    /// 32 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|half| format!("{:016x}", half.finish())).collect()
    }

    /// The digest as a UUID whose bits are one's own (RFC 9562, version 8).
    pub fn uuid(&self) -> String {
        let hex = self.hex();
        format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
    }
}

/// Names and versions of the packages in dpkg's `status`, in order of their names.
pub fn installed(status: &str) -> Result<Vec<(String, String)>> {
    let mut packages = Vec::new();
    for stanza in status.split("\n\n").filter(|stanza| !stanza.trim().is_empty()) {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let (Some(name), Some(state)) = (field("Package"), field("Status")) else {
            return Err(Error::NotAsPromised("a package without name or state".into()));
        };
        let installed = state.ends_with(" ok installed");
        match (installed, state.ends_with(" not-installed"), field("Version")) {
            (true, _, Some(version)) => packages.push((name.to_owned(), version.to_owned())),
            (_, true, _) => {}
            _ => return Err(Error::NotAsPromised(format!("package {name} is `{state}`"))),
        }
    }
    packages.sort();
    Ok(packages)
}

/// One package a line, as it is kept beside the image.
pub fn to_lines(packages: &[(String, String)]) -> String {
    packages.iter().map(|(name, version)| format!("{name} {version}\n")).collect()
}

/// The reverse.
pub fn from_lines(lines: &str) -> Option<Vec<(String, String)>> {
    let pair = |line: &str| line.split_once(' ').map(|(n, v)| (n.to_owned(), v.to_owned()));
    lines.lines().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |parts: &[&str]| {
            let mut digest = Digest::default();
            parts.iter().for_each(|part| {
                digest.part(part);
            });
            digest
        };
        assert_eq!(of(&["ab", "c"]).hex(), of(&["ab", "c"]).hex());
        assert_ne!(of(&["ab", "c"]).hex(), of(&["a", "bc"]).hex());
        assert_ne!(of(&["ab"]).hex(), of(&["ab", ""]).hex());
        let uuid = of(&["x"]).uuid();
        let places: Vec<_> = uuid.match_indices('-').map(|(at, _)| at).collect();
        assert_eq!((uuid.len(), places), (36, vec![8, 13, 18, 23]));
        assert_eq!((&uuid[14..15], &uuid[19..20]), ("8", "8"));
    }

    #[test]
    fn packages_are_those_that_are_installed_whole() {
        let stanza = |name: &str, state: &str| {
            format!("Package: {name}\nStatus: install ok {state}\nVersion: 1:2-{name}\nX: y\n\n")
        };
        let status = stanza("udev", "installed") + &stanza("apt", "installed");
        let status = status + "Package: gone\nStatus: purge ok not-installed\n\n";
        let packages = installed(&status).unwrap();
        assert_eq!(to_lines(&packages), "apt 1:2-apt\nudev 1:2-udev\n");
        assert_eq!(from_lines(&to_lines(&packages)), Some(packages));
        assert_eq!(from_lines("apt\n"), None);
        let error = installed(&stanza("udev", "half-configured")).unwrap_err().to_string();
        assert!(error.contains("udev is `install ok half-configured`"), "{error}");
        assert!(installed("Version: 1\n").is_err());
    }
}
