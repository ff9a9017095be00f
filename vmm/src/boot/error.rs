//! What can go wrong between a kernel file and the first instruction, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why a guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Less RAM than a stock kernel needs.
    #[error("{} MiB of guest RAM is too little; give it at least 128 MiB", have >> 20)]
    RamTooSmall {
        /// Bytes asked for.
        have: u64,
    },
    /// The kernel cannot be used.
    #[error("kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
    /// The initrd cannot be used.
    #[error("initrd {}", path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InitrdError,
    },
    /// The command line does not fit.
    #[error("the kernel command line has {len} bytes; this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Bytes without the terminating NUL.
        len: usize,
        /// Most bytes allowed.
        max: usize,
    },
    /// The command line contains a NUL byte.
    #[error("the kernel command line contains a NUL byte")]
    CmdlineNul,
    /// No vCPU, or more than the tables can describe.
    #[error("{have} vCPUs cannot be described; use 1 to {max}")]
    VcpuCount {
        /// vCPUs asked for.
        have: u32,
        /// Most that fit.
        max: u32,
    },
    /// A virtio-mmio slot that the address map does not have.
    #[error("there is no virtio-mmio slot {slot}; slots are 0 to 7")]
    VirtioSlot {
        /// The slot asked for.
        slot: u32,
    },
    /// The ACPI tables do not fit their area.
    #[error("the ACPI tables need {need} bytes, their area has {have}")]
    AcpiTooLarge {
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// A boot structure lies outside guest RAM: the memory does not follow the address map.
    #[error("cannot write {what} into guest memory")]
    GuestMemory {
        /// The structure.
        what: &'static str,
        /// The access error.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be opened or read.
    #[error("cannot be read; check the path and its permissions")]
    Read(#[source] io::Error),
    /// The path names something that is not a regular file.
    #[error("is not a regular file; give the path of a bzImage (vmlinuz) or an ELF vmlinux")]
    NotAFile,
    /// Neither format.
    #[error(
        "is neither a bzImage nor an ELF vmlinux{hint}; give an x86-64 kernel, such as \
         /boot/vmlinuz-…"
    )]
    UnknownFormat {
        /// What it looks like, beginning with a comma, or nothing.
        hint: &'static str,
    },
    /// The file ends early.
    #[error("is truncated: {what} needs {need} bytes, the file has {have}; copy it again")]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Offset in the file at which the part ends.
        need: u64,
        /// Length of the file.
        have: u64,
    },
    /// A header field makes no sense.
    #[error("has a corrupt header: {what}; copy it again")]
    Corrupt {
        /// The field.
        what: &'static str,
    },
    /// An old kernel.
    #[error(
        "speaks boot protocol {}.{:02}; 2.12 (Linux 3.8) is the oldest supported",
        version >> 8, version & 0xFF
    )]
    OldProtocol {
        /// Boot protocol version, major in the high byte.
        version: u16,
    },
    /// A kernel for another machine.
    #[error("is not an x86-64 kernel ({what}); give one built for x86-64")]
    NotX86_64 {
        /// What it is instead.
        what: &'static str,
    },
    /// The kernel does not fit guest RAM.
    #[error(
        "needs RAM from {:#x} to {:#x}, RAM there ends at {:#x}; give the guest more memory",
        start,
        end,
        ram_end
    )]
    TooLarge {
        /// First byte of the kernel.
        start: u64,
        /// One past its last byte, `init_size` or bss included.
        end: u64,
        /// End of RAM below the 32-bit hole.
        ram_end: u64,
    },
    /// An ELF file without a usable entry.
    #[error("has no entry point that can be used: {what}")]
    NoEntry {
        /// Why.
        what: &'static str,
    },
    /// Reading it into guest memory failed.
    #[error("cannot be copied into guest memory")]
    Copy(#[source] vm_memory::GuestMemoryError),
}

/// What is wrong with an initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file cannot be opened or read.
    #[error("cannot be read; check the path and its permissions")]
    Read(#[source] io::Error),
    /// The path names something that is not a regular file.
    #[error("is not a regular file")]
    NotAFile,
    /// Nothing in it.
    #[error("is empty; leave it out or build it again")]
    Empty,
    /// It does not fit between the kernel and the end of usable RAM.
    #[error(
        "has {} MiB, but only {} MiB of RAM is free for it above the kernel; give the guest more \
         memory or a smaller initrd",
        size.div_ceil(1 << 20), room >> 20
    )]
    TooLarge {
        /// Bytes in the file.
        size: u64,
        /// Bytes free.
        room: u64,
    },
    /// Reading it into guest memory failed (the file shrank meanwhile, say).
    #[error("cannot be copied into guest memory")]
    Copy(#[source] vm_memory::GuestMemoryError),
}
