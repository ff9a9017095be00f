//! Two clients within microseconds: `pause` beside `migrate`, and `resume` as soon as the
//! switchover has begun.
//!
//! Once a machine's state is on its way nothing may start it or change it here: the destination
//! would run an older guest than the one that went on at the source. `WHERRY_SOAK` asks for more
//! attempts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use serde_json::{Value, json};
use wherry_tests::{Env, Frame, Guest, Proxy, Result, Scratch, When};

use super::{SOON, start};

/// One request over a connection of its own, which is made before.
struct Client(UnixStream);

impl Client {
    fn new(env: &Env, name: &str) -> Result<Self> {
        Ok(Self(UnixStream::connect(env.dir.join(format!("{name}.sock")))?))
    }

    /// The final answer: `ok` or `error`.
    fn ask(mut self, request: &Value) -> Result<Value> {
        self.0.write_all(format!("{request}\n").as_bytes())?;
        let mut reader = BufReader::new(self.0);
        loop {
            let mut line = String::new();
            anyhow::ensure!(
                reader.read_line(&mut line)? > 0,
                "closed without an answer to {request}"
            );
            let reply: Value = serde_json::from_str(&line)?;
            if reply.get("ok").is_some() || reply.get("error").is_some() {
                return Ok(reply);
            }
        }
    }
}

fn ask(env: &Env, name: &str, request: &Value) -> Result<Value> {
    Client::new(env, name)?.ask(request)
}

/// What the VM says while its state is on its way.
struct Seen {
    state: Value,
    resumed: Value,
    forced: Value,
    paused: Value,
    stopped: Value,
}

fn look(env: &Env, name: &str) -> Result<Seen> {
    Ok(Seen {
        state: ask(env, name, &json!({"request": "info"}))?["ok"]["state"].clone(),
        resumed: ask(env, name, &json!({"request": "resume"}))?,
        forced: ask(env, name, &json!({"request": "resume", "force": true}))?,
        paused: ask(env, name, &json!({"request": "pause"}))?,
        stopped: ask(env, name, &json!({"request": "stop"}))?,
    })
}

/// One attempt; the migration is cut after its state was sent, so the guest stays. Whether the
/// pause came first, and what `stop` was answered.
fn attempt(env: &Env, name: &str, offset: Duration, pause_first: bool) -> Result<(bool, Value)> {
    let real = env.dir.join("there.migrate");
    let _ = std::fs::remove_file(&real);
    let mut destination = Guest::receive(env, "there", &format!("unix:{}", real.display()))?;
    let (tell, seen) = channel();
    let (inside, asked) = (env.clone(), name.to_owned());
    let path = env.dir.join("proxy");
    let proxy = Proxy::start(&path, &real, When::Instead(Frame::State, 1), move || {
        let _ = tell.send(look(&inside, &asked));
    })?;
    let migration = json!({
        "request": "migrate", "uri": proxy.uri(), "hints": "off", "max_rounds": 1,
    });
    let (pausing, migrating) = (Client::new(env, name)?, Client::new(env, name)?);
    let together = Arc::new(Barrier::new(2));
    let wait = move |mine: bool| {
        if mine {
            std::thread::sleep(offset);
        }
    };
    let (paused, migrated) = std::thread::scope(|scope| {
        let paused = scope.spawn(|| {
            together.wait();
            wait(!pause_first);
            pausing.ask(&json!({"request": "pause"}))
        });
        let migrated = scope.spawn(|| {
            together.wait();
            wait(pause_first);
            migrating.ask(&migration)
        });
        (paused.join().expect("pausing"), migrated.join().expect("migrating"))
    });
    let (paused, migrated) = (paused?.get("ok").is_some(), migrated?);
    assert!(migrated.get("error").is_some(), "{migrated}");
    let seen = seen.recv_timeout(SOON)??;
    assert_eq!(seen.state, "migrating", "the state was overwritten while the migration runs");
    for answer in [&seen.resumed, &seen.forced, &seen.paused] {
        assert!(
            answer.get("error").is_some(),
            "answered ok while the state is on its way: {answer}"
        );
    }
    drop(proxy);
    assert!(!destination.wait_exit(SOON)?.success(), "a receiver without a guest must not succeed");
    // As it was before: paused if the pause was answered ok, and running otherwise.
    let state = ask(env, name, &json!({"request": "info"}))?["ok"]["state"].clone();
    assert_eq!(state, if paused { "paused" } else { "running" });
    let resumed = ask(env, name, &json!({"request": "resume"}))?;
    assert!(resumed.get("ok").is_some(), "{resumed}");
    Ok((paused, seen.stopped))
}

#[test]
fn pause_beside_migrate_then_resume_never_two() -> Result<()> {
    let scratch = Scratch::new("owner")?;
    let env = scratch.env("HOSTILE")?;
    let mut guest = start(&env, "owned", "honest", 1)?;
    let attempts = if std::env::var_os("WHERRY_SOAK").is_some() { 2000 } else { 50 };
    let (mut paused, mut stops) = (0, Vec::new());
    for nr in 0..attempts {
        let offset = Duration::from_micros(nr / 2 % 25 * 20);
        let (first, stopped) = attempt(&env, "owned", offset, nr % 2 == 0)?;
        paused += u32::from(first);
        stops.push(stopped);
    }
    for stopped in stops {
        let text = stopped["error"]["message"].as_str().unwrap_or_default();
        assert!(text.contains("is being handed over"), "{stopped}");
    }
    println!("{attempts} attempts, the pause came first in {paused}");
    let before = guest.ask("status", SOON)?.num("steps")?;
    assert!(guest.ask("status", SOON)?.num("steps")? > before, "the guest stands still");
    Ok(())
}
