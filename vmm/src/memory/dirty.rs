//! The dirty log of a machine: a list of all that write guest memory, each with a log of its own.
//!
//! KVM sees what vCPUs write ([`KvmLog`]); [`Written`] has what devices write through vm-memory,
//! used rings and discards among it ([`DeviceLog`]). Either alone loses pages, so
//! [`DirtySources`] always asks all of them. A kernel thread that writes on a device's behalf would
//! be one more source.
//!
//! KVM runs in manual-protect mode with all bits initially set
//! (`KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET`, Linux 5.7): turning the
//! log on costs nothing and protects nothing; `KVM_CLEAR_DIRTY_LOG` write-protects a range and
//! clears its bits.
//!
//! Why no write is lost: vm-memory marks a page *after* writing it, so a write whose mark misses
//! one harvest is in the next. `KVM_CLEAR_DIRTY_LOG` clears a bit and removes write access under
//! the MMU lock, then flushes TLBs, so a vCPU write after it faults and sets the bit. A page is
//! read only after `protect` or `harvest` has returned.
//!
//! A harvest is made in the pause, too. It costs KVM's copy of one bit a page and a look at each
//! word of that, some 8 ms for 1 TiB; all else costs by what is dirty.

use std::io;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log,
    kvm_dirty_log, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};
use wherry_devices::written::Written;
use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::DirtyLog;

use super::{PAGE, Ram, Region};
use crate::sync::lock;

// include/uapi/linux/kvm.h
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Pages that one `KVM_CLEAR_DIRTY_LOG` covers at most (32 MiB of RAM). KVM holds its MMU lock
/// throughout, and a vCPU that faults waits for it: short calls let it in between.
const CLEAR_CHUNK: u64 = 8192;

/// Something that writes guest memory.
pub trait DirtySource: DirtyLog {
    /// Sets in `out` the bits of all pages written since they were last protected, and changes
    /// nothing.
    fn peek(&self, out: &mut Bitmap) -> io::Result<()>;
}

/// All that write guest memory, as one log.
pub struct DirtySources(Vec<Box<dyn DirtySource>>);

impl DirtySources {
    /// The vCPUs of `kvm` and the devices on its RAM.
    pub fn new(kvm: KvmLog) -> Self {
        let devices = DeviceLog(kvm.ram.clone());
        Self(vec![Box::new(kvm), Box::new(devices)])
    }

    /// The devices on this RAM alone, for who has no vCPUs: a benchmark without KVM.
    pub fn of_devices(ram: Arc<Ram>) -> Self {
        Self(vec![Box::new(DeviceLog(ram))])
    }
}

impl DirtyLog for DirtySources {
    fn start(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|source| source.start())
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        self.0.iter().try_for_each(|source| source.protect(first, nr))
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.0.iter().try_for_each(|source| source.harvest(out))
    }

    fn stop(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|source| source.stop())
    }
}

impl DirtySource for DirtySources {
    fn peek(&self, out: &mut Bitmap) -> io::Result<()> {
        self.0.iter().try_for_each(|source| source.peek(out))
    }
}

/// What devices write through vm-memory.
struct DeviceLog(Arc<Ram>);

impl DeviceLog {
    fn for_regions(&self, mut f: impl FnMut(&Region, &Written)) {
        for r in self.0.regions() {
            if let Some(written) = self.0.written(r) {
                f(r, written);
            }
        }
    }
}

impl DirtyLog for DeviceLog {
    /// All pages are dirty now; what was written since boot says nothing more.
    fn start(&self) -> io::Result<()> {
        self.for_regions(|_, written| written.reset());
        Ok(())
    }

    /// Devices take no write faults. A bit that stays set sends its page once more.
    fn protect(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.for_regions(|r, written| {
            written.take(|word, pages| out.or_word(first_word(r) + word, pages))
        });
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DirtySource for DeviceLog {
    fn peek(&self, out: &mut Bitmap) -> io::Result<()> {
        self.for_regions(|r, written| {
            written.look(|word, pages| out.or_word(first_word(r) + word, pages))
        });
        Ok(())
    }
}

/// What vCPUs write.
pub struct KvmLog {
    vm: Arc<VmFd>,
    ram: Arc<Ram>,
    /// Room for the bits of the largest slot. New room would cost more than what is put there.
    bits: Mutex<Vec<u64>>,
}

impl KvmLog {
    /// Turns manual protection with all bits initially set on: what a VM needs for this log.
    ///
    /// # Errors
    /// This KVM does not have it.
    pub fn enable(vm: &VmFd) -> anyhow::Result<()> {
        let mut cap =
            kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
        cap.args[0] = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        vm.enable_cap(&cap)
            .context("KVM has no manual dirty log with bits initially set (Linux 5.7 and later do)")
    }

    /// For a VM that had [`map_ram`](Self::map_ram) and [`enable`](Self::enable).
    pub fn new(vm: Arc<VmFd>, ram: Arc<Ram>) -> Self {
        Self { vm, ram, bits: Mutex::default() }
    }

    /// Has KVM copy its bits, and looks at none: what a harvest costs at least.
    ///
    /// # Errors
    /// The log is off.
    pub fn copy(&self) -> io::Result<()> {
        self.for_logs(|_, _, _| Ok(()))
    }

    /// Gives the RAM to the VM as memory slots 0, 1, … without logging.
    pub fn map_ram(&self) -> io::Result<()> {
        self.set_slots(0)
    }

    fn set_slots(&self, flags: u32) -> io::Result<()> {
        for (slot, r) in (0..).zip(self.ram.regions()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: r.gpa,
                memory_size: r.len,
                userspace_addr: self.ram.host_address(r)?,
            };
            // SAFETY: the range is a live mapping of exactly this length, owned by `self.ram`. The
            // VM may outlive it, since interrupt lines hold the VM, too; but KVM reaches through a
            // slot only for a vCPU, and those belong to the machine, which drops them before its
            // RAM. Nothing in the VMM holds Rust references into the range.
            unsafe { self.vm.set_user_memory_region(region) }.map_err(kvm_error)?;
        }
        Ok(())
    }

    /// Calls `f(slot, region, first, nr)` for the parts of a page range, `first` counted within the
    /// slot.
    fn for_slots(
        &self,
        first: u64,
        nr: u64,
        mut f: impl FnMut(u32, &Region, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        for (slot, r) in (0..).zip(self.ram.regions()) {
            let from = first.max(r.first_page);
            let to = (first + nr).min(r.first_page + r.len / PAGE);
            if from < to {
                f(slot, r, from - r.first_page, to - from)?;
            }
        }
        Ok(())
    }

    /// Calls `f(slot, region, bits)` for each slot, with a bit for each page that is dirty. In
    /// manual-protect mode reading the log clears nothing.
    fn for_logs(
        &self,
        mut f: impl FnMut(u32, &Region, &[u64]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut room = lock(&self.bits);
        for (slot, r) in (0..).zip(self.ram.regions()) {
            let words = (r.len / PAGE).div_ceil(64) as usize;
            if room.len() < words {
                room.resize(words, 0);
            }
            let bits = room.get_mut(..words).unwrap_or_default();
            get_dirty_log(&self.vm, slot, r.len / PAGE, bits)?;
            f(slot, r, bits)?;
        }
        Ok(())
    }
}

/// Reads the bits of a slot of so many pages.
fn get_dirty_log(vm: &VmFd, slot: u32, nr: u64, bits: &mut [u64]) -> io::Result<()> {
    checked_pages(nr, bits)?;
    let mut arg = kvm_dirty_log { slot, ..Default::default() };
    arg.__bindgen_anon_1.dirty_bitmap = bits.as_mut_ptr().cast();
    // SAFETY: KVM writes one bit for each page of the slot, in whole words; `checked_pages` has
    // seen that `bits` has room for them, and nobody else has it until the call returns.
    let r = unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &arg) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Clears and write-protects pages `first..first + nr` of a slot (numbers within the slot) whose
/// bit is set in `bits`.
///
/// # Errors
/// There are fewer bits than pages, or KVM refuses.
pub fn clear_dirty_log(vm: &VmFd, slot: u32, first: u64, nr: u64, bits: &[u64]) -> io::Result<()> {
    let num_pages = checked_pages(nr, bits)?;
    let mut arg = kvm_clear_dirty_log { slot, num_pages, first_page: first, ..Default::default() };
    arg.__bindgen_anon_1.dirty_bitmap = bits.as_ptr() as *mut libc::c_void;
    // SAFETY: `checked_pages` has seen that `bits` holds at least `num_pages` bits, which is what
    // KVM reads (it never writes it), and it outlives the call.
    let r = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &arg) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A number of pages as KVM takes it, if `bits` has a bit for each.
fn checked_pages(nr: u64, bits: &[u64]) -> io::Result<u32> {
    match u32::try_from(nr) {
        Ok(pages) if bits.len() as u64 >= nr.div_ceil(64) => Ok(pages),
        _ => Err(io::Error::other("fewer dirty bits than pages to clear")),
    }
}

fn kvm_error(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}

impl DirtyLog for KvmLog {
    fn start(&self) -> io::Result<()> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        let ones = vec![u64::MAX; (nr.min(CLEAR_CHUNK)).div_ceil(64) as usize];
        self.for_slots(first, nr, |slot, _, mut first, mut nr| {
            while nr > 0 {
                let n = nr.min(CLEAR_CHUNK);
                clear_dirty_log(&self.vm, slot, first, n, &ones)?;
                first += n;
                nr -= n;
            }
            Ok(())
        })
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.for_logs(|slot, r, bits| {
            let (mut at, nr) = (0, r.len / PAGE);
            for words in bits.chunks((CLEAR_CHUNK / 64) as usize) {
                let n = (nr - at).min(CLEAR_CHUNK);
                // All of them, without a look at each: that is what the compiler makes fast.
                if words.iter().fold(0, |all, word| all | word) != 0 {
                    clear_dirty_log(&self.vm, slot, at, n, words)?;
                    or_words(out, first_word(r) + (at / 64) as usize, words);
                }
                at += n;
            }
            Ok(())
        })
    }

    fn stop(&self) -> io::Result<()> {
        self.set_slots(0)
    }
}

impl DirtySource for KvmLog {
    fn peek(&self, out: &mut Bitmap) -> io::Result<()> {
        self.for_logs(|_, r, bits| {
            or_words(out, first_word(r), bits);
            Ok(())
        })
    }
}

/// Where the words of a region begin in the flat bitmap. Both regions start at a multiple of 64
/// pages (3 GiB is one), so words line up.
fn first_word(r: &Region) -> usize {
    debug_assert!(r.first_page.is_multiple_of(64));
    (r.first_page / 64) as usize
}

fn or_words(out: &mut Bitmap, first: usize, words: &[u64]) {
    for (at, &word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
        out.or_word(first + at, word);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::Backing;
    use super::*;

    #[test]
    fn what_a_device_writes_is_seen_twice_by_looking_and_once_by_a_harvest() {
        let ram = Arc::new(Ram::new(128 << 20, &Backing::Memfd).unwrap());
        let log = DeviceLog(ram.clone());
        let pages = |take: fn(&DeviceLog, &mut Bitmap) -> io::Result<()>| {
            let mut out = Bitmap::new(ram.bytes() / PAGE);
            take(&log, &mut out).unwrap();
            (0..ram.bytes() / PAGE).filter(|&p| out.test(p)).collect::<Vec<_>>()
        };
        ram.memory().write_obj(1u8, GuestAddress(5 * PAGE)).unwrap();
        log.start().unwrap();
        ram.memory().write_obj(1u8, GuestAddress(7 * PAGE)).unwrap();
        log.protect(0, 64).unwrap();
        let looks = [pages(DeviceLog::peek), pages(DeviceLog::peek)];
        assert_eq!(looks, [[7], [7]]);
        assert_eq!(pages(DeviceLog::harvest), [7]);
        assert!(pages(DeviceLog::harvest).is_empty());
    }

    #[test]
    fn kvm_is_never_told_of_more_pages_than_there_are_bits() {
        assert_eq!(checked_pages(128, &[0; 2]).unwrap(), 128);
        assert_eq!(checked_pages(65, &[0; 2]).unwrap(), 65);
        assert_eq!(checked_pages(0, &[]).unwrap(), 0);
        for (nr, words) in [(129, 2), (1, 0), (1 << 32, 2), (u64::MAX, 2)] {
            assert!(checked_pages(nr, &vec![0; words]).is_err(), "{nr} pages, {words} words");
        }
    }
}
