//! Files that a command is asked to write when it has something to write.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wherry_vmm::control::ControlError;
use wherry_vmm::whole_file;

/// A file that is opened at the start, so that one that cannot be written is found then, and holds
/// what it held before until there is something to write. One that was made for this and is not
/// written is removed again.
pub struct OutputFile {
    path: PathBuf,
    file: File,
    /// There was none before.
    made: bool,
    written: bool,
}

impl OutputFile {
    /// Opens or makes the file of `--option PATH`, before anything else is done.
    pub fn create(option: &str, path: &Path) -> Result<Self, ControlError> {
        if path.as_os_str() == "-" {
            return Err(ControlError::usage(format!(
                "--{option} -: standard output is for the report; name a file, a FIFO, or \
                 /dev/stderr"
            )));
        }
        Self::open(path).map_err(|e| {
            let text = format!("cannot create the {option} file {}: {e}", path.display());
            ControlError::failed(text).hint("nothing was started; the guest goes on as before")
        })
    }

    fn open(path: &Path) -> io::Result<Self> {
        let (file, made) = match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mut options = OpenOptions::new();
                (options.write(true).create(true).truncate(false).open(path)?, false)
            }
            other => (other?, true),
        };
        Ok(Self { path: path.to_owned(), file, made, written: false })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anything was written.
    pub fn is_written(&self) -> bool {
        self.written
    }

    /// Whether both are the same file; two of `/dev/null` or of a pipe are not in each other's way.
    pub fn is(&self, other: &Self) -> bool {
        matches!((self.file.metadata(), other.file.metadata()), (Ok(a), Ok(b)) if same(&a, &b))
    }

    /// Writes behind what was written so far. What the file held before is gone with the first
    /// call.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Neither pipes nor devices have a length.
        if !std::mem::replace(&mut self.written, true) && self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(bytes)
    }
}

/// Puts a file of `--option PATH` into its place, whole: who reads it finds the old or the new one.
/// It is readable as the process's umask lets it.
///
/// # Errors
/// It cannot be written, or what is there is not a file; then that is as before.
pub fn replace(option: &str, path: &Path, bytes: &[u8]) -> Result<(), ControlError> {
    let failed = |e: io::Error| {
        ControlError::failed(format!("cannot write the {option} file {}: {e}", path.display()))
    };
    whole_file::put(path, bytes, 0o666).map(drop).map_err(failed)
}

/// Whether these are of one regular file.
pub fn same(a: &Metadata, b: &Metadata) -> bool {
    a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino())
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.made && !self.written {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn nothing_is_lost_or_left_before_there_is_something_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, "a long text").unwrap();
        for path in [&old, &new] {
            drop(OutputFile::open(path).unwrap());
        }
        assert!(!new.exists());
        assert_eq!(fs::read_to_string(&old).unwrap(), "a long text");
        for path in [&old, &new] {
            let mut file = OutputFile::open(path).unwrap();
            file.write(b"one ").unwrap();
            file.write(b"two").unwrap();
            drop(file);
            assert_eq!(fs::read_to_string(path).unwrap(), "one two");
        }
        let open = |path: &Path| OutputFile::open(path).unwrap();
        assert!(open(&old).is(&open(&old)) && !open(&old).is(&open(&new)));
        assert!(!open("/dev/null".as_ref()).is(&open("/dev/null".as_ref())));
        open("/dev/null".as_ref()).write(b"x").unwrap();
        assert!(OutputFile::open(dir.path()).is_err());
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.prom");
        replace("output", &path, b"a long text").unwrap();
        let mut old = File::open(&path).unwrap();
        replace("output", &path, b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        // Who has begun to read goes on with what was there.
        assert_eq!(io::read_to_string(&mut old).unwrap(), "a long text");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        for wrong in [dir.path(), &link, &dir.path().join("nowhere/a"), "..".as_ref()] {
            replace("output", wrong, b"").unwrap_err();
        }
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["a.prom", "link"]);
    }
}
