//! What the process of a VM may do without the filters of its threads, which would end it at the
//! first question: asked in each of its threads.

use wherry_tests::inject::{has_landlock, threads};
use wherry_tests::{Guest, Result, Scratch};

use super::reboots::{moved_with, reboots, start};

/// What Landlock says.
const EACCES: i32 = 13;
/// Without filters.
const BARE: [&str; 2] = ["--seccomp", "off"];

/// No thread opens a file, and there are all of these.
fn is_confined(guest: &Guest, kinds: &[&str]) -> Result<()> {
    let all = threads(guest.pid())?;
    for thread in &all {
        let said = match thread.opens("/etc/passwd") {
            Err(_) if thread.is_gone() => continue,
            said => said?,
        };
        assert_eq!(said, Some(EACCES), "{thread:?} of {}", guest.name);
    }
    for kind in kinds {
        assert!(all.iter().any(|thread| thread.name.starts_with(kind)), "no {kind} in {all:?}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid()))?;
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", guest.pid()))?;
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    // That of what travels with the guest, which is more than its memory.
    assert_ne!(limit("Max file size"), "unlimited");
    Ok(())
}

#[test]
fn no_thread_of_a_vm_opens_a_file_while_its_guest_runs_moves_and_reboots() -> Result<()> {
    let scratch = Scratch::new("confined")?;
    let env = scratch.env("HOSTILE")?;
    if !has_landlock() {
        println!("not run: this kernel has no Landlock");
        return Ok(());
    }
    let bare = BARE.map(String::from);
    let waiting = Guest::receive_with(&env, "waiting", &env.unix_uri("waiting"), &bare)?;
    is_confined(&waiting, &["wherry-vm", "signals", "control", "receive"])?;
    let kinds = ["wherry-vm", "signals", "control", "devices", "vcpu0"];
    let mut guest = start(&env, &BARE)?;
    is_confined(&guest, &kinds)?;
    reboots(&mut guest)?;
    is_confined(&guest, &kinds)?;
    let (mut guest, _) = moved_with(&env, &mut guest, "arrived", &bare)?;
    is_confined(&guest, &kinds)?;
    reboots(&mut guest)?;
    is_confined(&guest, &kinds)
}
