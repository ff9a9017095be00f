//! Stock Debian kernels: fetched and verified by apt, unpacked into a cache, never installed.
//!
//! A kernel in the cache is used as it is, without a look at the network. A kernel gets there by a
//! rename of a complete directory, so an interrupted download never looks like a kernel.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::{self, download, update_lists};
use crate::error::{Error, Result, io};

/// Debian's two builds for x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: small, only virtual hardware.
    Cloud,
    /// `linux-image-amd64`: everything, and the only one with 9p.
    Generic,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
        })
    }
}

/// Which stock kernel: a flavour and an upstream series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelId {
    /// Debian's build.
    pub flavour: Flavour,
    /// Upstream series, for example `6.1`.
    pub series: &'static str,
}

impl KernelId {
    /// The kernel of the demo and of most tests.
    pub const CLOUD_6_1: Self = Self { flavour: Flavour::Cloud, series: "6.1" };
    /// The kernel of the lab's KVM host, and a guest.
    pub const GENERIC_6_1: Self = Self { flavour: Flavour::Generic, series: "6.1" };
    /// Newer, with modules compressed and virtio built in.
    pub const CLOUD_6_12: Self = Self { flavour: Flavour::Cloud, series: "6.12" };
    /// Newer, generic.
    pub const GENERIC_6_12: Self = Self { flavour: Flavour::Generic, series: "6.12" };
    /// All that the tests know.
    pub const ALL: [Self; 4] =
        [Self::CLOUD_6_1, Self::GENERIC_6_1, Self::CLOUD_6_12, Self::GENERIC_6_12];

    /// Package names that may stand for this kernel, best first. Which one it is depends on the
    /// Debian release: 6.1 is Debian 12's own kernel, and Debian 12 carries 6.12 under a name of
    /// its own.
    fn meta_packages(self) -> [String; 2] {
        let tail = match self.flavour {
            Flavour::Cloud => "cloud-amd64",
            Flavour::Generic => "amd64",
        };
        [format!("linux-image-{}-{tail}", self.series), format!("linux-image-{tail}")]
    }

    /// Suffix of the environment variables that name this kernel's files, for example `CLOUD_6_1`.
    pub fn env_suffix(self) -> String {
        self.to_string().to_uppercase().replace(['-', '.'], "_")
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.flavour, self.series)
    }
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Which one.
    pub id: KernelId,
    /// `uname -r`, for example `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// What would be `/lib/modules/<release>`; only the folders that a virtual machine can use.
    pub modules: PathBuf,
    /// The kernel's build configuration.
    pub config: PathBuf,
}

/// Where downloads are kept: `$WHERRY_CACHE`, else `$XDG_CACHE_HOME/wherry`, else
/// `~/.cache/wherry`.
pub fn cache_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("WHERRY_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("wherry")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/wherry")))
        .unwrap_or_else(|| PathBuf::from("/var/tmp/wherry-cache"))
}

/// The kernel if it is in the cache already.
pub fn find(id: KernelId, cache: &Path) -> Option<Kernel> {
    let dir = kernel_dir(id, cache);
    let release = fs::read_to_string(dir.join("release")).ok()?.trim().to_owned();
    if fs::read_to_string(dir.join("layout")).ok()?.trim() != LAYOUT {
        return None;
    }
    let modules = dir.join("modules").join(&release);
    Some(Kernel { id, vmlinuz: dir.join("vmlinuz"), config: dir.join("config"), modules, release })
}

/// What of a kernel is kept, and where; a kernel with another layout is fetched anew.
const LAYOUT: &str = "2";

fn kernel_dir(id: KernelId, cache: &Path) -> PathBuf {
    cache.join("kernels").join(id.to_string())
}

/// The kernel, downloaded first if need be. `progress` gets one short line per slow step.
pub fn provision(id: KernelId, cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Kernel> {
    if let Some(kernel) = find(id, cache) {
        return Ok(kernel);
    }
    let parent = cache.join("kernels");
    fs::create_dir_all(&parent).map_err(io("create", &parent))?;
    let work = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(&parent)
        .map_err(io("create a folder in", &parent))?;
    let package = resolve_or_update(id, progress)?;
    progress(&format!("kernel {id}: downloading {package}"));
    let deb = match download(&package, work.path()) {
        Ok(deb) => deb,
        // The lists may be older than the archive, which keeps only recent versions.
        Err(_) if update_lists(progress).is_ok() => download(&resolve(id)?, work.path())?,
        Err(e) => return Err(e),
    };
    progress(&format!("kernel {id}: unpacking"));
    let tree = work.path().join("tree");
    apt::unpack(&deb, &tree)?;
    let done = work.path().join("done");
    arrange(&tree, &done)?;
    let target = kernel_dir(id, cache);
    // One of an older layout: aside, not removed, since a VM may be starting from it.
    if find(id, cache).is_none() && target.exists() {
        let _ = fs::rename(&target, work.path().join("old"));
    }
    if let Err(source) = fs::rename(&done, &target)
        // Somebody else was faster: theirs is as good.
        && find(id, cache).is_none()
    {
        return Err(Error::Io { what: "create", path: target, source });
    }
    find(id, cache)
        .ok_or_else(|| Error::Malformed { path: kernel_dir(id, cache), what: "incomplete".into() })
}

/// Downloads the kernel's package into `dir`, for those who install it.
pub fn package(id: KernelId, dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let package = resolve_or_update(id, progress)?;
    progress(&format!("kernel {id}: downloading {package}"));
    download(&package, dir)
}

fn resolve_or_update(id: KernelId, progress: &mut dyn FnMut(&str)) -> Result<String> {
    match resolve(id) {
        Err(Error::NoPackage(_)) => {
            update_lists(progress)?;
            resolve(id)
        }
        other => other,
    }
}

/// The package that holds the kernel today.
fn resolve(id: KernelId) -> Result<String> {
    let wanted = format!("linux-image-{}.", id.series);
    for meta in id.meta_packages() {
        let mut query = apt::program("apt-cache");
        let query = query.args(["depends", "--important", &meta]);
        let Ok(out) = apt::run(query, "apt") else { continue };
        let found = out.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        if let Some(package) = found.map(str::trim).find(|p| p.starts_with(&wanted)) {
            return Ok(package.to_owned());
        }
    }
    Err(Error::NoPackage(format!(
        "the package lists here have no Linux {} for {id}; Debian 12 has it: run `apt-get update` \
         as root, or add \
         Debian 12 (bookworm, with its security archive) to the sources",
        id.series
    )))
}

/// Brings what a virtual machine needs from an unpacked package into the cache's layout.
fn arrange(tree: &Path, done: &Path) -> Result<()> {
    let lib =
        ["usr/lib/modules", "lib/modules"].map(|p| tree.join(p)).into_iter().find(|p| p.is_dir());
    let lib =
        lib.ok_or_else(|| Error::Malformed { path: tree.into(), what: "no modules in it".into() })?;
    let release = fs::read_dir(&lib)
        .map_err(io("list", &lib))?
        .find_map(|entry| entry.ok()?.file_name().into_string().ok())
        .ok_or_else(|| Error::Malformed { path: lib.clone(), what: "no modules in it".into() })?;
    let modules = done.join("modules").join(&release);
    fs::create_dir_all(&modules).map_err(io("create", &modules))?;
    let rename = |from: PathBuf, to: PathBuf| fs::rename(&from, &to).map_err(io("take", &from));
    rename(tree.join(format!("boot/vmlinuz-{release}")), done.join("vmlinuz"))?;
    rename(tree.join(format!("boot/config-{release}")), done.join("config"))?;
    let from = lib.join(&release);
    rename(from.join("modules.builtin"), modules.join("modules.builtin"))?;
    // Most of a generic kernel's 400 MB are drivers for real hardware.
    for folder in [
        "arch",
        "crypto",
        "fs",
        "lib",
        "net",
        "virt",
        "drivers/acpi",
        "drivers/block",
        "drivers/char",
        "drivers/md",
    ]
    .iter()
    .chain(&["drivers/crypto/ccp", "drivers/input", "drivers/vhost", "drivers/virtio"])
    {
        let (from, to) = (from.join("kernel").join(folder), modules.join("kernel").join(folder));
        if from.is_dir() {
            let parent = to.parent().unwrap_or(&modules);
            fs::create_dir_all(parent).map_err(io("create", parent))?;
            rename(from, to)?;
        }
    }
    let net = modules.join("kernel/drivers/net");
    fs::create_dir_all(&net).map_err(io("create", &net))?;
    for name in ["virtio_net", "net_failover", "tun", "tap", "veth"] {
        for suffix in ["ko", "ko.xz"] {
            let file = format!("{name}.{suffix}");
            let from = from.join("kernel/drivers/net").join(&file);
            if from.exists() {
                rename(from, net.join(file))?;
            }
        }
    }
    for (name, content) in [("release", release.as_str()), ("layout", LAYOUT)] {
        let stamp = done.join(name);
        fs::write(&stamp, format!("{content}\n")).map_err(io("write", &stamp))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(KernelId::CLOUD_6_12.to_string(), "cloud-6.12");
        assert_eq!(KernelId::CLOUD_6_12.env_suffix(), "CLOUD_6_12");
        assert_eq!(
            KernelId::GENERIC_6_1.meta_packages(),
            ["linux-image-6.1-amd64", "linux-image-amd64"]
        );
    }

    #[test]
    fn a_partial_download_is_not_a_kernel() {
        let cache = tempfile::tempdir().unwrap();
        let dir = kernel_dir(KernelId::CLOUD_6_1, cache.path());
        fs::create_dir_all(dir.join("modules/6.1.0-x")).unwrap();
        assert!(find(KernelId::CLOUD_6_1, cache.path()).is_none());
        fs::write(dir.join("release"), "6.1.0-x\n").unwrap();
        fs::write(dir.join("layout"), "1\n").unwrap();
        assert!(find(KernelId::CLOUD_6_1, cache.path()).is_none(), "of an older layout");
        fs::write(dir.join("layout"), LAYOUT).unwrap();
        assert_eq!(find(KernelId::CLOUD_6_1, cache.path()).unwrap().release, "6.1.0-x");
    }
}
