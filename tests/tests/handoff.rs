//! The hand-off between real VMMs: whatever dies when, the guest runs in one place or, said aloud,
//! in none.

use std::path::PathBuf;

use wherry_tests::{
    BOOT, Env, Frame, Guest, GuestOptions, MigrateError, Proxy, Result, SOON, Scratch, When,
    migrate,
};

struct Broken {
    env: Env,
    _scratch: Scratch,
    source: Guest,
    destination: Guest,
    /// Exit code of `wherry migrate`.
    code: i32,
}

/// Migrates through a proxy that cuts the connection at a certain frame, killing the receiver first
/// if asked to.
fn broken(when: When, kill_receiver: bool) -> Result<Broken> {
    let scratch = Scratch::new("handoff")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut source = Guest::run(
        &env,
        "source",
        &GuestOptions { memory: "512MiB".into(), ..Default::default() },
    )?;
    source.wait_for("work done", BOOT)?;
    let uri = env.unix_uri("real");
    let destination = Guest::receive(&env, "destination", &uri)?;
    let real = PathBuf::from(uri.trim_start_matches("unix:"));
    let pid = destination.pid().to_string();
    let proxy = Proxy::start(&scratch.path().join("proxy"), &real, when, move || {
        if kill_receiver {
            let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
        }
    })?;
    let result = migrate(&env, "source", &proxy.uri(), &["--hints", "on"]);
    let code = match result {
        Ok(_) => 0,
        Err(e) => e.downcast::<MigrateError>()?.code,
    };
    Ok(Broken { env, _scratch: scratch, source, destination, code })
}

fn state(guest: &Guest) -> String {
    guest
        .info()
        .map_or_else(|_| "gone".into(), |i| i["state"].as_str().unwrap_or_default().to_owned())
}

/// The source goes on, and the next attempt works.
fn source_goes_on(mut b: Broken) -> Result<()> {
    assert_eq!(b.code, 5);
    assert!(!b.destination.wait_exit(SOON)?.success());
    assert_eq!(state(&b.source), "running");
    assert_eq!(b.source.ask("verify", SOON)?.num("bad")?, 0);
    let uri = b.env.unix_uri("second");
    let mut second = Guest::receive(&b.env, "second", &uri)?;
    migrate(&b.env, "source", &uri, &[])?;
    assert_eq!(second.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}

#[test]
fn receiver_killed_in_round_one() -> Result<()> {
    source_goes_on(broken(When::After(Frame::Pages, 5), true)?)
}

#[test]
fn receiver_killed_while_the_guest_is_paused() -> Result<()> {
    source_goes_on(broken(When::Instead(Frame::State, 1), true)?)
}

#[test]
fn hand_off_lost_neither_runs_and_both_say_so() -> Result<()> {
    let mut b = broken(When::Instead(Frame::HandOff, 1), false)?;
    assert_eq!(b.code, 6);
    assert_eq!(state(&b.source), "migration_unknown");
    assert!(!b.destination.wait_exit(SOON)?.success(), "the destination ran without a hand-off");
    assert!(!b.env.command(&["resume", "source"]).status()?.success(), "resumed without --force");
    assert!(b.env.command(&["resume", "source", "--force"]).status()?.success());
    assert_eq!(b.source.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}

#[test]
fn running_lost_the_destination_runs_and_the_source_does_not() -> Result<()> {
    let mut b = broken(When::Instead(Frame::Running, 1), false)?;
    assert_eq!(b.code, 6);
    assert_eq!(state(&b.source), "migration_unknown");
    assert_eq!(state(&b.destination), "running");
    assert_eq!(b.destination.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}
