//! Builds of other releases, for tests of guests that move between two.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use wherry_tests::cargo::PROGRAMS_OF_UNITS;

use crate::build::Workspace;
use crate::note::note;

/// The binaries `wherry`, each with the variable in which tests look for it.
pub type Builds = Vec<(&'static str, PathBuf)>;

/// The file at the root that names the last release.
const RELEASE: &str = "RELEASE";

/// Builds what tests of releases need.
pub fn build(workspace: &Workspace) -> Result<Builds> {
    // Without the last release its test says that there is none.
    let last = last(workspace)?.unwrap_or_default();
    Ok(vec![("WHERRY_BIN_NEWER", newer(workspace)?), ("WHERRY_BIN_RELEASE", last)])
}

/// This tree, playing the next release. Its programs are apart from the other products, of which
/// they may replace none; what they are made of is what the unit tests are made of, mostly.
fn newer(workspace: &Workspace) -> Result<PathBuf> {
    let place = workspace.out()?.join("releases/newer");
    let shared = format!("build.build-dir={:?}", text(&workspace.target)?);
    let more = ["--features", "wherry-vmm/newer", "--config", &shared];
    let options = [&PROGRAMS_OF_UNITS[..], &more].concat();
    binaries(workspace, &workspace.root, &place, &options)
}

/// The last release, built once. `None`, and said, where this copy of the repository lacks it.
fn last(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let text = std::fs::read_to_string(workspace.root.join(RELEASE))
        .with_context(|| format!("cannot read {RELEASE}"))?;
    let (version, commit) = parse(&text)?;
    let place = workspace.out()?.join("releases").join(commit);
    let wherry = place.join("wherry");
    let tree = format!("{commit}^{{tree}}");
    let known = git(&workspace.root, &["cat-file", "-e", &tree]);
    if !known.is_ok_and(|out| out.status.success()) {
        note(&format!(
            "release {version} ({commit}) is not in this copy of the repository: moving a guest \
             there and back is NOT tested; `git fetch --unshallow` brings it"
        ));
        return Ok(None);
    }
    frozen(&workspace.root, version, commit)?;
    if wherry.exists() {
        return Ok(Some(wherry));
    }
    let source = place.join("source");
    export(&workspace.root, commit, &source)?;
    // Not to be debugged, and therefore sooner.
    let packages = ["--package", "wherry-cli", "--package", "wherry-vmm", "--bins"];
    let more = ["--locked", "--config", "profile.dev.debug=false"];
    let built = binaries(workspace, &source, &place, &[&packages[..], &more].concat());
    // Its source is no part of this tree, for whoever looks for packages or counts lines.
    let _ = std::fs::remove_dir_all(&source);
    let _ = std::fs::remove_dir_all(place.join("target"));
    built.map(Some)
}

/// Version and commit of the file's last line.
fn parse(text: &str) -> Result<(&str, &str)> {
    let line = text.lines().rfind(|line| !line.starts_with('#')).unwrap_or_default();
    let (version, commit) = line.split_once(' ').context("RELEASE names no commit")?;
    let hex = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
    ensure!(hex, "RELEASE: `{commit}` is not a commit");
    Ok((version, commit))
}

/// Runs git here and keeps what it says to itself. Somebody else's repository is only read.
fn git(root: &Path, args: &[&str]) -> Result<Output> {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*"]).args(args).current_dir(root);
    git.output().context("cannot run git")
}

/// Golden bytes that a release wrote are for good: files may join them, and none may change.
fn frozen(root: &Path, version: &str, commit: &str) -> Result<()> {
    let changed = ["diff", "--name-only", "--diff-filter=MD", commit, "--", "*/golden/*"];
    let out = git(root, &changed)?;
    let files = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "git diff: {}", String::from_utf8_lossy(&out.stderr));
    ensure!(files.is_empty(), "release {version} wrote other bytes than these say:\n{files}");
    Ok(())
}

/// Writes the tree of `commit` to `to`.
fn export(root: &Path, commit: &str, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let tar = to.with_extension("tar");
    let (file, dir) = (text(&tar)?, text(to)?);
    let packed = git(root, &["archive", "--output", file, commit])?;
    ensure!(packed.status.success(), "git archive: {}", String::from_utf8_lossy(&packed.stderr));
    let unpacked = Command::new("tar").args(["-x", "-f", file, "-C", dir]).status();
    ensure!(unpacked.context("cannot run tar")?.success(), "cannot unpack {file}");
    std::fs::remove_file(&tar).with_context(|| format!("cannot remove {file}"))
}

/// Builds both programs of the tree at `root`, with these options, quickly and not to be fast, and
/// puts them into `place`.
fn binaries(workspace: &Workspace, root: &Path, place: &Path, more: &[&str]) -> Result<PathBuf> {
    // A target directory for each: cargo takes packages of the same name, version and place in
    // their workspace for the same, and goes by the times of files. In one directory this tree
    // would be built with crates of the release.
    let target = place.join("target");
    let manifest = root.join("Cargo.toml");
    let (manifest, dir) = (text(&manifest)?, text(&target)?);
    workspace
        .cargo(&[&["build", "--manifest-path", manifest, "--target-dir", dir], more].concat())?;
    std::fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    // `wherry` last: it is what says that all is there.
    for program in ["wherry-vm", "wherry"] {
        let new = place.join(format!("{program}.new"));
        let copied = std::fs::copy(target.join("debug").join(program), &new)
            .and_then(|_| std::fs::rename(&new, place.join(program)));
        copied.with_context(|| format!("cannot copy {program}"))?;
    }
    Ok(place.join("wherry"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: not Unicode", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_names_the_release() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let text = format!("# Releases\n0.1.0 {}\n0.2.0 {commit}\n", commit.replace('0', "1"));
        assert_eq!(parse(&text).unwrap(), ("0.2.0", commit));
        for wrong in ["", "# none\n", "0.2.0\n", "0.2.0 main\n", "0.2.0 --output=x\n"] {
            parse(wrong).expect_err(wrong);
        }
    }
}
