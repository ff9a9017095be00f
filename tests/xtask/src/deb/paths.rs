//! Where the programs were built: what a package says of that to nobody.
//!
//! A program names the source of each place that may panic. The packaged ones have such paths
//! beginning in the sources, in cargo's home (`cargo/registry/…/ring-0.17.14/…`) or in the target
//! folder, wherever these are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::build::Workspace;

/// Folders of whoever builds it, and what a program calls them.
pub struct Paths(Vec<(String, &'static str)>);

impl Paths {
    /// Of this build.
    pub fn of(workspace: &Workspace) -> Result<Self> {
        let home = std::env::home_dir().map(|home| home.join(".cargo"));
        let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
        let cargo = cargo.context("neither CARGO_HOME nor HOME is set")?;
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.with_context(|| format!("{} is not UTF-8", path.display()))
        };
        // Of several that fit rustc takes the last, which may be within the others.
        let all = [(&workspace.root, "."), (&workspace.target, "target"), (&cargo, "cargo")];
        all.into_iter().map(|(path, to)| Ok((text(path)?, to))).collect::<Result<_>>().map(Self)
    }

    /// What rustc is told of them.
    pub fn flags(&self) -> Vec<String> {
        self.0.iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")).collect()
    }

    /// Refuses a program that names one of them all the same.
    pub fn check(&self, program: &Path) -> Result<()> {
        let bytes =
            std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        match self.0.iter().find(|(path, _)| is_in(&bytes, path)) {
            Some((path, _)) => bail!("{} names {path}, where it was built", program.display()),
            None => Ok(()),
        }
    }
}

/// Whether a path begins with this one somewhere. Not where it goes on from another: `/src` is in
/// many.
fn is_in(bytes: &[u8], path: &str) -> bool {
    let path = format!("{path}/");
    let within = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./".contains(byte);
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| find(rest, path.as_bytes())) {
        let before = (at + found).checked_sub(1).and_then(|before| bytes.get(before));
        if !before.is_some_and(within) {
            return true;
        }
        at += found + 1;
    }
    false
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let first = *text.first()?;
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
    starts.map(|(at, _)| at).find(|at| bytes.get(*at..).is_some_and(|b| b.starts_with(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_names_a_folder_of_its_builder_is_refused() {
        let all = Paths(vec![("/src".into(), "."), ("/home/a/.cargo".into(), "cargo")]);
        assert_eq!(all.flags()[1], "--remap-path-prefix=/home/a/.cargo=cargo");
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            all.check(file.path()).map_err(|e| e.to_string())
        };
        check(b"\0cargo/registry/src/x/lib.rs\0vmm/src/main.rs\0/srcs/\0/src\0").unwrap();
        for (bytes, path) in [
            (&b"/src/vmm/src/main.rs"[..], "/src,"),
            (b"cargo/registry/src/x/lib.rs\0/src/vmm/src/main.rs\0", "/src,"),
            (b"\x7fELF\0\0/home/a/.cargo/registry/src/x/lib.rs\0", "/home/a/.cargo,"),
        ] {
            let error = check(bytes).unwrap_err();
            assert!(error.contains(path), "{error}");
        }
    }
}
