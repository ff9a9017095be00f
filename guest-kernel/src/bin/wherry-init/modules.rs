//! Loads the modules in the initramfs, in the order that was worked out when it was packed.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::sys;

/// Loads everything in `/modules/order`, leaving out the PCI transport where there is no PCI.
/// Returns nothing, or ` modules_failed=a:errno,b:errno` for the ready line.
pub fn load_all(pci: bool) -> String {
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
    let mut failed = Vec::new();
    for name in order.lines().filter(|name| pci || !name.starts_with("virtio_pci")) {
        if let Err(e) = sys::load_module(&path(name)) {
            failed.push(format!("{name}:{}", e.raw_os_error().unwrap_or(0)));
        }
    }
    if failed.is_empty() { String::new() } else { format!(" modules_failed={}", failed.join(",")) }
}

/// Loads a module that only some steps need, unless the kernel has it built in.
pub fn load(name: &str) -> io::Result<()> {
    let path = path(name);
    if path.exists() { sys::load_module(&path) } else { Ok(()) }
}

fn path(name: &str) -> PathBuf {
    format!("/modules/{name}.ko").into()
}
