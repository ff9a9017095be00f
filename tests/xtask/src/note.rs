//! What a command says while it works, and where it may write.

use std::fs::OpenOptions;
use std::path::Path;

use anyhow::Context;

/// One line of progress, on standard error so that a command's output stays clean.
pub fn note(text: &str) {
    eprintln!("xtask: {text}");
}

/// Finds out now what else would be found after minutes of work. Leaves the file as it is.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    let is_new = !path.exists();
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if is_new {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_whether_a_file_can_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        std::fs::write(&old, "old").unwrap();
        check_writable(&old).unwrap();
        check_writable(&new).unwrap();
        assert!(check_writable(&dir.path().join("no/file")).is_err() && !new.exists());
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "old");
    }
}
