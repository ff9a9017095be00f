//! The file's text.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use wherry_vmm::control::ControlError;

/// Bytes of a file.
const MOST: u64 = 1 << 20;

/// All of a regular file.
///
/// # Errors
/// It is none, too large, not text, or cannot be read. Nothing waits for a named pipe.
pub fn read(path: &Path) -> Result<String, ControlError> {
    let failed = |why: String| ControlError::failed(format!("--config {}: {why}", path.display()));
    // Opening a pipe would wait for who writes to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => failed("no such file".into()),
        io::ErrorKind::PermissionDenied => failed("no permission to read it".into()),
        _ => failed(e.to_string()),
    })?;
    if !file.metadata().map_err(|e| failed(e.to_string()))?.is_file() {
        return Err(failed("not a file".into()));
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > MOST {
        return Err(failed("more than 1 MiB".into()));
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = e.as_bytes().iter().take(e.utf8_error().valid_up_to());
        let line = 1 + good.filter(|byte| **byte == b'\n').count();
        failed(format!("line {line} is not UTF-8"))
    })
}
