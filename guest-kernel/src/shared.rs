//! The shared libraries that a program links.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::error::Result;

/// The name of the loader on x86-64, which finds the libraries.
pub const LOADER: &str = "ld-linux-x86-64.so.2";

/// Files of the libraries that `program`, or a library, needs, the loader apart: as `loader` finds
/// them in `folders`, or where it looks by itself.
///
/// # Errors
/// The loader does not take the file.
pub fn libraries(loader: &Path, folders: &[PathBuf], program: &Path) -> Result<Vec<PathBuf>> {
    let path = folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(":");
    let mut list = Command::new(loader);
    list.args(["--library-path", &path, "--list"]).arg(program);
    Ok(listed(&apt::run(&mut list, "libc6")?))
}

/// Libraries in the list that the loader prints, but for itself.
fn listed(list: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let (_, path) = line.split_once(" => ")?;
        let path = PathBuf::from(path.rsplit_once(" (").map_or(path, |(path, _)| path));
        (path.file_name()? != LOADER).then_some(path)
    };
    list.lines().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_loaders_list() {
        let list = "\tlinux-vdso.so.1 (0x00007ffe)\n\
                    \tlibz.so.1 => /t/lib/libz.so.1 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\
                    \tlibq.so => not found\n";
        // What is not found is in no tree, and so refused.
        let wanted = ["/t/lib/libz.so.1", "not found"].map(PathBuf::from);
        assert_eq!(listed(list), wanted);
    }
}
