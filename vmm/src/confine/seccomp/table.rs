//! What each kind of thread may ask of the kernel.
//!
//! A filter is inherited, so a thread may also do what those that it starts may do;
//! [`Kind::all`](super::allowed) adds that up. Some calls are narrowed by their arguments, for
//! every kind alike: see [`filter`](super::filter). `cargo run -p wherry-vmm --example seccomp`
//! compares this table with what strace saw.

use super::requests::*;

/// A kind of thread.
#[derive(Debug)]
pub struct Kind {
    /// As whoever starts one calls it.
    pub name: &'static str,
    /// What it calls beside [`BASE`].
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
    "nanosleep",
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

/// To start a thread that narrows itself.
pub const STARTING: &[&str] = &["clone", "clone3", "seccomp"];

/// To have a program started by the launcher, and to take what it reads from a disk.
pub const LAUNCHING: &[&str] =
    &["fstat", "memfd_create", "pipe2", "pread64", "recvfrom", "recvmsg", "sendmsg", "statx"];

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
/// A machine that is made.
const BUILD: &[Request] = &[
    FIONBIO,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_CREATE_VCPU,
    KVM_CREATE_VM,
    KVM_ENABLE_CAP,
    KVM_GET_API_VERSION,
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_IOEVENTFD,
    KVM_SET_CPUID2,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_SET_TSS_ADDR,
];
/// Its state, at its first boot and on arrival.
const LOAD: &[Request] = &[
    KVM_SET_CLOCK,
    KVM_SET_DEBUGREGS,
    KVM_SET_FPU,
    KVM_SET_IRQCHIP,
    KVM_SET_LAPIC,
    KVM_SET_MP_STATE,
    KVM_SET_MSRS,
    KVM_SET_PIT2,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_TSC_KHZ,
    KVM_SET_VCPU_EVENTS,
    KVM_SET_XCRS,
    KVM_SET_XSAVE,
];
/// The terminal is as it was before.
const TERMINAL: &[Request] = &[TCGETS, TCGETS2, TCSETSW, TCSETSW2];

/// All kinds. The two that a guest talks to come first.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "vcpu",
        // A reset of the socket device ends its streams.
        calls: &["shutdown", "timerfd_settime"],
        requests: &[&[KVM_RUN, KVM_IRQ_LINE]],
        starts: &["offloads"],
        ..NONE
    },
    Kind {
        name: "devices",
        calls: &[
            // Clients of the guest's sockets, and sockets of programs that its guest calls.
            "accept4",
            "connect",
            "epoll_ctl",
            "epoll_pwait",
            "epoll_wait",
            // Memory that the guest gives back.
            "fallocate",
            "getsockopt",
            // Where hinted memory is populated.
            "lseek",
            "mincore",
            "pread64",
            // Of a disk, what is in memory already.
            "preadv",
            "preadv2",
            "read",
            // Frames of a tap's and of passt's.
            "readv",
            "recvfrom",
            "setsockopt",
            "shutdown",
            "socket",
            "timerfd_settime",
            "writev",
        ],
        requests: &[&[FIONBIO, KVM_CLEAR_DIRTY_LOG, KVM_IRQ_LINE]],
        starts: &["offloads"],
        ..NONE
    },
    Kind {
        name: "disk",
        calls: &[
            "fallocate",
            "fdatasync",
            "fstat",
            "fsync",
            "lseek",
            "pread64",
            "preadv",
            "preadv2",
            "pwrite64",
            "pwritev",
            "statx",
        ],
        requests: &[&[BLKDISCARD, BLKZEROOUT, KVM_IRQ_LINE]],
        ..NONE
    },
    // Waits for a flush, or for a lock, that may hang.
    Kind { name: "disk-flush", calls: &["fdatasync", "fsync", "statx"], ..NONE },
    Kind { name: "offloads", requests: &[&[TUNSETOFFLOAD]], ..NONE },
    // Has passt started anew, and asks it whether it is there.
    Kind {
        name: "passt",
        calls: &["lseek", "read", "setsockopt", "shutdown", "socketpair", "writev"],
        requests: &[&[FIONBIO, KVM_IRQ_LINE]],
        launches: true,
        ..NONE
    },
    // Writes what is said.
    Kind { name: "log", ..NONE },
    Kind { name: "console-out", calls: &["shutdown", "statx", "writev"], ..NONE },
    Kind {
        name: "console-in",
        calls: &["read", "recvfrom", "shutdown"],
        requests: &[&[KVM_IRQ_LINE]],
        ..NONE
    },
    Kind {
        name: "console-client",
        calls: &["read", "recvfrom", "shutdown"],
        requests: &[&[KVM_IRQ_LINE]],
        ..NONE
    },
    Kind { name: "keyboard", calls: &["read"], requests: &[TERMINAL], ..NONE },
    Kind { name: "signals", calls: &["rt_sigtimedwait"], requests: &[TERMINAL], ..NONE },
    Kind {
        name: "control",
        calls: &["accept4", "setsockopt", "shutdown"],
        requests: &[&[FIONBIO]],
        starts: &["control-client"],
        ..NONE
    },
    Kind {
        name: "control-client",
        calls: &[
            // Disks, which a resume takes back.
            "fadvise64",
            "fstat",
            "getdents64",
            "lseek",
            "openat",
            "pread64",
            "read",
            "recvfrom",
            "setsockopt",
            "shutdown",
            "statx",
        ],
        requests: &[&[FIONBIO], PAUSE],
        starts: &["console-client", "console-out", "control-migrate", "disk-flush", "offloads"],
        ..NONE
    },
    Kind {
        name: "control-migrate",
        calls: &["connect", "getsockopt", "lseek", "setsockopt", "shutdown", "socket"],
        requests: &[&[FIONBIO]],
        starts: &["boot-files", "disk-flush", "migration"],
        ..NONE
    },
    Kind { name: "boot-files", calls: &["lseek", "read"], launches: true, ..NONE },
    Kind {
        name: "migration",
        calls: &[
            "connect",
            "fadvise64",
            "fstat",
            "getdents64",
            "getsockopt",
            "lseek",
            "mincore",
            // A disk's lock that another took: who that is.
            "openat",
            "pread64",
            "preadv",
            "read",
            "recvfrom",
            "sendmsg",
            "setsockopt",
            "shutdown",
            "socket",
            "statx",
            "timerfd_settime",
            "writev",
        ],
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
    Kind { name: "migration-answers", calls: &["read", "recvfrom", "shutdown"], ..NONE },
    Kind {
        name: "migration-send",
        calls: &["lseek", "mincore", "pread64", "setsockopt", "shutdown", "writev"],
        requests: &[&[KVM_CLEAR_DIRTY_LOG]],
        ..NONE
    },
    Kind {
        name: "migration-walk",
        calls: &["fstat", "lseek", "mincore", "pread64", "statx"],
        requests: &[LOG],
        starts: &["disk-flush"],
        ..NONE
    },
    Kind {
        name: "migration-greet",
        calls: &["recvfrom", "setsockopt", "shutdown", "writev"],
        requests: &[&[FIONBIO]],
        ..NONE
    },
    Kind {
        name: "migration-receive",
        calls: &["fallocate", "lseek", "mincore", "pread64", "pwrite64", "recvfrom", "shutdown"],
        ..NONE
    },
    // Frames, a word to the guest's driver, and when to say it again.
    Kind {
        name: "announce",
        calls: &["timerfd_settime", "writev"],
        requests: &[&[KVM_IRQ_LINE]],
        ..NONE
    },
    Kind {
        name: "boot",
        calls: &[
            "bind",
            // Whether somebody listens where the guest's sockets are to be.
            "connect",
            "epoll_create1",
            "epoll_ctl",
            "eventfd2",
            "fadvise64",
            "fallocate",
            "fchmod",
            "flock",
            "fstat",
            // The tmpfs of --memory-backing.
            "fstatfs",
            "ftruncate",
            "getdents64",
            "listen",
            "lseek",
            "memfd_create",
            "mincore",
            "openat",
            "pread64",
            "pwrite64",
            "read",
            "setsockopt",
            "socket",
            "statx",
            "timerfd_create",
            "timerfd_settime",
            "unlink",
        ],
        requests: &[BUILD, LOAD, SAVE, LOG, &[KVM_IRQ_LINE]],
        starts: &["console-in", "devices", "disk", "disk-flush", "offloads", "vcpu"],
        launches: true,
    },
    Kind {
        name: "receive",
        // And whether a disk has grown: newfstatat.
        calls: &[
            "accept4",
            "getpeername",
            "getsockopt",
            "newfstatat",
            "recvfrom",
            "shutdown",
            "writev",
        ],
        requests: &[PAUSE],
        // It builds a machine, as one that boots does.
        starts: &["announce", "boot", "migration-greet", "migration-receive"],
        ..NONE
    },
    // Once the VM has begun. It builds the next machine at a reboot, and puts all away in the end.
    Kind {
        name: "main",
        // The launchers end with it.
        calls: &["shutdown", "unlinkat", "wait4", "waitid"],
        requests: &[&[FIONBIO, KVM_IRQ_LINE], TERMINAL],
        starts: &["boot", "receive"],
        launches: true,
    },
];

/// Kinds that no process of a VM has: names are looked up by who calls one.
pub const OF_CLIENTS: &[&str] = &["resolve"];
