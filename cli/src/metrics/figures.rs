//! Which figures there are, and where they are in what a VM says of itself.
//!
//! What a VM does not know is left out. Names and units follow Prometheus' conventions; they are
//! part of the public interface.

use serde_json::Value;
use wherry_vmm::control::{BalloonInfo, DiskInfo, Info, MigrationStatus, NetInfo, VmState};

use super::text::{Families, Kind, Labels, Number};

const PAGE: u64 = 4096;

/// Everything that a state may be.
const STATES: [VmState; 10] = [
    VmState::Running,
    VmState::Paused,
    VmState::LockLost,
    VmState::Migrating,
    VmState::Receiving,
    VmState::Migrated,
    VmState::MigrationUnknown,
    VmState::Rebooting,
    VmState::Stopped,
    VmState::Unknown,
];

/// Of this program.
pub fn build(all: &mut Families) {
    let what = (Kind::Gauge, "wherry_build_info", "Version of the wherry command that says this.");
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    all.add(what, version, Number::Whole(1));
}

/// Figures of one VM.
pub struct Of<'a> {
    pub all: &'a mut Families,
    /// Its name in the runtime folder.
    pub vm: &'a str,
    /// Whose it is, if it is a user's that root looks at: names differ within one folder only.
    pub uid: Option<u32>,
}

impl Of<'_> {
    fn add(&mut self, kind: Kind, name: &'static str, help: &'static str, more: Labels, n: Number) {
        let user = self.uid.map(|uid| ("uid", uid.to_string()));
        let labels = [("vm", self.vm.to_owned())].into_iter().chain(user).chain(more).collect();
        self.all.add((kind, name, help), labels, n);
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.add(Kind::Gauge, name, help, vec![], Number::Whole(value));
    }

    fn seconds(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.add(Kind::Gauge, name, help, vec![], Number::Real(value));
    }

    fn counter(&mut self, name: &'static str, help: &'static str, more: Labels, value: u64) {
        self.add(Kind::Counter, name, help, more, Number::Whole(value));
    }

    /// Whether it answered.
    pub fn up(&mut self, up: bool) {
        self.gauge("wherry_vm_up", "Whether the VM answered in time.", u64::from(up));
    }

    /// What it answered.
    pub fn info(&mut self, info: &Info) {
        for state in STATES {
            let name = serde_json::to_value(state).ok();
            let name = name.as_ref().and_then(Value::as_str).unwrap_or("unknown").to_owned();
            let is = Number::Whole(u64::from(state == info.state));
            let help = "What the VM does: 1 for the state that it is in.";
            self.add(Kind::Gauge, "wherry_vm_state", help, vec![("state", name)], is);
        }
        let help = "Seconds since the VM's process started.";
        self.seconds("wherry_vm_uptime_seconds", help, info.uptime_ms as f64 / 1e3);
        self.gauge("wherry_vm_vcpus", "Virtual CPUs.", info.nr_vcpus.into());
        self.gauge("wherry_vm_memory_bytes", "Guest RAM.", info.ram_bytes);
        let help = "Resident memory of the VM's process, guest RAM included.";
        self.gauge("wherry_vm_resident_memory_bytes", help, info.rss_bytes);
        let help = "Disks whose lock the running guest does not have.";
        self.gauge("wherry_vm_unlocked_disks", help, info.unlocked_disks.len() as u64);
        if let Some(balloon) = &info.balloon {
            self.balloon(balloon);
        }
        self.migrations(info);
        info.disks.iter().for_each(|disk| self.disk(disk));
        info.nets.iter().for_each(|net| self.net(net));
    }

    fn balloon(&mut self, balloon: &BalloonInfo) {
        let help = "What the balloon is to hold.";
        self.gauge("wherry_vm_balloon_target_bytes", help, balloon.target_bytes);
        let help = "What the guest has given to the balloon.";
        self.gauge("wherry_vm_balloon_actual_bytes", help, balloon.actual_bytes);
        let counters = &balloon.counters;
        if let Some(bytes) = counters["resident_bytes"].as_u64() {
            let help = "Guest RAM that takes memory of the host.";
            self.gauge("wherry_vm_guest_resident_memory_bytes", help, bytes);
        }
        let device = |key: &str| counters["device"][key].as_u64();
        let pages = |key: &str| device(key).map(|nr| nr.saturating_mul(PAGE));
        for (name, help, value) in [
            (
                "wherry_vm_balloon_inflated_bytes_total",
                "Memory that went into the balloon.",
                pages("inflated_pages"),
            ),
            (
                "wherry_vm_balloon_deflated_bytes_total",
                "Memory that came out of the balloon.",
                pages("deflated_pages"),
            ),
            (
                "wherry_vm_balloon_reported_bytes_total",
                "Memory that the guest reported as free.",
                device("reported_bytes"),
            ),
            (
                "wherry_vm_balloon_discarded_bytes_total",
                "Memory that was given back to the host.",
                device("discarded_bytes"),
            ),
            (
                "wherry_vm_balloon_discard_errors_total",
                "Memory that the host did not take back: failed calls.",
                device("discard_errors"),
            ),
            (
                "wherry_vm_hints_total",
                "Free page hints that were passed on to a migration: ranges.",
                device("hints_received"),
            ),
            (
                "wherry_vm_hinted_bytes_total",
                "Memory in free page hints that were passed on.",
                device("hinted_bytes"),
            ),
            (
                "wherry_vm_stale_hints_total",
                "Free page hints that came too late.",
                device("hints_stale"),
            ),
            (
                "wherry_vm_malformed_hints_total",
                "Free page hints that made no sense.",
                device("hints_malformed"),
            ),
            (
                "wherry_vm_dropped_hints_total",
                "Free page hints that were dropped since their chain took too long.",
                device("hints_dropped"),
            ),
        ] {
            if let Some(value) = value {
                self.counter(name, help, vec![], value);
            }
        }
        let guest = &counters["guest"];
        for (name, help, key) in [
            ("wherry_vm_guest_free_memory_bytes", "As the guest says: not used.", "free_memory"),
            (
                "wherry_vm_guest_available_memory_bytes",
                "As the guest says: available without swapping.",
                "available_memory",
            ),
            ("wherry_vm_guest_total_memory_bytes", "As the guest says: all.", "total_memory"),
            ("wherry_vm_guest_disk_cache_bytes", "As the guest says: caches.", "disk_caches"),
        ] {
            if let Some(bytes) = guest[key].as_u64() {
                self.gauge(name, help, bytes);
            }
        }
        if let Some(ms) = counters["guest_statistics_age_ms"].as_u64() {
            let help = "Seconds since the guest said that.";
            self.seconds("wherry_vm_guest_statistics_age_seconds", help, ms as f64 / 1e3);
        }
    }

    fn migrations(&mut self, info: &Info) {
        let counts = &info.migrations;
        for (outcome, nr) in [
            ("completed", counts.completed),
            ("failed", counts.failed),
            ("cancelled", counts.cancelled),
            ("unknown", counts.unknown),
        ] {
            let help = "Migrations to other hosts that have ended.";
            let outcome = vec![("outcome", outcome.to_owned())];
            self.counter("wherry_vm_migrations_total", help, outcome, nr);
        }
        let help = "What migrations that have ended sent.";
        self.counter("wherry_vm_migration_sent_bytes_total", help, vec![], counts.sent_bytes);
        if let Some(last) = &info.last_migration {
            self.last_migration(last);
        }
    }

    /// Under way, or the one before.
    fn last_migration(&mut self, last: &MigrationStatus) {
        let of = |value: &Option<Value>, path: &str| value.as_ref()?.pointer(path)?.as_u64();
        // A report has it all; of a migration that is under way, or failed, progress has some.
        let either = |report: &str, progress: &str| {
            of(&last.report, report).or_else(|| of(&last.progress, progress))
        };
        if let Some(bytes) = either("/total_bytes", "/bytes") {
            let help = "What the last migration sent so far.";
            self.gauge("wherry_vm_last_migration_sent_bytes", help, bytes);
        }
        if let Some(nr) = either("/hinting/hinted", "/hinting/hinted") {
            let help = "What the last migration skipped for hints, also what was written later.";
            let bytes = nr.saturating_mul(PAGE);
            self.gauge("wherry_vm_last_migration_hinted_bytes", help, bytes);
        }
        if let Some(ms) = of(&last.report, "/total_ms") {
            let help = "How long the last migration took, if it completed.";
            self.seconds("wherry_vm_last_migration_duration_seconds", help, ms as f64 / 1e3);
        }
        if let Some(us) = of(&last.report, "/downtime/total_us") {
            let help = "How long the guest stood still for the last migration, if it completed.";
            self.seconds("wherry_vm_last_migration_downtime_seconds", help, us as f64 / 1e6);
        }
    }

    fn disk(&mut self, disk: &DiskInfo) {
        let labels =
            |operation: &str| vec![("disk", disk.id.clone()), ("operation", operation.to_owned())];
        for (operation, nr) in [
            ("read", disk.reads),
            ("write", disk.writes),
            ("flush", disk.flushes),
            ("discard", disk.discards),
        ] {
            let help = "What disks did. A large request counts as several.";
            self.counter("wherry_vm_disk_requests_total", help, labels(operation), nr);
        }
        for (operation, bytes) in [("read", disk.read_bytes), ("write", disk.written_bytes)] {
            let help = "What disks read and wrote.";
            self.counter("wherry_vm_disk_bytes_total", help, labels(operation), bytes);
        }
        let help = "What disks did not do, each try that found no room included.";
        let id = vec![("disk", disk.id.clone())];
        self.counter("wherry_vm_disk_errors_total", help, id, disk.errors);
    }

    fn net(&mut self, net: &NetInfo) {
        let id = || vec![("net", net.id.clone())];
        let help = "Frames that came for the guest.";
        self.counter("wherry_vm_network_receive_frames_total", help, id(), net.received);
        let help = "Bytes of frames that came for the guest.";
        self.counter("wherry_vm_network_receive_bytes_total", help, id(), net.received_bytes);
        let help = "Frames that the guest sent.";
        self.counter("wherry_vm_network_transmit_frames_total", help, id(), net.sent);
        let help = "Bytes of frames that the guest sent.";
        self.counter("wherry_vm_network_transmit_bytes_total", help, id(), net.sent_bytes);
        let help = "Frames of the guest's that the host's end refused: lost.";
        self.counter("wherry_vm_network_transmit_errors_total", help, id(), net.lost);
    }
}
