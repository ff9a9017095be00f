//! What a host's storage does to a VM: it hangs, it is full. Mounts, so the lab only.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use wherry_tests::hosts::output;
use wherry_tests::{
    Guest, GuestOptions, MigrateError, Mount, Result, Scratch, eventually, migrate,
};

const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const WRITTEN: Duration = Duration::from_secs(400);

fn guest(env: &wherry_tests::Env, image: &Path) -> Result<Guest> {
    File::create(image)?.set_len(20 << 20)?;
    let options = GuestOptions {
        memory: "256MiB".into(),
        append: "wherry.work=idle".into(),
        args: vec!["--disk".into(), format!("path={}", image.display())],
        ..GuestOptions::default()
    };
    let mut guest = Guest::run(env, "source", &options)?;
    guest.wait_for("work done", BOOT)?;
    Ok(guest)
}

fn is(guest: &Guest, state: &str) -> Result<()> {
    let there = || {
        let now = guest.info()?["state"].as_str().unwrap_or_default().to_owned();
        Ok(if now == state { Ok(()) } else { Err(format!("it is {now}")) })
    };
    eventually(SOON, there).map(drop)
}

#[test]
fn a_disk_that_hangs_fails_the_migration_and_nothing_else() -> Result<()> {
    let scratch = Scratch::new("hangs")?;
    let env = scratch.env("CLOUD_6_12")?;
    let dir = scratch.path().join("mount");
    let mount = Mount::ext4(&dir, 96 << 20)?;
    let image = dir.join("disk.raw");
    let mut guest = guest(&env, &image)?;
    guest.console()?.send("disk 3")?;
    let frozen = mount.freeze()?;
    std::thread::sleep(Duration::from_secs(3));
    // Its console does not wait for its disk, which answers in the end.
    for nth in 1..=10 {
        let word = format!("echo {nth}");
        guest.console()?.send(&word)?;
        guest.wait_for(&word, SOON)?;
    }
    let uri = env.unix_uri("hangs");
    let disk = ["--disk".to_owned(), format!("path={}", image.display())];
    let mut destination = Guest::receive_with(&env, "destination", &uri, &disk)?;
    let failed = migrate(&env, "source", &uri, &[]).expect_err("its disk hangs");
    let error = failed.downcast::<MigrateError>()?;
    assert_eq!(error.code, 5, "{error}");
    assert!(!destination.wait_exit(SOON)?.success());
    is(&guest, "running")?;
    drop(frozen);
    assert_eq!(guest.wait_for("disk", WRITTEN)?.num("bad")?, 0);
    let uri = env.unix_uri("again");
    let mut destination = Guest::receive_with(&env, "again", &uri, &disk)?;
    migrate(&env, "source", &uri, &["--verify"])?;
    assert_eq!(destination.ask("disk 1", WRITTEN)?.num("bad")?, 0);
    Ok(())
}

#[test]
fn a_full_disk_pauses_the_guest_until_there_is_room() -> Result<()> {
    let scratch = Scratch::new("full")?;
    let env = scratch.env("CLOUD_6_12")?;
    let dir = scratch.path().join("mount");
    let _mount = Mount::new(&dir, &["-t", "tmpfs", "-o", "size=8m", "tmpfs"])?;
    let mut guest = guest(&env, &dir.join("disk.raw"))?;
    guest.console()?.send("disk 2")?;
    is(&guest, "paused")?;
    assert!(guest.log().contains("no room on this host"), "{}", guest.log());
    output(Command::new("mount").args(["-o", "remount,size=64m"]).arg(&dir))?;
    assert!(env.command(&["resume", "source"]).status()?.success());
    assert_eq!(guest.wait_for("disk", WRITTEN)?.num("bad")?, 0);
    is(&guest, "running")
}
