//! What labs that share the tests know of each: a folder with a file for each test that was begun.
//!
//! The file is made exclusively by the lab whose number is its first word, so none runs twice. A
//! word follows for each attempt that ended. So the lab that follows one that died, or that wrote
//! to its disks, goes on where that one was.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const PASSED: &str = "passed";
const FAILED: &str = "failed";

/// The table, as one lab sees it.
#[derive(Debug)]
pub struct Table<'a> {
    /// Its folder.
    pub dir: &'a Path,
    /// The lab's number.
    pub lab: u32,
}

/// A test that is this lab's.
#[derive(Debug)]
pub struct Entry {
    file: File,
    path: PathBuf,
    /// Attempts that failed.
    pub failures: u32,
    /// The last attempt passed.
    pub passed: bool,
}

impl Table<'_> {
    /// The entry of a test; `None` if another lab has it.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn take(&self, executable: &Path, name: &str) -> Result<Option<Entry>> {
        let stem = executable.file_name().unwrap_or_default().to_string_lossy();
        let path = self.dir.join(format!("{stem} {name}"));
        let cannot = || format!("cannot use {}", path.display());
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                file.write_all(self.lab.to_string().as_bytes()).with_context(cannot)?;
                Ok(Some(Entry { file, path, failures: 0, passed: false }))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let options = OpenOptions::new().read(true).append(true).open(&path);
                let mut file = options.with_context(cannot)?;
                let mut said = String::new();
                file.read_to_string(&mut said).with_context(cannot)?;
                let mut words = said.split(' ');
                if words.next() != Some(&self.lab.to_string()) {
                    return Ok(None);
                }
                let failures = words.clone().filter(|word| *word == FAILED).count();
                let passed = words.next_back() == Some(PASSED);
                Ok(Some(Entry { file, path, failures: u32::try_from(failures)?, passed }))
            }
            Err(error) => Err(error).with_context(cannot),
        }
    }
}

impl Entry {
    /// Notes how an attempt ended.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&mut self, passed: bool) -> Result<()> {
        let word = if passed { PASSED } else { FAILED };
        let cannot = || format!("cannot write {}", self.path.display());
        self.file.write_all(format!(" {word}").as_bytes()).with_context(cannot)?;
        self.failures += u32::from(!passed);
        self.passed = passed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_lab_of_a_number_goes_on_where_the_last_one_was() {
        let dir = tempfile::tempdir().unwrap();
        let test = Path::new("/deps/boot-0123");
        let take = |lab| Table { dir: dir.path(), lab }.take(test, "it_boots").unwrap();
        let mut entry = take(1).unwrap();
        assert!(take(2).is_none());
        entry.note(false).unwrap();
        drop(entry);
        assert!(take(2).is_none());
        let mut entry = take(1).unwrap();
        assert_eq!((entry.failures, entry.passed), (1, false));
        entry.note(true).unwrap();
        let entry = take(1).unwrap();
        assert_eq!((entry.failures, entry.passed), (1, true));
        // A number that begins like another's.
        assert!(take(11).is_none());
    }
}
