//! A network of passt's, of a VM whose system calls are filtered.

use std::process::Command;

use anyhow::{Context, ensure};
use wherry_tests::needs::PASST;
use wherry_tests::{Guest, GuestOptions, Result, Scratch, eventually};

use super::SOON;

/// What it says where this host's network, or a container, is not for it.
const UNUSABLE: [&str; 2] = ["External interface not usable", "create user namespace"];

/// Whether it is there, and a way out of this host, which it looks for; and whether the kernel says
/// whose child it is.
fn has_passt() -> std::result::Result<(), &'static str> {
    let version = Command::new("passt").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        return Err("no passt that says its version");
    }
    if std::fs::metadata("/proc/thread-self/children").is_err() {
        return Err("a kernel that does not say whose children processes are");
    }
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let default = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
    if routes.lines().any(default) { Ok(()) } else { Err("no default route") }
}

#[test]
fn a_network_of_passts_comes_back_and_ends_with_its_vm() -> Result<()> {
    if PASST.or_not_run(has_passt()).is_none() {
        return Ok(());
    }
    let scratch = Scratch::new("passt")?;
    let env = scratch.env("HOSTILE")?;
    let options = GuestOptions {
        memory: "128MiB".into(),
        append: "hostile=honest seed=1".into(),
        args: ["--net", "user"].map(Into::into).into(),
        ..GuestOptions::default()
    };
    let mut guest = match Guest::run(&env, "web", &options) {
        Err(e) if UNUSABLE.iter().any(|why| format!("{e:#}").contains(why)) => {
            PASST.not_run(e);
            return Ok(());
        }
        started => started?,
    };
    guest.wait_for("ready", SOON)?;
    let children = |of: u32| -> Result<Vec<u32>> {
        let all = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children"))?;
        Ok(all.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    };
    let passt = |of: u32| -> Result<Option<u32>> {
        let launchers = children(of)?;
        let started: Result<Vec<_>> = launchers.into_iter().map(children).collect();
        Ok(started?.into_iter().flatten().next())
    };
    let first = passt(guest.pid())?.context("no passt")?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(first)?).context("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let (second, _) = eventually(SOON, || {
        let found = passt(guest.pid())?.filter(|pid| *pid != first);
        Ok(found.ok_or_else(|| guest.log()))
    })?;
    eventually(SOON, || {
        let log = guest.log();
        Ok(if log.contains("is up again") { Ok(()) } else { Err(log) })
    })?;
    for word in ["pause", "resume"] {
        env.query(&[word, "web"])?;
    }
    env.query(&["kill", "web"])?;
    let ended = guest.wait_exit(SOON)?;
    ensure!(ended.code() == Some(10), "{ended}: {}", guest.log());
    // One that has ended, and is not looked after yet, has no arguments.
    eventually(SOON, || {
        let words = std::fs::read_to_string(format!("/proc/{second}/cmdline")).unwrap_or_default();
        Ok(if words.is_empty() { Ok(()) } else { Err(words) })
    })?;
    Ok(())
}
