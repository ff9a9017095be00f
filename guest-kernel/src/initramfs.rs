//! Packs our init and the modules it loads into an initramfs, for guests and for the lab's KVM
//! host.
//!
//! Images are not compressed: they are a few MB, and unpacking costs more than reading under
//! software emulation.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::error::{Error, Result, io};
use crate::labconf::{self, LabConf};
use crate::modules::{Module, ModuleTree};

/// What a guest loads. The PCI transport is for other VMMs: init loads it only where there is a PCI
/// bus.
const GUEST: [&str; 6] =
    ["virtio_mmio", "virtio_balloon", "virtio_rng", "button", "evdev", "virtio_pci"];
/// What a guest loads when a step of its work needs it.
const ON_DEMAND: [&str; 2] = ["loop", "virtio_blk"];
/// What the lab's KVM host loads. From `virtio_blk` on: disks, and hosts and networks in it.
const LAB: [&str; 16] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "sch_tbf",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "loop",
    "veth",
    "bridge",
    "tun",
    "vhost_net",
    "sch_netem",
];

/// What the KVM host on an Intel CPU loads, which has no virtio.
const LAB_INTEL: [&str; 1] = ["kvm_intel"];

/// The initramfs of a test guest for the kernel whose modules are in `modules`.
pub fn guest(init: &Path, modules: &Path) -> Result<Vec<u8>> {
    let tree = ModuleTree::open(modules)?;
    Ok(pack(init, &tree.resolve(&GUEST)?, &tree.resolve(&ON_DEMAND)?, None)?.finish())
}

/// The modules of the lab's KVM host.
pub fn lab_modules(modules: &Path) -> Result<Vec<Module>> {
    ModuleTree::open(modules)?.resolve(&LAB)
}

/// The initramfs of the lab's KVM host, with the command to run.
pub fn lab(init: &Path, modules: &[Module], conf: &LabConf) -> Result<Vec<u8>> {
    Ok(pack(init, modules, &[], Some(conf))?.finish())
}

/// The initramfs of the lab's KVM host on an Intel CPU, with the command to run and the files that
/// it needs: what is copied there, each with the folders above it.
///
/// # Errors
/// A file cannot be read.
pub fn lab_intel(
    init: &Path,
    modules: &Path,
    conf: &LabConf,
    files: &[(PathBuf, PathBuf)],
) -> Result<Vec<u8>> {
    let modules = ModuleTree::open(modules)?.resolve(&LAB_INTEL)?;
    let mut archive = pack(init, &modules, &[], Some(conf))?;
    let mut dirs: BTreeSet<_> = DIRS.into_iter().map(PathBuf::from).collect();
    for (from, to) in files {
        let content = fs::read(from).map_err(io("read", from))?;
        let mode = fs::metadata(from).map_err(io("read", from))?.permissions().mode();
        let to = to.strip_prefix("/").unwrap_or(to);
        let above: Vec<_> = to.ancestors().skip(1).filter(|dir| *dir != Path::new("")).collect();
        for dir in above.into_iter().rev() {
            if dirs.insert(dir.to_owned()) {
                archive.dir(&dir.to_string_lossy());
            }
        }
        archive.file(&to.to_string_lossy(), mode & 0o777, &content);
    }
    Ok(archive.finish())
}

const DIRS: [&str; 6] = ["dev", "proc", "sys", "run", "tmp", "modules"];

fn pack(
    init: &Path,
    modules: &[Module],
    on_demand: &[Module],
    conf: Option<&LabConf>,
) -> Result<Archive> {
    let program = fs::read(init).map_err(io("read", init))?;
    if !program.starts_with(b"\x7fELF") {
        return Err(Error::Malformed { path: init.to_owned(), what: "not a program".into() });
    }
    let mut archive = Archive::default();
    for dir in DIRS {
        archive.dir(dir);
    }
    // Before devtmpfs is mounted, this is where the kernel opens init's standard streams.
    archive.char_device("dev/console", 0o600, (5, 1));
    for module in modules.iter().chain(on_demand) {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.content);
    }
    let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("init", 0o755, &program);
    if let Some(conf) = conf {
        archive.file(labconf::PATH.trim_start_matches('/'), 0o600, &conf.encode());
    }
    Ok(archive)
}
