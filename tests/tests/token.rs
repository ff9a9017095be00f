//! A token in place of certificates: a guest moves with it, once, and nobody else sees it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use anyhow::Context;
use wherry_tests::{BOOT, Env, Guest, GuestOptions, MigrateError, Result, SOON, Scratch, migrate};

/// A receiver, and its token.
fn receive(env: &Env, name: &str, port: u16) -> Result<(Guest, String, String)> {
    let uri = format!("tls:127.0.0.1:{port}");
    let guest = Guest::receive_with(env, name, &uri, &["--token".into()])?;
    let log = guest.log();
    let token = log.lines().find(|line| line.starts_with("wherry1:")).context("no token")?;
    Ok((guest, uri, token.to_owned()))
}

/// Puts a token where only we can read it.
fn keep(env: &Env, token: &str) -> Result<String> {
    let path = env.dir.join("token");
    fs::write(&path, token)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(format!("@{}", path.display()))
}

fn refused(env: &Env, uri: &str, from: &str) -> Result<String> {
    let error = migrate(env, "start", uri, &["--token", from]).expect_err("it migrated");
    let error = error.downcast::<MigrateError>()?;
    assert_eq!(error.code, 5, "{error}");
    Ok(error.to_string())
}

#[test]
fn a_guest_moves_with_a_token_once_and_the_token_is_nowhere_else() -> Result<()> {
    let scratch = Scratch::new("token")?;
    let env = scratch.env("CLOUD_6_1")?;
    let options = GuestOptions {
        memory: "256MiB".into(),
        append: "wherry.check=64 wherry.work=fill:40,free:40".into(),
        ..GuestOptions::default()
    };
    let mut guest = Guest::run(&env, "start", &options)?;
    guest.wait_for("work done", BOOT)?;

    // Of a receiver that is gone, where another one listens.
    let (gone, _, old) = receive(&env, "gone", 4471)?;
    drop(gone);
    let (mut there, uri, token) = receive(&env, "there", 4471)?;
    let said = refused(&env, &uri, &keep(&env, &old)?)?;
    assert!(said.contains("not of this receiver"), "{said}");
    assert!(
        there.log().contains("the source has the token of another receiver"),
        "{}",
        there.log()
    );
    assert_eq!(guest.info()?["state"], "running");

    // The right one, from standard input.
    let words = ["migrate", "start", &uri, "--token", "-", "--streams", "3", "--verify", "--json"];
    let mut command = env.command(&words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("no input")?.write_all(format!("{token}\n").as_bytes())?;
    let during = guest.info()?;
    let done = child.wait_with_output()?;
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(done.status.success(), "{said}\n{}", there.last_words());
    assert!(guest.wait_exit(SOON)?.success());
    assert_eq!(there.ask("verify", SOON)?.num("bad")?, 0);

    // It is used: nobody is there any more, and another receiver does not know it.
    let mut next = Guest::run(&env, "start", &options)?;
    next.wait_for("work done", BOOT)?;
    let from = keep(&env, &token)?;
    let again = refused(&env, &uri, &from)?;
    assert!(again.contains("a token is good once"), "{again}");
    let (other, uri, _) = receive(&env, "other", 4472)?;
    let twice = refused(&env, &uri, &from)?;
    assert!(twice.contains("not of this receiver"), "{twice}");
    assert_eq!(next.info()?["state"], "running");

    // Printed once, where it was made, and nowhere else.
    // Of the source's private key.
    let secret = &token[52..92];
    let log = there.log();
    assert_eq!(log.matches(secret).count(), 1, "{log}");
    let infos = [&during, &there.info()?, &next.info()?].map(ToString::to_string);
    let logs = [guest.log(), next.log(), other.log()];
    for text in infos.iter().chain(&logs).chain(&[again, twice, said.into()]) {
        assert!(!text.contains(secret), "{text}");
    }
    Ok(())
}
