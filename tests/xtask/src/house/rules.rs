//! The rules of the house: who may import whom. Test code is free of them.
//!
//! `cargo xtask house` reads these tables, and fails too when a row is no longer needed.

/// What each crate imports of the others, all of it: a new arrow is a decision.
pub const CRATES: &[(&str, &[&str])] = &[
    ("cli", &["devices", "migration", "report", "vmm"]),
    ("codec", &[]),
    ("devices", &[]),
    ("migration", &["codec"]),
    ("report", &["migration"]),
    ("vmm", &["codec", "devices", "migration"]),
    ("guest-kernel", &[]),
    ("fuzz", &[]),
    ("tests", &[]),
    ("tests/bench", &["migration", "report", "tests"]),
    ("tests/fuzz", &["codec", "devices", "migration", "vmm"]),
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
    ("migration/src/source", "migration/src/replay"),
    ("migration/src/source", "migration/src/trace"),
    ("migration/src/transport", "migration/src/wire"),
    ("migration/src/wire", "migration/src/destination"),
    ("migration/src/wire", "migration/src/source"),
    ("vmm/src/boot", "vmm/src/machine"),
    ("vmm/src/control", "vmm/src/machine"),
    ("vmm/src/control", "vmm/src/migrate"),
    ("vmm/src/cpu", "vmm/src/machine"),
    ("vmm/src/memory", "vmm/src/machine"),
    ("vmm/src/vcpu", "vmm/src/machine"),
];

/// Rows that do not hold yet. One that does has to move to `NEVER`.
pub const SOON: &[(&str, &str)] =
    &[("vmm/src/machine", "vmm/src/control"), ("vmm/src/machine", "vmm/src/migrate")];

/// Arrows, from file to file, that close a circle today. Each has to be there and to close one: the
/// table can only get shorter.
pub const CIRCLES: &[(&str, &str)] = &[
    ("devices/src/virtio/balloon/control.rs", "devices/src/virtio/balloon/state.rs"),
    ("devices/src/virtio/balloon/mod.rs", "devices/src/virtio/balloon/control.rs"),
    ("devices/src/virtio/balloon/mod.rs", "devices/src/virtio/balloon/hinting.rs"),
    ("devices/src/virtio/balloon/mod.rs", "devices/src/virtio/balloon/stats.rs"),
    (
        "guest-kernel/src/bin/wherry-hostile/pages.rs",
        "guest-kernel/src/bin/wherry-hostile/console.rs",
    ),
    ("guest-kernel/src/bin/wherry-init/check.rs", "guest-kernel/src/bin/wherry-init/console.rs"),
    ("guest-kernel/src/bin/wherry-init/churn.rs", "guest-kernel/src/bin/wherry-init/console.rs"),
    ("guest-kernel/src/bin/wherry-init/cmdline.rs", "guest-kernel/src/bin/wherry-init/console.rs"),
    ("guest-kernel/src/bin/wherry-init/periodic.rs", "guest-kernel/src/bin/wherry-init/console.rs"),
    ("guest-kernel/src/bin/wherry-init/pressure.rs", "guest-kernel/src/bin/wherry-init/stats.rs"),
    ("guest-kernel/src/bin/wherry-init/work.rs", "guest-kernel/src/bin/wherry-init/console.rs"),
    ("migration/src/source/sender.rs", "migration/src/source/session.rs"),
    ("migration/src/wire/digests.rs", "migration/src/wire/mod.rs"),
    ("migration/src/wire/mod.rs", "migration/src/wire/pages.rs"),
    ("report/src/svg.rs", "report/src/html.rs"),
    ("tests/bench/src/plan.rs", "tests/bench/src/main.rs"),
    ("tests/bench/src/report/mod.rs", "tests/bench/src/main.rs"),
    ("tests/bench/src/report/mod.rs", "tests/bench/src/report/html.rs"),
    ("tests/bench/src/report/mod.rs", "tests/bench/src/report/summary.rs"),
    ("tests/bench/src/run.rs", "tests/bench/src/main.rs"),
    ("tests/bench/src/vmm/mod.rs", "tests/bench/src/vmm/qemu.rs"),
    ("tests/bench/src/vmm/mod.rs", "tests/bench/src/vmm/wherry.rs"),
    ("tests/model/src/protocol/device.rs", "tests/model/src/protocol/bench.rs"),
    ("tests/model/src/protocol/device.rs", "tests/model/src/protocol/mod.rs"),
    ("tests/model/src/protocol/memory.rs", "tests/model/src/protocol/mod.rs"),
    ("tests/model/src/protocol/mod.rs", "tests/model/src/protocol/engine.rs"),
    ("tests/model/src/protocol/mod.rs", "tests/model/src/protocol/guest.rs"),
    ("tests/model/src/protocol/progress.rs", "tests/model/src/protocol/mod.rs"),
    ("tests/model/src/protocol/round.rs", "tests/model/src/protocol/mod.rs"),
    ("tests/model/src/protocol/scenario.rs", "tests/model/src/protocol/mod.rs"),
    ("vmm/src/cpu/clock.rs", "vmm/src/cpu/state.rs"),
    ("vmm/src/cpu/msrs.rs", "vmm/src/cpu/state.rs"),
    ("vmm/src/doctor/host.rs", "vmm/src/doctor/mod.rs"),
    ("vmm/src/machine/mod.rs", "vmm/src/machine/run.rs"),
    ("vmm/src/machine/state.rs", "vmm/src/machine/mod.rs"),
    ("vmm/src/migrate/mod.rs", "vmm/src/machine/controller.rs"),
];
