//! A guest that reboots where it has moved to, and again where it moves on from there.

use anyhow::Context;
use wherry_tests::{Env, Guest, GuestOptions, Result, Scratch};

use super::{SOON, migrate_in_time};

pub(super) fn moved(
    env: &Env,
    guest: &mut Guest,
    name: &str,
) -> Result<(Guest, serde_json::Value)> {
    moved_with(env, guest, name, &[])
}

/// The same with more arguments of the receiver's.
pub(super) fn moved_with(
    env: &Env,
    guest: &mut Guest,
    name: &str,
    args: &[String],
) -> Result<(Guest, serde_json::Value)> {
    let uri = env.unix_uri(name);
    let there = Guest::receive_with(env, name, &uri, args)?;
    let report = migrate_in_time(env, &guest.name, &uri, &["--max-rounds", "2"])?;
    assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
    Ok((there, report))
}

pub(super) fn reboots(guest: &mut Guest) -> Result<()> {
    guest.console()?.send("reboot")?;
    guest.wait_for("reboot", SOON)?;
    let ready = guest.wait_for("ready", SOON)?;
    // Its command line came with it.
    assert_eq!((ready.num("seed")?, guest.info()?["state"].as_str()), (7, Some("running")));
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}

pub(super) fn start(env: &Env, args: &[&str]) -> Result<Guest> {
    let options = GuestOptions {
        memory: "128MiB".into(),
        append: "hostile=honest seed=7".into(),
        args: args.iter().map(ToString::to_string).collect(),
        ..GuestOptions::default()
    };
    let mut guest = Guest::run(env, "first", &options)?;
    guest.wait_for("ready", SOON)?;
    Ok(guest)
}

#[test]
fn a_guest_reboots_where_it_has_moved_to_with_what_came_with_it() -> Result<()> {
    let scratch = Scratch::new("reboots")?;
    let env = Env { here: false, ..scratch.env("HOSTILE")? };
    let kernel = env.kernel.as_ref().context("no kernel")?;
    let bytes = std::fs::metadata(kernel)?.len();
    let mut guest = start(&env, &[])?;
    for name in ["second", "third"] {
        let (there, report) = moved(&env, &mut guest, name)?;
        let sent = report["boot_file_bytes"].as_u64().context("no boot_file_bytes")?;
        assert!(sent >= bytes && report["reboot_ends"].is_null(), "{report:#}");
        guest = there;
        let came = format!("{} of another host, came with the guest", kernel.display());
        assert_eq!(guest.info()?["kernel"], came.as_str());
        reboots(&mut guest)?;
    }
    Ok(())
}

#[test]
fn a_kernel_that_is_there_is_not_sent_and_one_that_was_removed_is_still_open() -> Result<()> {
    let scratch = Scratch::new("reboot-here")?;
    let env = scratch.env("HOSTILE")?;
    let mut guest = start(&env, &[])?;
    let (mut there, report) = moved(&env, &mut guest, "second")?;
    assert_eq!(report["boot_file_bytes"], 0, "{report:#}");
    let kernel = env.kernel.as_ref().context("no kernel")?;
    assert_eq!(there.info()?["kernel"], kernel.display().to_string().as_str());
    reboots(&mut there)?;
    std::fs::remove_file(kernel)?;
    // Another is put in its place, which is for VMs that start after that.
    std::fs::write(kernel, "no kernel")?;
    reboots(&mut there)?;
    let without = Env { here: false, ..env.clone() };
    let (mut last, report) = moved(&without, &mut there, "third")?;
    assert!(report["reboot_ends"].is_null(), "{report:#}");
    reboots(&mut last)
}

#[test]
fn a_guest_that_is_to_end_at_a_reboot_does_so_where_it_has_moved_to() -> Result<()> {
    let scratch = Scratch::new("reboot-ends")?;
    let env = Env { here: false, ..scratch.env("HOSTILE")? };
    let mut guest = start(&env, &["--no-reboot"])?;
    let (mut there, report) = moved(&env, &mut guest, "second")?;
    assert_eq!(report["boot_file_bytes"], 0, "{report:#}");
    there.console()?.send("reboot")?;
    assert!(there.wait_exit(SOON)?.success(), "{}", there.log());
    Ok(())
}
