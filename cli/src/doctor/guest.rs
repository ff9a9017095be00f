//! A guest of a few instructions: 64-bit code at CPL 0 in 2 MiB of RAM, without devices.
//!
//! It reports through two ports: [`PORT_DONE`] at its end, [`PORT_TRAP`] (with the vector) when an
//! exception was raised.

use std::io;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES,
    kvm_enable_cap, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Error as Errno, Kvm, VcpuExit, VcpuFd, VmFd};
use wherry_vmm::memory::clear_dirty_log;

/// Guest RAM in bytes: one large page of the guest's page tables.
pub(crate) const RAM: usize = 2 << 20;
const PAGE: usize = 4096;
/// Number of pages of guest RAM.
pub(crate) const NR_PAGES: usize = RAM / PAGE;

const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const GDT: usize = 0x4000;
const IDT: usize = 0x5000;
/// One exception handler of 16 bytes per vector.
const HANDLERS: usize = 0x6000;
const STACK_TOP: usize = 0x9000;
/// 64-byte aligned memory that RSI points to at the start: an MXCSR value at 0, zeroes elsewhere.
const DATA: usize = 0xA000;
const CODE: usize = 0x1_0000;

const PORT_DONE: u16 = 0x10;
const PORT_TRAP: u16 = 0x11;
/// `out 0x10, al; hlt`
const DONE: [u8; 3] = [0xE6, 0x10, 0xF4];

const NR_VECTORS: usize = 32;
const BREAKPOINT: usize = 3;

/// How the guest's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It came to its end.
    Done,
    /// It raised this exception.
    Trap(u8),
    /// KVM gave up (KVM_EXIT_INTERNAL_ERROR): its emulator does not know the instruction.
    NotEmulated,
    /// Anything else.
    Other(String),
}

/// How guest writes are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    /// Not at all.
    Off,
    /// Reading the log clears it.
    Plain,
    /// With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, all bits initially set.
    Manual,
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A VM with one vCPU, ready to run its code. Fields drop in this order: KVM lets go of the memory
/// first.
pub(crate) struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    _ram: Vec<Page>,
}

struct Image(Vec<Page>);

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            if let Some(page) = self.0.get_mut((at + i) / PAGE) {
                page.0[(at + i) % PAGE] = *byte;
            }
        }
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn new(code: &[u8]) -> Self {
        let mut image = Image(vec![Page([0; PAGE]); NR_PAGES]);
        // Present and writable; the last one also "page size": 2 MiB, identity.
        image.put_u64(PML4, PDPT as u64 | 3);
        image.put_u64(PDPT, PD as u64 | 3);
        image.put_u64(PD, 0x83);
        // 64-bit code at selector 8, data at 16.
        image.put_u64(GDT + 8, 0x00AF_9B00_0000_FFFF);
        image.put_u64(GDT + 16, 0x00CF_9300_0000_FFFF);
        for vector in 0..NR_VECTORS {
            let handler = HANDLERS + 16 * vector;
            // Interrupt gate: offset 15..0, selector 8, present, type 14. Offsets fit into 16 bits.
            image.put_u64(IDT + 16 * vector, handler as u64 | (8 << 16) | (0x8E00 << 32));
            if vector == BREAKPOINT {
                image.put(handler, &[0x48, 0xCF]); // iretq
            } else {
                // mov al; out; hlt
                image.put(handler, &[0xB0, vector as u8, 0xE6, PORT_TRAP as u8, 0xF4]);
            }
        }
        image.put(DATA, &0x1F80u32.to_le_bytes());
        image.put(CODE, code);
        image.put(CODE + code.len(), &DONE);
        image
    }
}

fn segment(selector: u16, code: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xFFFF_FFFF,
        selector,
        type_: if code { 11 } else { 3 },
        present: 1,
        s: 1,
        db: u8::from(!code),
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

impl Guest {
    /// A guest that will run `code`, then report its end. It starts with RSI at a data page and AX,
    /// BX, CX, DX zero.
    pub(crate) fn new(kvm: &Kvm, code: &[u8], log: Log) -> Result<Self, Errno> {
        let vm = kvm.create_vm()?;
        if log == Log::Manual {
            let cap = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                args: [3, 0, 0, 0],
                ..Default::default()
            };
            vm.enable_cap(&cap)?;
        }
        let ram = Image::new(code).0;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: if log == Log::Off { 0 } else { KVM_MEM_LOG_DIRTY_PAGES },
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: ram.as_ptr() as u64,
        };
        // SAFETY: the region lies within `ram`, which is neither moved nor freed before the VM is
        // closed (field order), and which nothing else touches.
        unsafe { vm.set_user_memory_region(region) }?;
        let vcpu = vm.create_vcpu(0)?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let xsave = has_xsave(kvm)?;
        vcpu.set_cpuid2(&cpuid)?;

        let mut sregs = vcpu.get_sregs()?;
        sregs.cs = segment(8, true);
        for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *data = segment(16, false);
        }
        sregs.gdt.base = GDT as u64;
        sregs.gdt.limit = 23;
        sregs.idt.base = IDT as u64;
        sregs.idt.limit = (NR_VECTORS * 16 - 1) as u16;
        sregs.cr3 = PML4 as u64;
        // PAE, OSFXSR, OSXMMEXCPT; OSXSAVE where there is XSAVE.
        sregs.cr4 = 0x620 | if xsave { 0x4_0000 } else { 0 };
        // PE, MP, ET, NE, PG.
        sregs.cr0 = 0x8000_0033;
        // LME and LMA.
        sregs.efer = 0x500;
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&kvm_regs {
            rip: CODE as u64,
            rsp: STACK_TOP as u64,
            rsi: DATA as u64,
            rflags: 2,
            ..Default::default()
        })?;
        Ok(Self { vcpu, vm, _ram: ram })
    }

    /// Runs it to its end. May never return with a broken KVM: callers need a watchdog.
    pub(crate) fn run(&mut self) -> Outcome {
        loop {
            return match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT_DONE, _)) => Outcome::Done,
                Ok(VcpuExit::IoOut(PORT_TRAP, data)) => {
                    Outcome::Trap(data.first().copied().unwrap_or(0))
                }
                Ok(VcpuExit::InternalError) => Outcome::NotEmulated,
                Ok(VcpuExit::Shutdown) => Outcome::Other("triple fault".into()),
                Ok(VcpuExit::Intr) => continue,
                Ok(other) => Outcome::Other(format!("{other:?}")),
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(e) => Outcome::Other(format!("KVM_RUN: {e}")),
            };
        }
    }

    /// The dirty log as page numbers.
    pub(crate) fn dirty(&self) -> Result<Vec<usize>, Errno> {
        let bitmap = self.vm.get_dirty_log(0, RAM)?;
        Ok((0..NR_PAGES)
            .filter(|page| bitmap.get(page / 64).is_some_and(|w| w >> (page % 64) & 1 == 1))
            .collect())
    }

    /// Write-protects all pages and forgets that they are dirty ([`Log::Manual`] only).
    pub(crate) fn protect_all(&self) -> io::Result<()> {
        clear_dirty_log(&self.vm, 0, 0, NR_PAGES as u64, &[u64::MAX; NR_PAGES / 64])
    }
}

fn cpuid_bit(
    kvm: &Kvm,
    leaf: u32,
    register: impl Fn(&kvm_bindings::kvm_cpuid_entry2) -> u32,
    bit: u32,
) -> Result<bool, Errno> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    Ok(cpuid
        .as_slice()
        .iter()
        .any(|e| e.function == leaf && e.index == 0 && register(e) >> bit & 1 == 1))
}

/// Whether guests are offered XSAVE.
pub(crate) fn has_xsave(kvm: &Kvm) -> Result<bool, Errno> {
    cpuid_bit(kvm, 1, |e| e.ecx, 26)
}

/// Whether guests are offered SMAP.
pub(crate) fn has_smap(kvm: &Kvm) -> Result<bool, Errno> {
    cpuid_bit(kvm, 7, |e| e.ebx, 20)
}
