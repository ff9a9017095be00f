//! Requests of ioctl(2) by their names: the names are Linux's.

use std::mem::size_of;

use kvm_bindings::*;

/// A request and its name, for traces and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// As in the kernel's headers.
    pub name: &'static str,
    /// The number that is passed.
    pub number: u32,
}

/// Both are of `linux/ioctl.h`: who writes or reads, from the program's side.
const WRITE: u32 = 1 << 30;
const READ: u32 = 2 << 30;

/// A request of KVM's about a value of this size.
const fn kvm(direction: u32, size: usize, number: u32) -> u32 {
    direction | (size as u32) << 16 | KVMIO << 8 | number
}

macro_rules! requests {
    ($($name:ident = $number:expr;)*) => {
        $(
            #[allow(missing_docs)]
            pub const $name: Request = Request { name: stringify!($name), number: $number };
        )*
        /// All of them.
        pub const ALL: &[Request] = &[$($name),*];
    };
}

requests! {
    BLKDISCARD = 0x1277;
    BLKZEROOUT = 0x127f;
    TCGETS = 0x5401;
    TCSETS = 0x5402;
    TCSETSW = 0x5403;
    FIONBIO = 0x5421;
    TCGETS2 = 0x802c_542a;
    TCSETS2 = 0x402c_542b;
    TCSETSW2 = 0x402c_542c;
    TUNSETOFFLOAD = 0x4004_54d0;
    KVM_CREATE_VM = kvm(0, 0, 0x01);
    KVM_GET_MSR_INDEX_LIST = kvm(READ | WRITE, size_of::<kvm_msr_list>(), 0x02);
    KVM_CHECK_EXTENSION = kvm(0, 0, 0x03);
    KVM_GET_VCPU_MMAP_SIZE = kvm(0, 0, 0x04);
    KVM_GET_SUPPORTED_CPUID = kvm(READ | WRITE, size_of::<kvm_cpuid2>(), 0x05);
    KVM_GET_MSR_FEATURE_INDEX_LIST = kvm(READ | WRITE, size_of::<kvm_msr_list>(), 0x0a);
    KVM_CREATE_VCPU = kvm(0, 0, 0x41);
    KVM_GET_DIRTY_LOG = kvm(WRITE, size_of::<kvm_dirty_log>(), 0x42);
    KVM_SET_USER_MEMORY_REGION = kvm(WRITE, size_of::<kvm_userspace_memory_region>(), 0x46);
    KVM_SET_TSS_ADDR = kvm(0, 0, 0x47);
    KVM_SET_IDENTITY_MAP_ADDR = kvm(WRITE, size_of::<u64>(), 0x48);
    KVM_CREATE_IRQCHIP = kvm(0, 0, 0x60);
    KVM_IRQ_LINE = kvm(WRITE, size_of::<kvm_irq_level>(), 0x61);
    KVM_GET_IRQCHIP = kvm(READ | WRITE, size_of::<kvm_irqchip>(), 0x62);
    KVM_SET_IRQCHIP = kvm(READ, size_of::<kvm_irqchip>(), 0x63);
    KVM_CREATE_PIT2 = kvm(WRITE, size_of::<kvm_pit_config>(), 0x77);
    KVM_IOEVENTFD = kvm(WRITE, size_of::<kvm_ioeventfd>(), 0x79);
    KVM_SET_CLOCK = kvm(WRITE, size_of::<kvm_clock_data>(), 0x7b);
    KVM_GET_CLOCK = kvm(READ, size_of::<kvm_clock_data>(), 0x7c);
    KVM_RUN = kvm(0, 0, 0x80);
    KVM_GET_REGS = kvm(READ, size_of::<kvm_regs>(), 0x81);
    KVM_SET_REGS = kvm(WRITE, size_of::<kvm_regs>(), 0x82);
    KVM_GET_SREGS = kvm(READ, size_of::<kvm_sregs>(), 0x83);
    KVM_SET_SREGS = kvm(WRITE, size_of::<kvm_sregs>(), 0x84);
    KVM_GET_MSRS = kvm(READ | WRITE, size_of::<kvm_msrs>(), 0x88);
    KVM_SET_MSRS = kvm(WRITE, size_of::<kvm_msrs>(), 0x89);
    KVM_SET_FPU = kvm(WRITE, size_of::<kvm_fpu>(), 0x8d);
    KVM_GET_LAPIC = kvm(READ, size_of::<kvm_lapic_state>(), 0x8e);
    KVM_SET_LAPIC = kvm(WRITE, size_of::<kvm_lapic_state>(), 0x8f);
    KVM_SET_CPUID2 = kvm(WRITE, size_of::<kvm_cpuid2>(), 0x90);
    KVM_GET_MP_STATE = kvm(READ, size_of::<kvm_mp_state>(), 0x98);
    KVM_SET_MP_STATE = kvm(WRITE, size_of::<kvm_mp_state>(), 0x99);
    KVM_GET_PIT2 = kvm(READ, size_of::<kvm_pit_state2>(), 0x9f);
    KVM_GET_VCPU_EVENTS = kvm(READ, size_of::<kvm_vcpu_events>(), 0x9f);
    KVM_SET_PIT2 = kvm(WRITE, size_of::<kvm_pit_state2>(), 0xa0);
    KVM_SET_VCPU_EVENTS = kvm(WRITE, size_of::<kvm_vcpu_events>(), 0xa0);
    KVM_GET_DEBUGREGS = kvm(READ, size_of::<kvm_debugregs>(), 0xa1);
    KVM_SET_DEBUGREGS = kvm(WRITE, size_of::<kvm_debugregs>(), 0xa2);
    KVM_SET_TSC_KHZ = kvm(0, 0, 0xa2);
    KVM_GET_TSC_KHZ = kvm(0, 0, 0xa3);
    KVM_ENABLE_CAP = kvm(WRITE, size_of::<kvm_enable_cap>(), 0xa3);
    KVM_GET_XSAVE = kvm(READ, size_of::<kvm_xsave>(), 0xa4);
    KVM_SET_XSAVE = kvm(WRITE, size_of::<kvm_xsave>(), 0xa5);
    KVM_GET_XCRS = kvm(READ, size_of::<kvm_xcrs>(), 0xa6);
    KVM_SET_XCRS = kvm(WRITE, size_of::<kvm_xcrs>(), 0xa7);
    KVM_KVMCLOCK_CTRL = kvm(0, 0, 0xad);
    KVM_CLEAR_DIRTY_LOG = kvm(READ | WRITE, size_of::<kvm_clear_dirty_log>(), 0xc0);
    KVM_GET_XSAVE2 = kvm(READ, size_of::<kvm_xsave>(), 0xcf);
}

/// The request of this number, if there is one here.
pub fn request(number: u64) -> Option<&'static Request> {
    // The kernel looks at these bits alone, and so do the filters.
    ALL.iter().find(|request| request.number == number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_linux_is_asked_with() {
        for (name, number) in [
            ("KVM_RUN", 0xae80),
            ("KVM_IRQ_LINE", 0x4008_ae61),
            ("KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
            ("KVM_GET_SUPPORTED_CPUID", 0xc008_ae05),
            ("KVM_CLEAR_DIRTY_LOG", 0xc018_aec0),
            ("KVM_GET_XSAVE2", 0x9000_aecf),
            ("KVM_SET_CPUID2", 0x4008_ae90),
            ("KVM_SET_MSRS", 0x4008_ae89),
        ] {
            assert_eq!(request(number).map(|r| r.name), Some(name), "{number:#x}");
        }
        assert_eq!(request(0x5412), None, "TIOCSTI types into a terminal");
    }
}
