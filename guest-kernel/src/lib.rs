//! What runs inside Wherry's test guests, and how it gets there.
//!
//! - [`kernels`]: stock Debian kernels, fetched and verified by apt, cached.
//! - [`debian`]: disk images of a stock Debian, made from its packages.
//! - [`tools`]: programs out of Debian's archive that are not installed: a newer QEMU, and Bochs.
//!   [`shared`]: the libraries that a program links.
//! - [`modules`]: which kernel modules an image needs, in loading order.
//! - [`initramfs`]: packs our static init and those modules into a newc archive.
//! - [`unpack`]: turns a compressed `bzImage` into the ELF `vmlinux` inside it.
//! - [`pvh`]: that kernel in the memory of a PC without a boot loader.
//! - [`labconf`]: the job description that the lab's init reads.
//!
//! The guest programs themselves are the binary `wherry-init` (see `src/bin/wherry-init`), which
//! runs as PID 1 both in test guests and in the software-emulated KVM host ("the lab"). It is built
//! without the `host` feature, statically.

#[cfg(feature = "host")]
mod apt;
#[cfg(feature = "host")]
mod cpio;
#[cfg(feature = "host")]
pub mod debian;
#[cfg(feature = "host")]
mod elf;
#[cfg(feature = "host")]
mod error;
#[cfg(feature = "host")]
pub mod initramfs;
#[cfg(feature = "host")]
pub mod kernels;
pub mod labconf;
#[cfg(feature = "host")]
pub mod modules;
#[cfg(feature = "host")]
pub mod pvh;
#[cfg(feature = "host")]
pub mod shared;
#[cfg(feature = "host")]
pub mod tools;
#[cfg(feature = "host")]
pub mod unpack;

#[cfg(feature = "host")]
pub use error::{Error, Result};
