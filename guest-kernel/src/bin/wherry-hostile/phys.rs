//! Guest-physical memory by address (everything is mapped one to one), and where the guest has
//! what.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The program itself begins here; see `link.ld`.
pub const IMAGE: u64 = 0x10_0000;
/// Above this address there is nothing that the compiler knows of.
pub const FREE_OF_CODE: u64 = 0x40_0000;
/// Virtqueues, 64 KiB each.
pub const RINGS: u64 = 0x40_0000;
/// Indirect tables, and nothing else: what is overwritten or torn there is still a descriptor.
pub const TABLES: Area = Area { start: 0x50_0000, len: 0x8_0000 };
/// Lists of page numbers to inflate, of pages that are lied about.
pub const INFLATE_LISTS: Area = Area { start: 0x58_0000, len: 0x1_0000 };
/// 1 KiB that holds no number of a page of RAM; never changes.
pub const NO_PAGES: u64 = 0x59_0000;
/// Hint commands, in slots of 16 bytes.
pub const COMMANDS: u64 = 0x5A_0000;
/// Statistics.
pub const STATS_LISTS: Area = Area { start: 0x5B_0000, len: 0x1_0000 };
/// Lists of page numbers to deflate, of any pages.
pub const DEFLATE_LISTS: Area = Area { start: 0x5C_0000, len: 0x4_0000 };
/// What is known of each page; see `pages`.
pub const LEDGER: u64 = 0x60_0000;
/// Even pages honest, odd ones lied about.
pub const MIXED: Zone = Zone { start: 0x80_0000, end: 0x180_0000 };
/// Memory that is freed, hinted, taken back.
pub const POOL: Zone = Zone { start: 0x200_0000, end: 0x300_0000 };
/// The same, but each block at most once in a migration: a write that was lost is not healed by the
/// next one.
pub const ONCE: Zone = Zone { start: 0x300_0000, end: 0x500_0000 };
/// Never looked at: where garbage in the device's registers may point.
pub const SCRATCH: Zone = Zone { start: 0x500_0000, end: 0x520_0000 };
/// Lied about, up to the end of RAM.
pub const LIES: Zone = Zone { start: 0x600_0000, end: RAM };
/// End of RAM: the guest wants 128 MiB. A large guest has more, but nothing in it that it looks at
/// before the hole's edges.
pub const RAM: u64 = 0x800_0000;
/// Where the hole for devices begins, if there is so much RAM.
pub const HOLE: u64 = 3 << 30;
/// RAM goes on here.
pub const ABOVE_HOLE: u64 = 4 << 30;
/// End of RAM of a large guest: it wants 3 GiB and 64 MiB.
pub const LARGE_RAM: u64 = ABOVE_HOLE + (64 << 20);
/// In a large guest, the ends of RAM: below the hole, above it, the last. Honest and lied about by
/// turns, page by page.
pub const EDGES: [Zone; 3] = [
    Zone { start: HOLE - EDGE, end: HOLE },
    Zone { start: ABOVE_HOLE, end: ABOVE_HOLE + EDGE },
    Zone { start: LARGE_RAM - EDGE, end: LARGE_RAM },
];
/// Bytes of each of them.
pub const EDGE: u64 = 1 << 20;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

const MMIO: u64 = 0xD000_0000;
const MMIO_LEN: u64 = 0x1000;

/// Where buffers of one kind are. They are overwritten in turn, even while they are in flight.
pub struct Area {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// A range of addresses.
#[derive(Clone, Copy)]
pub struct Zone {
    /// First byte.
    pub start: u64,
    /// After the last.
    pub end: u64,
}

impl Zone {
    /// Whether it has this address.
    pub fn has(&self, at: u64) -> bool {
        (self.start..self.end).contains(&at)
    }

    /// Its pages.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        (self.start..self.end).step_by(PAGE as usize)
    }
}

static LARGE: AtomicBool = AtomicBool::new(false);

/// From now on there is RAM at the [`EDGES`].
pub fn set_large() {
    LARGE.store(true, Relaxed);
}

/// The [`EDGES`] that this guest has.
pub fn edges() -> &'static [Zone] {
    if LARGE.load(Relaxed) { &EDGES } else { &[] }
}

/// Stops the guest rather than its compiler's assumptions.
fn check(at: u64, len: u64) {
    let low = (FREE_OF_CODE..RAM).contains(&at) && at + len <= RAM;
    assert!(
        (low || edges().iter().any(|zone| zone.has(at))) && at.is_multiple_of(len),
        "address {at:#x}"
    );
}

macro_rules! access {
    ($read:ident, $write:ident, $kind:ty) => {
        /// Reads guest memory.
        pub fn $read(at: u64) -> $kind {
            check(at, size_of::<$kind>() as u64);
            // SAFETY: aligned, mapped RAM, in which no Rust object lives.
            unsafe { (at as *const $kind).read_volatile() }
        }

        /// Writes guest memory.
        pub fn $write(at: u64, value: $kind) {
            check(at, size_of::<$kind>() as u64);
            // SAFETY: aligned, mapped RAM, in which no Rust object lives.
            unsafe { (at as *mut $kind).write_volatile(value) }
        }
    };
}

access!(read8, write8, u8);
access!(read16, write16, u16);
access!(read32, write32, u32);
access!(read64, write64, u64);

/// Fills memory with zeros; whole 8-byte words.
pub fn zero(at: u64, len: u64) {
    (at..at + len).step_by(8).for_each(|word| write64(word, 0));
}

/// Everything before it is in memory before everything after it, for the device too.
pub fn barrier() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Writes a page without changing it, one that holds the program included.
pub fn touch(page: u64) {
    assert!((IMAGE..RAM).contains(&page));
    // SAFETY: mapped, and an atomic OR with zero changes nothing.
    unsafe { asm!("lock or qword ptr [{0}], 0", in(reg) page, options(nostack)) }
}

/// The pages of the program: code, data, page tables, stacks.
pub fn image_pages() -> impl Iterator<Item = u64> {
    unsafe extern "C" {
        static image_end: u8;
    }
    (IMAGE..&raw const image_end as u64).step_by(PAGE as usize)
}

/// The page of the outermost page table.
pub fn page_table() -> u64 {
    unsafe extern "C" {
        static pml4: u8;
    }
    &raw const pml4 as u64
}

/// Reads a device register of any width.
pub fn mmio_read(at: u64, width: u64) -> u64 {
    assert!(at + width <= MMIO_LEN);
    let at = MMIO + at;
    // SAFETY: the window of the device, which is mapped and has no memory behind it. Plain MOVs,
    // since not every KVM emulates more.
    unsafe {
        let value: u64;
        match width {
            1 => asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
            2 => asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
            4 => asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
            _ => asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
        }
        value
    }
}

/// Writes a device register of any width.
pub fn mmio_write(at: u64, width: u64, value: u64) {
    assert!(at + width <= MMIO_LEN);
    let at = MMIO + at;
    // SAFETY: as in `mmio_read`.
    unsafe {
        match width {
            1 => {
                asm!("mov byte ptr [{1}], {0}", in(reg_byte) value as u8, in(reg) at,
                    options(nostack))
            }
            2 => asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) at, options(nostack)),
            4 => asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack)),
            _ => asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) at, options(nostack)),
        }
    }
}

/// The kernel command line, as far as it fits.
pub fn command_line(start_info: u64, line: &mut [u8]) -> &str {
    /// `cmdline_paddr` of `hvm_start_info`.
    const CMDLINE: u64 = 24;
    // SAFETY: `boot.s` passes what the loader passed: a start info in low memory, where no Rust
    // object lives, whose command line ends with a zero and is below 64 KiB.
    unsafe {
        let from = *((start_info + CMDLINE) as *const u64) as *const u8;
        let mut len = 0;
        while len < line.len() && *from.add(len) != 0 {
            line[len] = *from.add(len);
            len += 1;
        }
        core::str::from_utf8(&line[..len]).unwrap_or_default()
    }
}

/// What the compiler calls by itself and takes from the C library elsewhere.
mod builtins {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller's promise: both are valid for `len` bytes.
        unsafe {
            asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _)
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller's promise: `to` is valid for `len` bytes.
        unsafe {
            asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8, inout("rcx") len => _)
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        let mut at = 0;
        while at < len {
            // SAFETY: the caller's promise: both are valid for `len` bytes. Volatile, lest this
            // becomes a call of itself.
            let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
            if x != y {
                return i32::from(x) - i32::from(y);
            }
            at += 1;
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { memcmp(a, b, len) }
    }
}
