//! Stock kernels boot, power off and reboot.

use std::time::Duration;

use wherry_tests::{Guest, GuestOptions, Result, Scratch};

const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(30);

fn boots(kernel: &str, cpus: u32, memory: &str, total_kb: std::ops::Range<u64>) -> Result<()> {
    let scratch = Scratch::new("boot")?;
    let env = scratch.env(kernel)?;
    let options = GuestOptions {
        cpus,
        memory: memory.into(),
        args: vec!["--no-reboot".into()],
        append: "wherry.work=idle".into(),
    };
    let mut guest = Guest::run(&env, "guest", &options)?;
    let ready = guest.wait_for("ready", BOOT)?;
    assert_eq!(ready.num("cpus")?, u64::from(cpus));
    let total = ready.num("memtotal_kb")?;
    assert!(total_kb.contains(&total), "{total} KiB of {memory}");
    let info = guest.info()?;
    let features = info["balloon"]["features"].to_string();
    for f in ["free_page_hint", "page_reporting", "stats", "deflate_on_oom"] {
        assert!(features.contains(f), "the driver did not take {f}: {features}");
    }
    // The host's random numbers are the guest's first choice.
    let current = guest.ask("cat /sys/class/misc/hw_random/rng_current", SOON)?;
    let current = current.0.get("text").cloned().unwrap_or_default();
    assert!(current.starts_with("virtio_rng"), "{current}");
    // The power button, through ACPI and the guest's input layer.
    let status = env.command(&["stop", "guest", "--timeout", "60s"]).output()?.status;
    assert!(status.success(), "stop: {status}; {}", guest.log());
    assert!(guest.wait_exit(SOON)?.success());
    Ok(())
}

#[test]
fn cloud_6_1_one_cpu_1_gib() -> Result<()> {
    boots("CLOUD_6_1", 1, "1GiB", 900_000..1_048_576)
}

#[test]
fn cloud_6_1_two_cpus_5_gib() -> Result<()> {
    // Memory on both sides of the 32-bit hole.
    boots("CLOUD_6_1", 2, "5GiB", 4_900_000..5_242_880)
}

#[test]
fn generic_6_1_two_cpus() -> Result<()> {
    boots("GENERIC_6_1", 2, "1GiB", 900_000..1_048_576)
}

#[test]
fn cloud_6_12_two_cpus() -> Result<()> {
    boots("CLOUD_6_12", 2, "1GiB", 900_000..1_048_576)
}

#[test]
fn generic_6_12_one_cpu() -> Result<()> {
    boots("GENERIC_6_12", 1, "1GiB", 900_000..1_048_576)
}

#[test]
fn a_reboot_starts_the_guest_again() -> Result<()> {
    let scratch = Scratch::new("reboot")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest = Guest::run(&env, "guest", &GuestOptions::default())?;
    guest.wait_for("ready", BOOT)?;
    guest.ask("reboot", SOON)?;
    guest.wait_for("ready", BOOT)?;
    guest.ask("poweroff", SOON)?;
    assert!(guest.wait_exit(SOON)?.success());
    Ok(())
}
