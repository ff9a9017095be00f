//! Files that are there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts a file with these bytes into its place: who reads it finds the old or the new one. `mode`
/// is that of a new file, less the process's umask; nobody can read it otherwise at any time.
///
/// # Errors
/// It cannot be written, or what is there is not a regular file; then that is as before.
pub fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<File> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    // Another name would take the place of a device, a pipe or a link.
    if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("what is there is not a regular file"));
    }
    let mut new = OsString::from(".");
    new.push(name);
    // Not with the ending of the name, by which others find files to read.
    new.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(new);
    // Left by one that was killed.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&new, path));
    if let Err(e) = written {
        let _ = fs::remove_file(&new);
        return Err(e);
    }
    Ok(file)
}
