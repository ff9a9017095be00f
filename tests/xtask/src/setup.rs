//! `cargo xtask setup`: what the other commands need, found or installed.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::note::note;
use crate::{build, images};

/// Options of `setup`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Only say what is missing.
    #[arg(long)]
    check: bool,
}

/// Something that must be installed: how to see that it is there, and its Debian package.
struct Need {
    package: &'static str,
    present: fn() -> bool,
}

const NEEDS: [Need; 6] = [
    Need { package: "qemu-system-x86", present: || on_path("qemu-system-x86_64") },
    Need { package: "dpkg", present: || on_path("dpkg-deb") },
    Need { package: "gcc", present: || on_path("cc") },
    // Not on every user's path.
    Need { package: "e2fsprogs", present: || on_path("mke2fs") || is_file("/usr/sbin/mke2fs") },
    // Networks of guests without privileges.
    Need { package: "passt", present: || on_path("passt") },
    // The guest's init is linked statically.
    Need { package: "libc6-dev", present: || build::static_libc_present() },
];

/// Whether a program can be found.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn is_file(path: &str) -> bool {
    std::path::Path::new(path).is_file()
}

/// Runs `cargo xtask setup`.
pub fn main(args: &Args) -> Result<u8> {
    let missing = missing();
    if args.check {
        let kernels = images::missing();
        missing.iter().for_each(|package| println!("missing package: {package}"));
        kernels.iter().for_each(|kernel| println!("missing kernel: {kernel}"));
        return Ok(u8::from(!(missing.is_empty() && kernels.is_empty())));
    }
    install_missing()?;
    let workspace = build::Workspace::find()?;
    images::all(&workspace)?;
    workspace.hostile()?;
    note("setup complete");
    Ok(0)
}

/// Whether this is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, changes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn missing() -> Vec<&'static str> {
    NEEDS.iter().filter(|need| !(need.present)()).map(|need| need.package).collect()
}

/// Installs what is missing if this is root, else says which command does.
pub fn install_missing() -> Result<()> {
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !on_path("apt-get") {
        bail!(
            "missing: {}; install the like of these Debian packages with your package manager",
            packages.join(", ")
        );
    }
    if !is_root() {
        bail!(
            "missing: {}; this installs it: sudo apt-get update && sudo {install}",
            packages.join(", ")
        );
    }
    note(&format!("installing {}", packages.join(" ")));
    // Stale or missing package lists are the usual reason for a failure.
    if !(apt(&install)? || apt("apt-get update -q")? && apt(&install)?) {
        bail!("`{install}` failed; see above");
    }
    match self::missing().as_slice() {
        [] => Ok(()),
        left => bail!("still missing after the installation: {}", left.join(", ")),
    }
}

/// Runs an apt command line with its output on standard error; tells whether it succeeded.
fn apt(line: &str) -> Result<bool> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr());
    Ok(command.status().with_context(|| format!("cannot run `{line}`"))?.success())
}

/// Adds parts of the Rust toolchain that are missing, through rustup.
pub fn add_components(names: &[&str]) -> Result<()> {
    let present = |name: &str| {
        // The programs that the components bring.
        let program = if name == "clippy" { "clippy-driver" } else { name };
        // rustup's stand-in is there in any case; it fails if the component is not.
        Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
    };
    let missing: Vec<&str> = names.iter().copied().filter(|name| !present(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !on_path("rustup") {
        bail!(
            "missing parts of the Rust toolchain: {list}; with rustup: rustup component add {list}"
        );
    }
    note(&format!("adding {list} to the Rust toolchain"));
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add"]).args(&missing).stdout(std::io::stderr());
    if !rustup.status().context("cannot run rustup")?.success() {
        bail!("`rustup component add {list}` failed; see above");
    }
    Ok(())
}
