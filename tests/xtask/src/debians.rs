//! The stock Debians that tests boot, as disks of the lab.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wherry_guest_kernel::debian::{Release, Spec};
use wherry_guest_kernel::kernels::{self, Flavour, KernelId};

use crate::build::Workspace;
use crate::image;
use crate::lab::{self, Job};
use crate::note::note;

/// Gives the lab its disks, and tells the tests which is which: one Debian to boot and one whose
/// programs hosts and client use; for a soak all others, too, and packages of other kernels.
pub fn give(workspace: &Workspace, job: &mut Job, soak: bool) -> Result<()> {
    let tested = image::provide(&image::tested(), false)?.path;
    give_one(job, "WHERRY_DEBIAN_BOOKWORM_CLOUD", tested.clone());
    give_one(job, "WHERRY_TOOLS", tested);
    if !soak {
        return Ok(());
    }
    for (release, flavour, variable) in [
        (Release::Bookworm, Flavour::Generic, "WHERRY_DEBIAN_BOOKWORM_GENERIC"),
        (Release::Trixie, Flavour::Cloud, "WHERRY_DEBIAN_TRIXIE_CLOUD"),
        (Release::Trixie, Flavour::Generic, "WHERRY_DEBIAN_TRIXIE_GENERIC"),
    ] {
        give_one(job, variable, image::provide(&Spec::new(release, flavour), false)?.path);
    }
    for id in KernelId::ALL {
        let disk = packages(workspace, id)?;
        give_one(job, &format!("WHERRY_PACKAGES_{}", id.env_suffix()), disk);
    }
    Ok(())
}

fn give_one(job: &mut Job, variable: &str, image: PathBuf) {
    job.env.push((variable.into(), lab::disk_name(job.disks.len()).into()));
    job.disks.push(image);
}

/// A disk with the package of a kernel.
fn packages(workspace: &Workspace, id: KernelId) -> Result<PathBuf> {
    let disk = workspace.out()?.join(format!("packages-{id}.raw"));
    if disk.exists() {
        return Ok(disk);
    }
    let dir = tempfile::tempdir().context("cannot create a temporary folder")?;
    kernels::package(id, dir.path(), &mut |line| note(line))?;
    let made = make_disk(dir.path(), &disk);
    if made.is_err() {
        let _ = std::fs::remove_file(&disk);
    }
    made.with_context(|| format!("cannot make {}", disk.display()))?;
    Ok(disk)
}

/// An ext4 of 512 MiB with what is in the folder.
fn make_disk(folder: &Path, disk: &Path) -> Result<()> {
    let mut mke2fs = std::process::Command::new("mke2fs");
    mke2fs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(folder).arg(disk).arg("512M");
    wherry_tests::hosts::output(&mut mke2fs).map(drop)
}
