//! Builds of other releases, for tests of guests that move between two.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build::Workspace;

/// The binaries `wherry`, each with the variable in which tests look for it.
pub type Builds = Vec<(&'static str, PathBuf)>;

/// Builds what tests of releases need.
pub fn build(workspace: &Workspace) -> Result<Builds> {
    Ok(vec![("WHERRY_BIN_NEWER", newer(workspace)?)])
}

/// This tree, playing the next release. Apart from the other products, since it may replace none.
fn newer(workspace: &Workspace) -> Result<PathBuf> {
    let target = workspace.out()?.join("newer");
    binaries(workspace, &workspace.root, &target, &["--features", "wherry-vmm/newer"])
}

/// Both programs of the tree at `root`, built into `target`, quickly and not to be fast.
fn binaries(workspace: &Workspace, root: &Path, target: &Path, more: &[&str]) -> Result<PathBuf> {
    let manifest = root.join("Cargo.toml");
    let (manifest, dir) = (text(&manifest)?, text(target)?);
    let packages = ["--package", "wherry-cli", "--package", "wherry-vmm", "--bins"];
    let place = ["--manifest-path", manifest, "--target-dir", dir];
    workspace.cargo(&[&["build"], &packages[..], &place, more].concat())?;
    Ok(target.join("debug/wherry"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: not Unicode", path.display()))
}
