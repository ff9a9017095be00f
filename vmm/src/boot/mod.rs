//! From files on the host to a guest that can take its first instruction.
//!
//! The order is: [`layout::ram_regions`] says where RAM goes, [`acpi::write_tables`] describes the
//! machine, [`loader::load`] places kernel, initrd and command line and tells them about RAM and
//! ACPI, [`smbios::write_tables`] says which machine it is and what its systemd is told, and
//! [`crate::cpu::regs`] points the first vCPU at the [`loader::Entry`] that came out.
//!
//! Kernel and initrd are files of the host's, or came with a guest that has moved ([`source`],
//! [`kept`]), or are the guest's own, out of its disk ([`disk`]).
//!
//! Everything here runs once, before any vCPU, on freshly mapped (zero) guest memory. The files are
//! not trusted: a corrupt one gives an error, never a panic, and never a write outside guest RAM.

pub mod acpi;
mod bzimage;
pub mod credential;
pub mod disk;
mod dsdt;
mod elf;
mod error;
pub mod files;
pub mod kept;
pub mod layout;
pub mod loader;
mod params;
mod part;
pub mod reset;
pub mod smbios;
pub mod source;
mod uki;
