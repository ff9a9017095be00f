//! Numbers of the traditional memory balloon (virtio 1.3, section 5.5).

/// Device id (section 5).
pub const DEVICE_ID: u32 = 5;

/// The driver tells before it uses a page from the balloon (section 5.5.3).
pub const F_MUST_TELL_HOST: u64 = 1 << 0;
/// The statistics queue exists (section 5.5.3).
pub const F_STATS_VQ: u64 = 1 << 1;
/// The driver may deflate when it is out of memory (section 5.5.3).
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Free page hinting (section 5.5.3).
pub const F_FREE_PAGE_HINT: u64 = 1 << 3;
/// The driver writes `poison_val` (section 5.5.3).
pub const F_PAGE_POISON: u64 = 1 << 4;
/// Free page reporting (section 5.5.3).
pub const F_PAGE_REPORTING: u64 = 1 << 5;

/// Config space: target in 4096-byte pages (section 5.5.4).
pub const CONFIG_NUM_PAGES: u64 = 0;
/// Config space: what the driver says it gave (section 5.5.4).
pub const CONFIG_ACTUAL: u64 = 4;
/// Config space: the hint command (section 5.5.4).
pub const CONFIG_CMD_ID: u64 = 8;
/// Config space: the value in the guest's free pages (section 5.5.4).
pub const CONFIG_POISON: u64 = 12;
/// Bytes of config space.
pub const CONFIG_LEN: usize = 16;

/// Hint command: do not hint (section 5.5.6.5).
pub const CMD_STOP: u32 = 0;
/// Hint command: hinting is over, take the pages back (section 5.5.6.5).
pub const CMD_DONE: u32 = 1;
/// First id that starts hinting (section 5.5.6.5).
pub const CMD_FIRST_ID: u32 = 2;

/// The balloon's page (section 5.5.6); not the guest's page size, though on x86 they are the same.
pub const PAGE_SIZE: u64 = 4096;
/// Page shift of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Most page numbers in one descriptor; what drivers send.
pub const MAX_PFNS: usize = 256;
/// Size of every queue. Section 5.5.2 asks for nothing; drivers want at least 2 for hints and 32
/// for reports.
pub const QUEUE_SIZE: u16 = 128;
/// Most descriptors taken from one chain. Section 2.7.5.3.1 allows a driver the queue's size.
pub const MAX_CHAIN: usize = 2 * QUEUE_SIZE as usize;

/// Bytes of one statistic: le16 tag, le64 value (section 5.5.6.3).
pub const STAT_LEN: usize = 10;
/// Most statistics taken from one buffer; Linux 6.12 sends 16.
pub const MAX_STATS: usize = 256;

/// Names of the known tags, by tag. 0 to 9: section 5.5.6.4; 10 to 15: Linux 6.12.
pub const STAT_NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "alloc_stalls",
    "async_scans",
    "direct_scans",
    "async_reclaims",
    "direct_reclaims",
];
/// Tag: bytes that are not used for anything.
pub const STAT_FREE_MEMORY: u16 = 4;
/// Tag: bytes of memory the guest has.
pub const STAT_TOTAL_MEMORY: u16 = 5;
/// Tag: bytes that could be had without swapping.
pub const STAT_AVAILABLE_MEMORY: u16 = 6;
