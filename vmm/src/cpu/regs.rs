//! Registers of a vCPU before its first instruction.
//!
//! [`init_vcpu`] is for every vCPU; [`setup_boot_vcpu`] then points the first one at the kernel.
//! The others stay in KVM's reset state and wait for INIT and SIPI from the guest.

use super::arch_caps::ARCH_CAPABILITIES;
use super::compat::CpuDescriptionV1;
use crate::boot::layout::{BOOT_GDT, BOOT_IDT, BOOT_PAGE_TABLES};
use crate::boot::loader::Entry;
use anyhow::{Context, ensure};
use kvm_bindings::{
    Msrs, kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use wherry_devices::GuestMemory;

/// CR0 (SDM volume 3, 2.5): protection, extension type, numeric errors, paging.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, long mode active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: bit 1 is always set; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors that the Linux boot protocol prescribes (boot.rst, 64-bit boot protocol).
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Page table entry: present, writable; in a page directory: maps 2 MiB.
const PTE_TABLE: u64 = 0b11;
const PTE_LARGE: u64 = 1 << 7;

/// IA32_MISC_ENABLE: fast strings on; branch trace and PEBS unavailable (there is no PMU).
const MSR_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_BOOT: u64 = 1 | 1 << 11 | 1 << 12;
/// IA32_MTRR_DEF_TYPE: MTRRs on, everything write-back. Linux sees a sensible default and no
/// ranges, as in other virtual machines.
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Local APIC registers (SDM volume 3, 11.4.1).
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const LVT_MASKED: u32 = 1 << 16;
const LVT_EXTINT: u32 = 7 << 8;
const LVT_NMI: u32 = 4 << 8;

/// Gives vCPU `id` of `count`, which is new, what its description says, and the state that firmware
/// would leave: FPU, MSRs and local interrupt pins. Needs the in-kernel irqchip. Not for vCPUs that
/// are restored.
pub fn init_vcpu(vcpu: &VcpuFd, cpu: &CpuDescriptionV1, id: u32, count: u32) -> anyhow::Result<()> {
    let cpuid = cpu.vcpu_cpuid(id, count)?;
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2 failed")?;
    let fpu = kvm_fpu { fcw: 0x37F, mxcsr: 0x1F80, ..Default::default() };
    vcpu.set_fpu(&fpu).context("KVM_SET_FPU failed")?;
    let caps = cpu.has_arch_capabilities().then_some((ARCH_CAPABILITIES, cpu.arch_capabilities));
    let msrs = [(MSR_MISC_ENABLE, MISC_ENABLE_BOOT), (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)];
    for (index, data) in msrs.into_iter().chain(caps) {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let set = vcpu.set_msrs(&Msrs::from_entries(&[entry])?).context("KVM_SET_MSRS failed")?;
        ensure!(set == 1, "KVM refuses MSR {index:#x}");
    }
    let mut lapic = vcpu.get_lapic().context("KVM_GET_LAPIC failed")?;
    // The 8259 is wired to LINT0, but masked: the machine is hardware-reduced, no guest expects it
    // to be live. Linux without ACPI unmasks it itself (virtual wire mode). NMIs come in at LINT1,
    // as the MADT says.
    set_lapic_reg(&mut lapic, APIC_LVT0, LVT_EXTINT | LVT_MASKED);
    set_lapic_reg(&mut lapic, APIC_LVT1, LVT_NMI);
    vcpu.set_lapic(&lapic).context("KVM_SET_LAPIC failed")
}

fn set_lapic_reg(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (slot, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
        *slot = byte as _;
    }
}

const TABLES: &str = "cannot write descriptor and page tables";

/// Points the boot vCPU at what [`crate::boot::loader::load`] has loaded; writes descriptor and
/// page tables.
pub fn setup_boot_vcpu(vcpu: &VcpuFd, mem: &GuestMemory, entry: &Entry) -> anyhow::Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS failed")?;
    let regs = match *entry {
        Entry::Linux64 { rip, boot_params } => {
            write_page_tables(mem).context(TABLES)?;
            set_segments(&mut sregs, code_segment(true));
            sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
            sregs.cr3 = BOOT_PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            kvm_regs { rip, rsi: boot_params, rflags: RFLAGS_RESERVED, ..Default::default() }
        }
        Entry::Pvh { rip, start_info } => {
            set_segments(&mut sregs, code_segment(false));
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            kvm_regs { rip, rbx: start_info, rflags: RFLAGS_RESERVED, ..Default::default() }
        }
    };
    write_gdt(mem, &sregs).context(TABLES)?;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS failed")?;
    vcpu.set_regs(&regs).context("KVM_SET_REGS failed")
}

/// A flat code segment: 64-bit, or 32-bit with a 4 GiB limit.
fn code_segment(long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: BOOT_CS,
        type_: 11, // execute, read, accessed
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment) {
    // Read, write, accessed; 32-bit operand size.
    let data = kvm_segment { selector: BOOT_DS, type_: 3, db: 1, l: 0, ..code };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    // VMX wants a busy TSS at entry, of the 64-bit or 32-bit kind (both have type 11).
    sregs.tr = kvm_segment {
        selector: BOOT_TSS,
        type_: 11,
        limit: 0x67,
        present: 1,
        ..Default::default()
    };
    sregs.gdt =
        kvm_dtable { base: BOOT_GDT, limit: (GDT_ENTRIES * 8 - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable { base: BOOT_IDT, limit: 0, ..Default::default() };
}

/// Null, unused, code, data, TSS (two slots: it is 16 bytes in long mode).
const GDT_ENTRIES: usize = 6;

/// The descriptor table that goes with the segment registers, for a kernel that reloads one before
/// it has its own.
fn write_gdt(mem: &GuestMemory, sregs: &kvm_sregs) -> Result<(), vm_memory::GuestMemoryError> {
    let gdt = [0, 0, descriptor(&sregs.cs), descriptor(&sregs.ds), descriptor(&sregs.tr), 0];
    for (i, entry) in gdt.into_iter().enumerate() {
        mem.write_obj::<u64>(entry, GuestAddress(BOOT_GDT + 8 * i as u64))?;
    }
    mem.write_obj(0u64, GuestAddress(BOOT_IDT))
}

/// A segment descriptor (SDM volume 3, 3.4.5).
fn descriptor(s: &kvm_segment) -> u64 {
    // With page granularity the descriptor counts 4 KiB units.
    let limit = u64::from(if s.g == 1 { s.limit >> 12 } else { s.limit });
    let access = u64::from(s.type_)
        | u64::from(s.s) << 4
        | u64::from(s.dpl) << 5
        | u64::from(s.present) << 7;
    let flags = u64::from(s.avl) | u64::from(s.l) << 1 | u64::from(s.db) << 2 | u64::from(s.g) << 3;
    (limit & 0xFFFF)
        | (s.base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (s.base >> 24 & 0xFF) << 56
}

/// Identity-maps the first 4 GiB with 2 MiB pages: kernel, initrd, boot structures and ACPI tables
/// all lie there.
fn write_page_tables(mem: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    let table = |n: u64| BOOT_PAGE_TABLES + n * 0x1000;
    mem.write_obj(table(1) | PTE_TABLE, GuestAddress(table(0)))?;
    for gib in 0..4 {
        mem.write_obj(table(2 + gib) | PTE_TABLE, GuestAddress(table(1) + gib * 8))?;
        for page in 0..512 {
            let address = gib << 30 | page << 21;
            mem.write_obj(
                address | PTE_TABLE | PTE_LARGE,
                GuestAddress(table(2 + gib) + page * 8),
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        let mut sregs = kvm_sregs::default();
        set_segments(&mut sregs, code_segment(true));
        assert_eq!(descriptor(&sregs.cs), 0x00AF_9B00_0000_FFFF);
        assert_eq!(descriptor(&sregs.ds), 0x00CF_9300_0000_FFFF);
        assert_eq!(descriptor(&sregs.tr), 0x0000_8B00_0000_0067);
        assert_eq!(descriptor(&code_segment(false)), 0x00CF_9B00_0000_FFFF);
    }

    #[test]
    fn page_tables_map_each_address_to_itself() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        write_page_tables(&mem).unwrap();
        let read = |addr: u64| mem.read_obj::<u64>(GuestAddress(addr)).unwrap();
        for address in [0u64, 0x7000, 0x100_0200, 0xBFFF_F000, 0xFEE0_0000, 0xFFFF_FFFF] {
            let pdpt = read(BOOT_PAGE_TABLES) & !0xFFF;
            let directory = read(pdpt + (address >> 30) * 8) & !0xFFF;
            let page = read(directory + (address >> 21 & 511) * 8);
            assert_eq!(page & 0xFFF, 0x83);
            assert_eq!(page & !0xFFF, address & !0x1F_FFFF);
        }
    }
}
