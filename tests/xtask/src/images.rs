//! Stock kernels and the initramfs images for them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wherry_guest_kernel::initramfs;
use wherry_guest_kernel::kernels::{self, Kernel, KernelId};

use crate::build::Workspace;
use crate::note::note;

/// What boots as a guest.
#[derive(Debug, Clone)]
pub struct Image {
    /// The stock kernel.
    pub kernel: Kernel,
    /// The initramfs with our init and this kernel's modules.
    pub initrd: PathBuf,
}

/// The kernel, downloaded if it is not in the cache.
pub fn kernel(id: KernelId) -> Result<Kernel> {
    kernels::provision(id, &kernels::cache_dir(), &mut |line| note(line))
        .with_context(|| format!("cannot provide the kernel {id}"))
}

/// Kernels that are not in the cache.
pub fn missing() -> Vec<KernelId> {
    let cache = kernels::cache_dir();
    KernelId::ALL.into_iter().filter(|&id| kernels::find(id, &cache).is_none()).collect()
}

/// Provides the guest images for `ids`, building init first.
pub fn guests(workspace: &Workspace, ids: &[KernelId]) -> Result<Vec<Image>> {
    let init = workspace.init()?;
    ids.iter().map(|&id| guest(workspace, &init, id)).collect()
}

/// Provides everything: the images of all kernels.
pub fn all(workspace: &Workspace) -> Result<Vec<Image>> {
    guests(workspace, &KernelId::ALL)
}

fn guest(workspace: &Workspace, init: &Path, id: KernelId) -> Result<Image> {
    let kernel = kernel(id)?;
    let content = initramfs::guest(init, &kernel.modules)?;
    let initrd = workspace.out()?.join(format!("initrd-{id}.img"));
    // A guest may be booting from it right now: never write in place, and not at all without need.
    if fs::read(&initrd).ok().as_deref() != Some(&content) {
        let partial = initrd.with_extension(format!("{}", std::process::id()));
        fs::write(&partial, content)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &initrd)
            .with_context(|| format!("cannot create {}", initrd.display()))?;
    }
    Ok(Image { kernel, initrd })
}

/// The environment that tells tests and demo where the images are: `WHERRY_KERNEL_CLOUD_6_1`,
/// `WHERRY_INITRD_…`, `WHERRY_RELEASE_…` and so on; `WHERRY_KERNEL` and `WHERRY_INITRD` stand for
/// the first image.
pub fn environment(images: &[Image]) -> Vec<(String, PathBuf)> {
    let mut env = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let suffix = format!("_{}", image.kernel.id.env_suffix());
        for suffix in [suffix.as_str(), ""].iter().take(if index == 0 { 2 } else { 1 }) {
            env.push((format!("WHERRY_KERNEL{suffix}"), image.kernel.vmlinuz.clone()));
            env.push((format!("WHERRY_INITRD{suffix}"), image.initrd.clone()));
            env.push((format!("WHERRY_RELEASE{suffix}"), PathBuf::from(&image.kernel.release)));
        }
    }
    env
}

/// The environment of whatever runs in the lab: where the binary, the kernels and the images are,
/// and where to write.
pub fn lab_environment(wherry: &Path, images: &[Image]) -> Vec<(OsString, OsString)> {
    let mut env = environment(images);
    env.push(("WHERRY_BIN".into(), wherry.to_owned()));
    env.push(("WHERRY_SCRATCH".into(), PathBuf::from("/dev/shm")));
    env.push(("WHERRY_RUNTIME_DIR".into(), PathBuf::from("/run/user/0")));
    env.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}
