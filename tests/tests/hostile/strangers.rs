//! A receiver's TCP port is found by others before its source comes: port checks, browsers, noise.
//! Each is turned away, and the source is taken.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use serde_json::Value;
use wherry_tests::{Env, Guest, Result, Scratch, eventually};

use super::{SOON, THROTTLED, check_report, intact, migrate_in_time, start};

/// How often each of them comes. No more in all than a receiver names within a minute.
const VISITS: usize = 3;

/// What strangers say; nothing, if they only look whether somebody listens.
const WORDS: [&[u8]; 3] = [b"", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", &[0xff; 3000]];

fn visit(port: u16, words: &[u8]) -> Result<()> {
    let mut stranger = TcpStream::connect(("127.0.0.1", port))?;
    // It may hang up before it has read all of it.
    let _ = stranger.write_all(words);
    let _ = stranger.shutdown(Shutdown::Write);
    let _ = stranger.read_to_end(&mut Vec::new());
    Ok(())
}

/// The states that `wherry ls` tells, by name.
fn states(env: &Env) -> Result<Vec<(Value, Value)>> {
    let listed = env.query(&["ls"])?;
    let vms = listed["vms"].as_array().into_iter().flatten();
    Ok(vms.map(|vm| (vm["name"].clone(), vm["state"].clone())).collect())
}

#[test]
fn strangers_at_a_receivers_port_are_turned_away_and_the_source_is_taken() -> Result<()> {
    let scratch = Scratch::new("strangers")?;
    let env = scratch.env("HOSTILE")?;
    let mut guest = start(&env, "wanted", "honest", 1)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let uri = format!("tcp:127.0.0.1:{port}");
    let mut destination = Guest::receive(&env, "arrived", &uri)?;
    for _ in 0..VISITS {
        for words in WORDS {
            visit(port, words)?;
            assert_eq!(
                states(&env)?,
                [("arrived".into(), "receiving".into()), ("wanted".into(), "running".into())]
            );
        }
    }
    let all = VISITS * WORDS.len();
    eventually(SOON, || {
        let log = destination.log();
        let named = log.matches("wherry: turned away 127.0.0.1:").count();
        Ok(if named == all { Ok(()) } else { Err(format!("{named} of {all}:\n{log}")) })
    })?;
    // One who says nothing and stays does not hold the door either.
    let silent = TcpStream::connect(("127.0.0.1", port))?;
    let report = migrate_in_time(&env, "wanted", &uri, &THROTTLED)?;
    drop(silent);
    check_report(&report);
    assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
    intact(&mut destination)?;
    assert_eq!(states(&env)?, [("arrived".into(), "running".into())]);
    Ok(())
}
