//! The package's files, in a folder that `dpkg-deb` packs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use wherry_tests::hosts::output;

use super::edition::Edition;
use super::licences;
use super::paths::Paths;
use crate::build::Workspace;

/// Both programs; `/usr/bin/wherry` leads to the first, which finds the second beside itself.
const PROGRAMS: &str = "usr/libexec/wherry";
const DOC: &str = "usr/share/doc/wherry";
/// Files of `packaging`, and the folders that they go into.
const FILES: [(&str, &str); 7] = [
    ("systemd/wherry@.service", "usr/lib/systemd/system"),
    ("systemd/wherry-receive@.service", "usr/lib/systemd/system"),
    ("systemd/wherry-metrics.service", "usr/lib/systemd/system"),
    ("systemd/wherry-metrics.timer", "usr/lib/systemd/system"),
    ("examples/web.toml", "usr/share/doc/wherry/examples"),
    ("examples/user-network.conf", "usr/share/doc/wherry/examples"),
    ("debian/copyright", DOC),
];
/// Scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Makes all of it at `root`.
pub fn make(workspace: &Workspace, edition: &Edition, paths: &Paths, root: &Path) -> Result<()> {
    let tree = Tree { root, packaging: workspace.root.join("packaging") };
    let programs = ["wherry", "wherry-vm"];
    for name in programs {
        tree.copy(&workspace.packaged_path().with_file_name(name), PROGRAMS, name, 0o755)?;
        run(
            "strip",
            &["--strip-unneeded", "--remove-section=.comment"],
            &[&tree.at(PROGRAMS).join(name)],
        )?;
        paths.check(&tree.at(PROGRAMS).join(name))?;
    }
    fs::create_dir_all(tree.at("usr/bin"))?;
    symlink("../libexec/wherry/wherry", tree.at("usr/bin/wherry"))?;
    fs::create_dir_all(tree.at("etc/wherry"))?;
    for (file, folder) in FILES {
        let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        tree.copy(&tree.packaging.join(file), folder, name, 0o644)?;
    }
    let overrides = tree.packaging.join("debian/lintian-overrides");
    tree.copy(&overrides, "usr/share/lintian/overrides", "wherry", 0o644)?;
    let share = tree.at("usr/share");
    run(
        &tree.at(PROGRAMS).join("wherry").display().to_string(),
        &["pages", "--output"],
        &[&share],
    )?;
    // Where Debian's zsh looks.
    fs::rename(share.join("zsh/site-functions"), share.join("zsh/vendor-completions"))?;
    let mut packed = pages(&tree.at("usr/share/man/man1"))?;
    let changelog = fs::read_to_string(workspace.root.join("CHANGELOG.md"))?;
    for (name, text) in [
        ("changelog", changelog),
        ("changelog.Debian", debian_changelog(edition)),
        ("crates", licences::text()?),
    ] {
        packed.push(tree.write(&format!("{DOC}/{name}"), &text)?);
    }
    let packed: Vec<&Path> = packed.iter().map(PathBuf::as_path).collect();
    run("gzip", &["-9", "--no-name"], &packed)?;
    plain(root)?;
    let depends = depends(&programs.map(|name| tree.at(PROGRAMS).join(name)))?;
    tree.control(edition, &depends)
}

struct Tree<'a> {
    root: &'a Path,
    packaging: PathBuf,
}

impl Tree<'_> {
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn copy(&self, from: &Path, folder: &str, name: &str, mode: u32) -> Result<()> {
        let folder = self.at(folder);
        let to = folder.join(name);
        fs::create_dir_all(&folder)
            .and_then(|()| fs::copy(from, &to).map(drop))
            .and_then(|()| fs::set_permissions(&to, fs::Permissions::from_mode(mode)))
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    }

    fn write(&self, path: &str, text: &str) -> Result<PathBuf> {
        let path = self.at(path);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// What dpkg reads.
    fn control(&self, edition: &Edition, depends: &str) -> Result<()> {
        let mut du = Command::new("du");
        let size = output(du.args(["-sk", "--apparent-size"]).arg(self.root))?;
        let size = size.split_whitespace().next().unwrap_or_default();
        let sums = "find * -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum";
        let mut sum = Command::new("sh");
        let sums = output(sum.args(["-c", sums]).current_dir(self.root))?;
        for script in SCRIPTS {
            let from = self.packaging.join("debian").join(script);
            self.copy(&from, "DEBIAN", script, 0o755)?;
        }
        let control = fs::read_to_string(self.packaging.join("debian/control"))?;
        let filled = [("VERSION", &*edition.version), ("SIZE", size), ("DEPENDS", depends)]
            .iter()
            .fold(control, |text, (name, value)| text.replace(&format!("@{name}@"), value));
        self.write("DEBIAN/control", &filled)?;
        self.write("DEBIAN/md5sums", &sums)?;
        Ok(())
    }
}

/// The manual pages, which are to be packed.
fn pages(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// The changes of the package itself, of which there are none yet.
fn debian_changelog(edition: &Edition) -> String {
    let maintainer = "Wherry maintainers <maintainers@wherry.example>";
    format!(
        "wherry ({}) unstable; urgency=medium\n\n  * What changed is in changelog.gz.\n\n \
         -- {maintainer}  {}\n",
        edition.version, edition.date
    )
}

/// What the programs are linked with, as packages.
fn depends(programs: &[PathBuf]) -> Result<String> {
    let work = tempfile::tempdir()?;
    // It wants to stand in a source package.
    fs::create_dir(work.path().join("debian"))?;
    let source = "Source: wherry\n\nPackage: wherry\nArchitecture: amd64\n";
    fs::write(work.path().join("debian/control"), source)?;
    let mut ask = Command::new("dpkg-shlibdeps");
    let said = output(ask.arg("-O").args(programs).current_dir(work.path()))
        .context("it is of the package dpkg-dev")?;
    match said.trim().strip_prefix("shlibs:Depends=") {
        Some(packages) => Ok(packages.to_owned()),
        None => bail!("dpkg-shlibdeps says `{}`", said.trim()),
    }
}

/// Gives all files and folders plain modes, whatever the umask: programs keep theirs.
fn plain(root: &Path) -> Result<()> {
    run("chmod", &["--recursive", "u=rwX,go=rX"], &[root])
}

fn run(program: &str, words: &[&str], files: &[&Path]) -> Result<()> {
    output(Command::new(program).args(words).args(files)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_packaging_is_packed() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
        let mut there = Vec::new();
        for folder in ["systemd", "examples"] {
            for entry in fs::read_dir(workspace.join(folder)).unwrap() {
                there.push(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        there.sort();
        let mut packed: Vec<_> = FILES.iter().map(|(file, _)| (*file).to_owned()).collect();
        packed.retain(|file| !file.starts_with("debian/"));
        packed.sort();
        assert_eq!(there, packed);
        for script in SCRIPTS {
            assert!(workspace.join("debian").join(script).is_file(), "{script}");
        }
    }
}
