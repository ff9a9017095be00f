//! For tests: encodings as files in the tree, so that none changes unseen.

use std::fs;
use std::path::Path;

/// Compares `bytes` with the file `name` in the folder `golden` of the crate at `root`
/// (`env!("CARGO_MANIFEST_DIR")`). With `WHERRY_GOLDEN=write` in the environment it writes the file
/// instead.
///
/// # Panics
/// They differ, or the file cannot be read or written.
pub fn check(root: &str, name: &str, bytes: &[u8]) {
    let path = Path::new(root).join("golden").join(name);
    let shown = path.display();
    if std::env::var_os("WHERRY_GOLDEN").is_some_and(|v| v == "write") {
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{shown}: {e}"));
    }
    let golden = fs::read(&path).unwrap_or_else(|e| panic!("{shown}: {e}"));
    if golden != bytes {
        let at = golden.iter().zip(bytes).position(|(a, b)| a != b);
        let at = at.unwrap_or(golden.len().min(bytes.len()));
        panic!("{shown}: the encoding has changed at byte {at}: older Wherrys cannot read it");
    }
}
