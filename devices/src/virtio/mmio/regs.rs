//! Registers and constants of the MMIO transport (virtio 1.3, section 4.2.2, version 2).

/// "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout.
pub const VERSION: u32 = 2;
/// Vendor id: "WHRY".
pub const VENDOR: u32 = 0x5952_4857;
/// Bytes that one slot takes.
pub const SLOT_LEN: u64 = 0x1000;

#[allow(missing_docs)]
pub mod offset {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Device status bits (section 2.1).
#[allow(missing_docs)]
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
    /// What a driver may set.
    pub const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Interrupt status: the device used a buffer (section 4.2.2, InterruptStatus).
pub const INT_VRING: u32 = 1;
/// Interrupt status: the configuration changed.
pub const INT_CONFIG: u32 = 2;

/// Feature: indirect descriptors (section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature: used_event and avail_event (section 6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Feature: not a legacy device (section 6). Always offered and required.
pub const F_VERSION_1: u64 = 1 << 32;
