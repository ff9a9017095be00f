//! What a command needs, for a lab that cannot read this machine's files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use wherry_guest_kernel::shared;

use super::job::Job;

/// Files of the job, and where they belong: what it copies, and its program; of programs without
/// what is for debuggers (written to `dir`), with their libraries.
///
/// # Errors
/// One is not there.
pub fn of(job: &Job, dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = BTreeMap::new();
    for (from, to) in &job.copies {
        walk(from, to, &mut found)?;
    }
    let program = job.argv.first().map(|program| job.cwd.join(program)).unwrap_or_default();
    if program.is_file() && !found.contains_key(&program) {
        walk(&program, &program, &mut found)?;
    }
    let mut libraries = BTreeMap::new();
    let stripped = dir.join("stripped");
    fs::create_dir_all(&stripped).context("cannot create a folder")?;
    for (index, from) in found.values_mut().enumerate() {
        let needs = shared::needs(from)?;
        if !needs.is_empty() {
            libraries.extend(needs.into_iter().map(|library| (library.clone(), library)));
            let small = stripped.join(index.to_string());
            let mut strip = Command::new("strip");
            let status = strip.arg("-o").arg(&small).arg(&*from).status();
            ensure!(
                status.context("cannot run strip, of the package binutils")?.success(),
                "cannot strip {}",
                from.display()
            );
            *from = small;
        }
    }
    libraries.extend(found);
    Ok(libraries.into_iter().map(|(to, from)| (from, to)).collect())
}

/// Adds the files of a file or folder, by where they belong.
fn walk(from: &Path, to: &Path, found: &mut BTreeMap<PathBuf, PathBuf>) -> Result<()> {
    let cannot = || format!("cannot read {}", from.display());
    if fs::metadata(from).with_context(cannot)?.is_dir() {
        for entry in fs::read_dir(from).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            walk(&entry.path(), &to.join(entry.file_name()), found)?;
        }
    } else {
        found.insert(to.to_owned(), from.to_owned());
    }
    Ok(())
}
