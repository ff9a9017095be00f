//! `cargo xtask deb`: a Debian package of the two programs, their pages and their units.
//!
//! - [`edition`]: its version. [`tree`]: what is in it. [`licences`]: those of the crates that are
//!   linked in. [`paths`]: those of the build, which are left out.

mod edition;
mod licences;
mod paths;
mod tree;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use wherry_guest_kernel::debian::{self, Release};
use wherry_guest_kernel::kernels;
use wherry_tests::hosts::output;

use crate::build::Workspace;
use crate::image::Terminal;
use crate::note::note;
use edition::Edition;
use paths::Paths;

/// What the fresh system of `--check` has beside the essential packages.
const CHECKERS: [&str; 8] = [
    "lintian",
    "systemd",
    "udev",
    "iproute2",
    "openssh-client",
    "openssh-server",
    "passt",
    // For its promtool.
    "prometheus",
];
/// What it runs, of `packaging/debian`.
const SCRIPTS: [&str; 3] = ["try", "boot", "units"];

/// Options of `deb`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Package the binaries that the last package was made of, without building them anew.
    #[arg(long)]
    as_built: bool,
    /// Also look at it with lintian, install, use, remove and purge it in a fresh Debian, and use
    /// the units under a systemd. Takes root, a /dev/kvm and some minutes.
    #[arg(long)]
    check: bool,
}

/// Runs `cargo xtask deb`.
pub fn main(args: &Args) -> Result<u8> {
    let workspace = Workspace::find()?;
    let paths = Paths::of(&workspace)?;
    if !args.as_built {
        workspace.packaged(&paths.flags())?;
    }
    let edition = Edition::of(&workspace)?;
    let work = tempfile::tempdir_in(workspace.out()?).context("cannot make a folder")?;
    let root = work.path().join("root");
    tree::make(&workspace, &edition, &paths, &root)?;
    let deb = workspace.out()?.join(format!("wherry_{}_amd64.deb", edition.version));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(&deb);
    output(build.env("SOURCE_DATE_EPOCH", &edition.seconds))?;
    // Who reads only the beginning closes the pipe.
    let _ = writeln!(std::io::stdout(), "{}", deb.display());
    if args.check {
        check(&workspace, &deb, work.path())?;
    }
    Ok(0)
}

/// Tries the package in a fresh Debian 12.
fn check(workspace: &Workspace, deb: &Path, work: &Path) -> Result<()> {
    let bring = work.join("bring");
    fs::create_dir(&bring)?;
    let scripts = SCRIPTS.map(|name| workspace.root.join("packaging/debian").join(name));
    for from in scripts.into_iter().chain([deb.to_owned(), workspace.hostile()?]) {
        let to = bring.join(from.file_name().unwrap_or_default());
        fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let cache = kernels::cache_dir();
    let tried = debian::try_in(Release::Bookworm, &CHECKERS, &bring, &cache, &mut Terminal);
    let (passed, said) = tried.context("cannot try the package")?;
    eprint!("{said}");
    ensure!(passed, "the package did not pass; see above");
    note("the package passed");
    Ok(())
}
