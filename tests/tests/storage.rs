//! What a host's storage does to a VM: it hangs, it is full, its memory has large pages. Mounts, so
//! the lab only.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use wherry_tests::hosts::output;
use wherry_tests::{
    BOOT, Guest, GuestOptions, MigrateError, Mount, Result, SOON, Scratch, eventually, migrate,
};

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
    assert_eq!(guest.wait_for("disk", SOON)?.num("bad")?, 0);
    let uri = env.unix_uri("again");
    let mut destination = Guest::receive_with(&env, "again", &uri, &disk)?;
    migrate(&env, "source", &uri, &["--verify"])?;
    assert_eq!(destination.ask("disk 1", SOON)?.num("bad")?, 0);
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
    assert_eq!(guest.wait_for("disk", SOON)?.num("bad")?, 0);
    is(&guest, "running")
}

/// Memory of this host's in large pages of a tmpfs, in KiB.
fn in_large_pages() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("ShmemHugePages:"));
    let line = line.context("this host's kernel has none")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_guest_in_large_pages_moves_to_such_and_to_small_ones() -> Result<()> {
    let scratch = Scratch::new("large")?;
    let env = scratch.env("CLOUD_6_1")?;
    let dir = scratch.path().join("tmpfs");
    let _mount = Mount::new(&dir, &["-t", "tmpfs", "-o", "huge=always,size=0", "tmpfs"])?;
    let backing = ["--memory-backing".to_owned(), dir.display().to_string()];
    let options = GuestOptions {
        memory: "512MiB".into(),
        append: "wherry.check=16 wherry.work=tmpfs:200,free:200".into(),
        args: backing.to_vec(),
        ..GuestOptions::default()
    };
    let mut guest = Guest::run(&env, "small", &options)?;
    guest.wait_for("work done", BOOT)?;
    assert!(in_large_pages()? >= 32 << 10, "{} KiB", in_large_pages()?);
    // What the guest gives back is a part of a large page.
    guest.inflate_to(64, SOON)?;
    for (from, to, args) in [("small", "large", &backing[..]), ("large", "last", &[])] {
        let uri = env.unix_uri(to);
        let mut destination = Guest::receive_with(&env, to, &uri, args)?;
        migrate(&env, from, &uri, &["--hints", "on", "--verify"])?;
        assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
        assert_eq!(destination.ask("verify", SOON)?.num("bad")?, 0);
        guest = destination;
        assert_eq!(in_large_pages()? > 0, !args.is_empty(), "{to}: {} KiB", in_large_pages()?);
    }
    Ok(())
}
