//! The rules of the house: who may import whom. Test code is free of them.
//!
//! `cargo xtask house` reads these tables, and fails too when a row is no longer needed.

/// What each crate imports of the others, all of it: a new arrow is a decision.
pub const CRATES: &[(&str, &[&str])] = &[
    ("cli", &["codec", "devices", "migration", "replay", "report", "rootfs", "vmm"]),
    ("codec", &[]),
    ("devices", &["codec", "threads"]),
    ("migration", &["codec", "threads"]),
    ("trace", &["migration"]),
    ("replay", &["migration", "trace"]),
    ("report", &["trace"]),
    ("rootfs", &["codec"]),
    ("threads", &[]),
    ("vmm", &["codec", "devices", "migration", "rootfs", "threads", "trace"]),
    ("guest-kernel", &[]),
    ("fuzz", &[]),
    ("tests", &[]),
    (
        "tests/bench",
        &["codec", "devices", "migration", "replay", "report", "tests", "trace", "vmm"],
    ),
    ("tests/fuzz", &["cli", "codec", "devices", "migration", "replay", "rootfs", "vmm"]),
    ("tests/model", &["devices", "migration", "tests/model/mutants", "vmm"]),
    ("tests/model/interleaved", &[]),
    ("tests/model/mutants", &[]),
    ("tests/xtask", &["guest-kernel", "tests"]),
];

/// Files or folders of which the first must not name the second, by any path.
pub const NEVER: &[(&str, &str)] = &[
    ("migration/src/destination", "migration/src/source"),
    ("migration/src/hinting", "migration/src/source"),
    ("migration/src/source", "migration/src/destination"),
    ("migration/src/transport", "migration/src/wire"),
    ("migration/src/wire", "migration/src/destination"),
    ("migration/src/wire", "migration/src/source"),
    ("vmm/src/boot", "vmm/src/machine"),
    ("vmm/src/life", "vmm/src/machine"),
    ("vmm/src/machine", "vmm/src/control"),
    ("vmm/src/machine", "vmm/src/migrate"),
    ("vmm/src/machine", "vmm/src/process"),
    ("vmm/src/migrate", "vmm/src/process"),
    ("vmm/src/control", "vmm/src/machine"),
    ("vmm/src/control", "vmm/src/migrate"),
    ("vmm/src/cpu", "vmm/src/machine"),
    ("vmm/src/memory", "vmm/src/machine"),
    ("vmm/src/vcpu", "vmm/src/machine"),
];
