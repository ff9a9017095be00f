//! What each kind of thread may ask of the kernel.
//!
//! A filter is inherited, so a thread may also do what those that it starts may do;
//! [`Kind::all`](super::allowed) adds that up. Some calls are narrowed by their arguments, for
//! every kind alike: see [`filter`](super::filter). `cargo run -p wherry-vmm --example seccomp`
//! compares this table with what the lab's kernel
//! counted.

use super::requests::*;

/// A kind of thread.
#[derive(Debug)]
pub struct Kind {
    /// As whoever starts one calls it.
    pub name: &'static str,
    /// What it calls beside [`BASE`] and [`DESCRIPTORS`].
    pub calls: &'static [&'static str],
    /// What it asks with `ioctl`.
    pub requests: &'static [&'static [Request]],
    /// Which kinds it starts, or starts what starts them.
    pub starts: &'static [&'static str],
    /// Has programs started, see [`LAUNCHING`].
    pub launches: bool,
}

const NONE: Kind = Kind { name: "", calls: &[], requests: &[], starts: &[], launches: false };

/// What the allocator, the standard library and the end of a thread take: on Debian 12 (glibc 2.36)
/// and 13 (2.41).
pub const BASE: &[&str] = &[
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "exit",
    "exit_group",
    "fcntl",
    "futex",
    // A backtrace's, where one is asked for.
    "getcwd",
    "getpid",
    "getrandom",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "poll",
    "ppoll",
    "prctl",
    // As getcwd.
    "readlink",
    // After a signal, such as a debugger's.
    "restart_syscall",
    "rseq",
    // An abort's, and of the report of a call that is not here.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    // The journal, where what is said goes there.
    "sendto",
    "set_robust_list",
    "sigaltstack",
    "tgkill",
    // Standard error, and eventfds.
    "write",
];

/// What acts on a descriptor that the process has already, and makes none. All threads may: they
/// have the same ones, so to forbid one what another may do with them holds up nobody who has got
/// hold of a thread, but ends a VM whose thread comes this way once in a while (an alert of TLS's,
/// a device that was full when the guest was paused).
pub const DESCRIPTORS: &[&str] = &[
    "epoll_ctl",
    // rustix's, where the sockets between host and guest wait.
    "epoll_pwait",
    "epoll_wait",
    "fdatasync",
    "fstat",
    "lseek",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "read",
    "recvfrom",
    "setsockopt",
    "shutdown",
    "timerfd_settime",
    "writev",
];

/// To start a thread that narrows itself.
pub const STARTING: &[&str] = &["clone", "clone3", "seccomp"];

/// To have a program started by the launcher, to take what it reads from a disk, and to put it
/// away.
pub const LAUNCHING: &[&str] = &["memfd_create", "pipe2", "sendmsg", "statx", "wait4"];

/// To stop and start vCPUs and devices, and to read what a client asks for.
const PAUSE: &[Request] = &[KVM_GET_CLOCK, KVM_GET_MSRS, KVM_IRQ_LINE, KVM_KVMCLOCK_CTRL];
/// The dirty log.
const LOG: &[Request] = &[KVM_CLEAR_DIRTY_LOG, KVM_GET_DIRTY_LOG, KVM_SET_USER_MEMORY_REGION];
/// A paused machine's state.
const SAVE: &[Request] = &[
    KVM_GET_CLOCK,
    KVM_GET_DEBUGREGS,
    KVM_GET_IRQCHIP,
    KVM_GET_LAPIC,
    KVM_GET_MP_STATE,
    KVM_GET_MSRS,
    KVM_GET_PIT2,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_GET_TSC_KHZ,
    KVM_GET_VCPU_EVENTS,
    KVM_GET_XCRS,
    // Of a KVM without the other.
    KVM_GET_XSAVE,
    KVM_GET_XSAVE2,
];
/// A machine that is made, and its state at its first instruction.
const BUILD: &[Request] = &[
    KVM_CHECK_EXTENSION,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_ENABLE_CAP,
    KVM_GET_IRQCHIP,
    KVM_GET_LAPIC,
    KVM_GET_MSRS,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_SREGS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_IOEVENTFD,
    KVM_SET_CPUID2,
    KVM_SET_FPU,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_SET_IRQCHIP,
    KVM_SET_LAPIC,
    KVM_SET_MSRS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_TSS_ADDR,
    KVM_SET_USER_MEMORY_REGION,
];
/// What else the state of one that arrives takes.
const ARRIVE: &[Request] = &[
    FIONBIO,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_TSC_KHZ,
    KVM_SET_CLOCK,
    KVM_SET_DEBUGREGS,
    KVM_SET_MP_STATE,
    KVM_SET_PIT2,
    KVM_SET_TSC_KHZ,
    KVM_SET_VCPU_EVENTS,
    KVM_SET_XCRS,
    KVM_SET_XSAVE,
];
/// The terminal is as it was before.
const TERMINAL: &[Request] = &[TCGETS, TCGETS2, TCSETSW, TCSETSW2];

/// All kinds. The two that a guest talks to come first. Those that may be the last to let go of the
/// VM when it ends put away its sockets (`unlink`) and launchers (`wait4`).
pub const KINDS: &[Kind] = &[
    Kind {
        name: "vcpu",
        // And where a guest was that has crashed.
        requests: &[&[KVM_RUN, KVM_IRQ_LINE, KVM_GET_REGS]],
        starts: &["offloads"],
        ..NONE
    },
    Kind {
        name: "devices",
        calls: &[
            // Clients of the guest's sockets, and sockets of programs that its guest calls.
            "accept4",
            "connect",
            // Memory that the guest gives back.
            "fallocate",
            // Where hinted memory is populated.
            "mincore",
            "socket",
        ],
        requests: &[&[FIONBIO, KVM_CLEAR_DIRTY_LOG, KVM_IRQ_LINE]],
        starts: &["offloads"],
        ..NONE
    },
    Kind { name: "disk", calls: &["fallocate"], requests: &[&[BLKDISCARD, BLKZEROOUT]], ..NONE },
    // Waits for a flush, which may hang.
    Kind { name: "disk-flush", ..NONE },
    Kind { name: "offloads", requests: &[&[TUNSETOFFLOAD]], ..NONE },
    // Has passt started anew, and asks it whether it is there.
    Kind { name: "passt", calls: &["socketpair"], requests: &[&[FIONBIO]], launches: true, ..NONE },
    // Writes what is said.
    Kind { name: "log", ..NONE },
    Kind { name: "console-out", ..NONE },
    Kind { name: "console-in", requests: &[&[KVM_IRQ_LINE]], ..NONE },
    Kind { name: "console-client", requests: &[&[KVM_IRQ_LINE]], ..NONE },
    Kind { name: "keyboard", calls: &["unlink", "wait4"], requests: &[TERMINAL], ..NONE },
    Kind {
        name: "signals",
        calls: &["rt_sigtimedwait", "unlink", "wait4"],
        requests: &[TERMINAL],
        ..NONE
    },
    Kind {
        name: "control",
        calls: &["accept4"],
        requests: &[&[FIONBIO]],
        starts: &["control-client"],
        ..NONE
    },
    Kind {
        name: "control-client",
        calls: &[
            // Disks, which a resume takes back.
            "fadvise64",
            "statx",
            "unlink",
            "wait4",
        ],
        requests: &[&[FIONBIO], PAUSE],
        starts: &["console-client", "console-out", "control-migrate", "disk-flush", "offloads"],
        ..NONE
    },
    Kind {
        name: "control-migrate",
        calls: &["connect", "socket", "unlink", "wait4"],
        requests: &[&[FIONBIO]],
        starts: &["boot-files", "disk-flush", "migration"],
        ..NONE
    },
    // A copy of what the guest boots.
    Kind { name: "boot-files", calls: &["memfd_create", "statx"], ..NONE },
    Kind {
        name: "migration",
        calls: &["connect", "fadvise64", "mincore", "socket", "statx"],
        requests: &[&[FIONBIO], LOG, PAUSE, SAVE],
        starts: &[
            "disk-flush",
            "migration-answers",
            "migration-send",
            "migration-walk",
            "offloads",
        ],
        ..NONE
    },
    Kind { name: "migration-answers", ..NONE },
    // It protects nothing: what it is given is protected.
    Kind { name: "migration-send", calls: &["mincore"], ..NONE },
    Kind {
        name: "migration-walk",
        calls: &["statx"],
        requests: &[LOG],
        starts: &["disk-flush"],
        ..NONE
    },
    Kind { name: "migration-greet", requests: &[&[FIONBIO]], ..NONE },
    Kind { name: "migration-receive", calls: &["fallocate"], ..NONE },
    // Frames, and a word to the guest's driver.
    Kind { name: "announce", calls: &["unlink", "wait4"], requests: &[&[KVM_IRQ_LINE]], ..NONE },
    Kind {
        name: "boot",
        calls: &[
            "epoll_create1",
            "eventfd2",
            // The tmpfs of --memory-backing.
            "fstatfs",
            "ftruncate",
            "memfd_create",
            "openat",
            "statx",
            "timerfd_create",
            "unlink",
        ],
        requests: &[BUILD],
        starts: &["console-in", "devices", "disk", "disk-flush", "offloads", "vcpu"],
        launches: true,
    },
    Kind {
        name: "receive",
        calls: &[
            "accept4",
            // The guest's sockets, whose device comes with it.
            "bind",
            // Whether somebody listens where they are to be.
            "connect",
            // Disks that another host has written.
            "fadvise64",
            // Memory that became zero.
            "fallocate",
            "fchmod",
            "flock",
            "getpeername",
            "listen",
            // Memory that is compared.
            "mincore",
            // How long a disk's file is.
            "newfstatat",
            "socket",
        ],
        requests: &[ARRIVE, PAUSE],
        // It builds a machine, as one that boots does.
        starts: &["announce", "boot", "migration-greet", "migration-receive"],
        ..NONE
    },
    // Once the VM has begun. It builds the next machine at a reboot, and puts all away in the end.
    Kind {
        name: "main",
        calls: &["unlinkat"],
        requests: &[&[FIONBIO, KVM_IRQ_LINE], TERMINAL],
        starts: &["boot", "receive"],
        ..NONE
    },
];

/// Kinds that no process of a VM has: names are looked up by who calls one.
pub const OF_CLIENTS: &[&str] = &["resolve"];
