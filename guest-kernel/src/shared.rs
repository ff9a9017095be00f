//! The shared libraries that a program links.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::elf::{self, PT_INTERP};
use crate::error::{Error, Result, io};

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

/// Files that `program` needs here to be started: its loader and its libraries. Nothing for what
/// names no loader.
///
/// # Errors
/// A library is not here.
pub fn needs(program: &Path) -> Result<Vec<PathBuf>> {
    let file = fs::read(program).map_err(io("read", program))?;
    let segments = elf::segments(&file).unwrap_or_default();
    let Some(interp) = segments.iter().find(|segment| segment.kind == PT_INTERP) else {
        return Ok(Vec::new());
    };
    let loader = interp.content.strip_suffix(&[0]).unwrap_or(interp.content);
    let loader = PathBuf::from(OsStr::from_bytes(loader));
    let mut needs = libraries(&loader, &[], program)?;
    if let Some(library) = needs.iter().find(|library| !library.is_absolute()) {
        let what = format!("one of its libraries is {}", library.display());
        return Err(Error::Malformed { path: program.to_owned(), what });
    }
    needs.push(loader);
    Ok(needs)
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

    #[test]
    fn this_program_needs_the_c_library_and_a_text_needs_nothing() {
        let needs = super::needs(&std::env::current_exe().unwrap()).unwrap();
        let has = |name: &str| needs.iter().any(|path| path.file_name() == Some(name.as_ref()));
        assert!(has("libc.so.6") && has(LOADER), "{needs:?}");
        assert!(needs.iter().all(|path| path.is_file()), "{needs:?}");
        let text = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(super::needs(text.path()).unwrap(), Vec::<PathBuf>::new());
    }
}
