//! Loads the modules in the initramfs, in the order that was worked out when it was packed.

use std::fs;
use std::path::Path;

use crate::sys;

/// Loads everything in `/modules/order`, leaving out the PCI transport where there is no PCI. Returns nothing, or
/// ` modules_failed=a:errno,b:errno` for the ready line.
pub fn load_all(pci: bool) -> String {
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
    let mut failed = Vec::new();
    for name in order.lines().filter(|name| pci || !name.starts_with("virtio_pci")) {
        if let Err(e) = sys::load_module(Path::new(&format!("/modules/{name}.ko"))) {
            failed.push(format!("{name}:{}", e.raw_os_error().unwrap_or(0)));
        }
    }
    if failed.is_empty() { String::new() } else { format!(" modules_failed={}", failed.join(",")) }
}
