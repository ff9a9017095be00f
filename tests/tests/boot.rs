//! Stock kernels boot, power off and reboot.

use wherry_tests::{BOOT, Guest, GuestOptions, Result, SOON, Scratch};

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

/// The kernel finds the SMBIOS tables and the credentials in them, and so would its systemd; after
/// a reboot and after a move, too.
#[test]
fn a_guest_reads_its_credentials() -> Result<()> {
    let scratch = Scratch::new("smbios")?;
    let env = scratch.env("CLOUD_6_1")?;
    let secret = env.dir.join("secret");
    std::fs::write(&secret, b"\0\xff")?;
    let load = format!("blob={}", secret.display());
    let args = ["--hostname", "web", "--credential", "greeting=hello", "--load-credential", &load];
    let args = args.map(Into::into).to_vec();
    let options = GuestOptions { args, ..GuestOptions::default() };
    let mut guest = Guest::run(&env, "guest", &options)?;
    guest.wait_for("ready", BOOT)?;
    let read = |guest: &mut Guest, file: &str| -> Result<String> {
        let answer = guest.ask(&format!("cat {file}"), SOON)?;
        Ok(answer.0.get("text").cloned().unwrap_or_default())
    };
    let uuid = read(&mut guest, "/sys/class/dmi/id/product_uuid")?;
    assert_eq!((uuid.len(), uuid.as_bytes().get(14)), (36, Some(&b'8')), "{uuid}");
    let same = |guest: &mut Guest| -> Result<()> {
        assert_eq!(read(guest, "/sys/class/dmi/id/sys_vendor")?, "Wherry");
        assert_eq!(read(guest, "/sys/class/dmi/id/product_uuid")?, uuid);
        let strings = read(guest, "/sys/firmware/dmi/entries/11-0/raw")?;
        for string in [
            "io.systemd.credential:system.hostname=web.",
            "io.systemd.credential:greeting=hello.",
            "io.systemd.credential.binary:blob=AP8=.",
        ] {
            assert!(strings.contains(string), "{strings}");
        }
        let cmdline = guest.ask("cat /proc/cmdline", SOON)?;
        assert_eq!(cmdline.0.get("systemd.hostname").map(String::as_str), Some("web"));
        Ok(())
    };
    same(&mut guest)?;
    let shown = guest.info()?.to_string();
    assert!(!shown.contains("hello") && !guest.log().contains("hello"), "{shown}");
    guest.ask("reboot", SOON)?;
    guest.wait_for("ready", BOOT)?;
    same(&mut guest)?;
    let uri = env.unix_uri("there");
    let mut there = Guest::receive(&env, "there", &uri)?;
    let moved = env.command(&["migrate", "guest", &uri]).output()?;
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    assert!(guest.wait_exit(SOON)?.success());
    same(&mut there)?;
    there.ask("poweroff", SOON)?;
    assert!(there.wait_exit(SOON)?.success());
    Ok(())
}
