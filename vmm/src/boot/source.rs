//! Where a kernel or an initrd is read from, at each boot of its machine: a descriptor, never a
//! path. A path is followed once, when the VM starts, so what boots later is the same file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use wherry_migration::CancelToken;

use super::error::READ;
use super::kept::{Kept, read};
use super::part::Part;

/// What to boot, and to boot again at a reset. At a destination a path is the source's, kept for
/// the next migration but never opened, unless it was given there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// bzImage, ELF kernel or unified kernel image. Empty: what is in the first disk boots.
    pub path: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Complete command line; a unified kernel image's own is before it.
    pub cmdline: String,
}

impl Kernel {
    /// Whether the first disk's own kernel boots.
    pub fn is_in_disk(&self) -> bool {
        self.path.as_os_str().is_empty()
    }
}

/// One file.
#[derive(Debug, Clone)]
pub enum Source {
    /// This host's, which is open. What is in it may change.
    Host(Arc<File>),
    /// It came with the guest, and remains as it is.
    Came(Kept),
    /// On a file server that is gone: whoever reads it waits until the other end is dropped.
    #[cfg(test)]
    Hangs(Arc<std::sync::Mutex<std::sync::mpsc::Receiver<()>>>),
}

/// What a machine boots.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The kernel.
    pub kernel: Option<Source>,
    /// The initial RAM disk.
    pub initrd: Option<Source>,
}

impl Source {
    /// Follows a path.
    ///
    /// # Errors
    /// It cannot be opened, or leads to something else than a file.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        // Before it is opened: a named pipe would wait for who writes it.
        let meta = std::fs::metadata(path).context(READ)?;
        anyhow::ensure!(meta.is_file(), "is not a regular file");
        Ok(Self::Host(Arc::new(File::open(path).context(READ)?)))
    }

    /// Whether it came with the guest.
    pub fn came(&self) -> bool {
        matches!(self, Self::Came(_))
    }

    /// Its bytes, from the first on.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn part(&self) -> io::Result<Part> {
        match self {
            Self::Host(file) => Ok(Part::new(file.clone(), 0, file.metadata()?.len())),
            Self::Came(kept) => Ok(kept.part()),
            #[cfg(test)]
            Self::Hangs(gone) => {
                let _ = crate::sync::lock(gone).recv();
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    /// What is in it now, if that is no longer than `most`, for somebody to whom it must not
    /// change.
    ///
    /// # Errors
    /// It is longer, or cannot be read; or somebody cancels.
    pub fn keep(&self, most: u64, cancel: &CancelToken) -> anyhow::Result<Kept> {
        match self {
            Self::Came(kept) => Ok(kept.clone()),
            _ => Kept::read(self.part().context(READ)?, most, cancel),
        }
    }

    /// The same without keeping it: what is in it now.
    ///
    /// # Errors
    /// As for [`keep`](Self::keep).
    pub fn id(&self, most: u64) -> anyhow::Result<wherry_migration::traits::FileId> {
        let part = self.part().context(READ)?;
        read(part, most, &mut io::sink(), &CancelToken::new())
    }
}

impl Sources {
    /// Follows the paths of `kernel`, if it has any.
    ///
    /// # Errors
    /// One cannot be opened; the text says which.
    pub fn open(kernel: &Kernel) -> anyhow::Result<Self> {
        if kernel.is_in_disk() {
            return Ok(Self::default());
        }
        let open =
            |what: &str, path: &Path| Source::open(path).with_context(|| name(what, path, None));
        Ok(Self {
            kernel: Some(open("kernel", &kernel.path)?),
            initrd: kernel.initrd.as_deref().map(|path| open("initrd", path)).transpose()?,
        })
    }
}

/// For people.
pub(super) fn name(what: &str, path: &Path, source: Option<&Source>) -> String {
    match source {
        Some(source) if source.came() => format!("{what} that came with the guest"),
        _ => format!("{what} {}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(source: &Source) -> String {
        let mut text = String::new();
        source.part().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_path_is_followed_once_and_what_is_put_there_later_does_not_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "first").unwrap();
        let kernel = Kernel { path: path.clone(), initrd: None, cmdline: String::new() };
        let sources = Sources::open(&kernel).unwrap();
        let source = sources.kernel.unwrap();
        std::fs::write(dir.path().join("other"), "another").unwrap();
        std::fs::rename(dir.path().join("other"), &path).unwrap();
        assert_eq!([read(&source), read(&source.clone())], ["first", "first"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&source), "first");
        assert!(sources.initrd.is_none());
    }

    #[test]
    fn two_who_read_it_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd");
        std::fs::write(&path, "0123456789").unwrap();
        let source = Source::open(&path).unwrap();
        let (mut one, mut two) = (source.part().unwrap(), source.part().unwrap());
        let mut bytes = [0; 4];
        one.read_exact(&mut bytes).unwrap();
        two.read_exact(&mut bytes).unwrap();
        one.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"4567");
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let open = |kernel: &Path, initrd: Option<&Path>| {
            let initrd = initrd.map(Into::into);
            let kernel = Kernel { path: kernel.into(), initrd, cmdline: String::new() };
            format!("{:#}", Sources::open(&kernel).unwrap_err())
        };
        let none = dir.path().join("none");
        assert!(open(&none, None).starts_with(&format!("kernel {}: cannot", none.display())));
        let file = tempfile::NamedTempFile::new().unwrap();
        let folder = open(file.path(), Some(dir.path()));
        assert!(folder.starts_with("initrd ") && folder.contains("not a regular"), "{folder}");
        let nothing = Kernel { path: "".into(), initrd: None, cmdline: String::new() };
        assert!(Sources::open(&nothing).unwrap().kernel.is_none());
    }
}
