//! Disks: what is written survives moves, and nobody writes beside the guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use wherry_tests::{
    BOOT, Env, Frame, Guest, GuestOptions, MigrateError, Proxy, Result, SOON, Scratch, When,
    migrate,
};

fn image(scratch: &Scratch, name: &str, mib: u64) -> Result<PathBuf> {
    let path = scratch.path().join(name);
    File::create(&path)?.set_len(mib << 20)?;
    Ok(path)
}

fn disk(path: &Path) -> Vec<String> {
    vec!["--disk".into(), format!("path={}", path.display())]
}

fn start(env: &Env, image: &Path, work: &str) -> Result<Guest> {
    let append = format!("wherry.work={work}");
    let options =
        GuestOptions { memory: "384MiB".into(), append, args: disk(image), ..Default::default() };
    Guest::run(env, "source", &options)
}

fn state(guest: &Guest) -> Result<String> {
    Ok(guest.info()?["state"].as_str().unwrap_or_default().to_owned())
}

fn failed(result: Result<serde_json::Value>) -> Result<MigrateError> {
    result.expect_err("it cannot succeed").downcast::<MigrateError>()
}

#[test]
fn a_disk_keeps_what_was_written_across_moves() -> Result<()> {
    let scratch = Scratch::new("disks")?;
    let env = scratch.env("CLOUD_6_12")?;
    // Many times its memory, and written to its end: the largest file that the VM may write.
    let path = image(&scratch, "disk.raw", 4096)?;
    let mut guest = start(&env, &path, "disk:24,7")?;
    guest.wait_for("ready", BOOT)?;
    // Nobody else gets it, and that is said before anything is begun.
    let mut second = env.command(&["run", "second", "--kernel"]);
    second.args(&env.kernel).args(["--serial", "none"]).args(disk(&path));
    let refused = second.output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("in use"), "{said}");
    // A receiver without the disk, and with another one: refused by name, and the guest goes on.
    let small = image(&scratch, "small.raw", 4095)?;
    for (name, args, word) in [
        ("none", vec![], "`disk0`"),
        ("small", disk(&small), "8386560 sectors here, and 8388608 at the source"),
    ] {
        let uri = env.unix_uri(name);
        let mut receiver = Guest::receive_with(&env, name, &uri, &args)?;
        let error = failed(migrate(&env, "source", &uri, &[]))?;
        assert_eq!(error.code, 5, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!receiver.wait_exit(SOON)?.success());
        assert_eq!(state(&guest)?, "running");
    }
    for name in ["first", "second", "third"] {
        let uri = env.unix_uri(name);
        let next = Guest::receive_with(&env, name, &uri, &disk(&path))?;
        migrate(&env, &guest.name, &uri, &["--verify"])?;
        assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
        guest = next;
    }
    let written = guest.wait_for("disk", SOON)?;
    assert_eq!((written.num("mib")?, written.num("bad")?), (24 * 16, 0));
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}

#[test]
fn a_guest_whose_disk_a_stranger_took_stays_paused_and_says_so() -> Result<()> {
    let scratch = Scratch::new("stranger")?;
    let env = scratch.env("CLOUD_6_12")?;
    let path = image(&scratch, "disk.raw", 20)?;
    let mut guest = start(&env, &path, "idle")?;
    guest.wait_for("work done", BOOT)?;
    let uri = env.unix_uri("real");
    let mut destination = Guest::receive_with(&env, "destination", &uri, &disk(&path))?;
    // The source has let go of its disk when its state is on the way; the state never arrives.
    let stranger = Arc::new(Mutex::new(None));
    let takes = {
        let (stranger, env, path) = (stranger.clone(), env.clone(), path.clone());
        move || {
            let options = GuestOptions {
                memory: "256MiB".into(),
                args: disk(&path),
                ..GuestOptions::default()
            };
            *stranger.lock().unwrap() = Some(Guest::run(&env, "stranger", &options).unwrap());
        }
    };
    let real = PathBuf::from(uri.trim_start_matches("unix:"));
    let when = When::Instead(Frame::State, 1);
    let proxy = Proxy::start(&scratch.path().join("proxy"), &real, when, takes)?;
    let error = failed(migrate(&env, "source", &proxy.uri(), &[]))?;
    assert_eq!(error.code, 9, "{error}");
    assert!(error.to_string().contains("`disk0`"), "{error}");
    assert!(!destination.wait_exit(SOON)?.success());
    assert_eq!(state(&guest)?, "lock_lost");
    let resume = || env.command(&["resume", "source"]).status();
    assert_eq!(resume()?.code(), Some(9), "two write");
    assert_eq!(state(&guest)?, "lock_lost");
    // The stranger is gone.
    drop(stranger.lock().unwrap().take());
    assert!(resume()?.success());
    assert_eq!(guest.ask("disk 2", SOON)?.num("bad")?, 0);
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}

#[test]
fn a_destination_that_had_the_disk_gives_it_back() -> Result<()> {
    let scratch = Scratch::new("back")?;
    let env = scratch.env("CLOUD_6_12")?;
    let path = image(&scratch, "disk.raw", 20)?;
    let mut guest = start(&env, &path, "idle")?;
    guest.wait_for("work done", BOOT)?;
    let uri = env.unix_uri("real");
    let mut destination = Guest::receive_with(&env, "destination", &uri, &disk(&path))?;
    let real = PathBuf::from(uri.trim_start_matches("unix:"));
    // It has all of the state, and with it the disk; the source never hears of it.
    let when = When::Instead(Frame::Loaded, 1);
    let proxy = Proxy::start(&scratch.path().join("proxy"), &real, when, || ())?;
    let error = failed(migrate(&env, "source", &proxy.uri(), &[]))?;
    assert_eq!(error.code, 5, "{error}");
    assert!(!destination.wait_exit(SOON)?.success());
    assert_eq!(state(&guest)?, "running");
    assert_eq!(guest.ask("disk 2", SOON)?.num("bad")?, 0);
    Ok(())
}
