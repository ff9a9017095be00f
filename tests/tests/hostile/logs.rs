//! Guests, clients and strangers that repeat themselves: what a VM's process says stays short.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use wherry_tests::{Guest, Result, Scratch, eventually};

use super::SOON;

/// How often each of them comes.
const MANY: u64 = 200;
/// Most bytes that such a process says: it has no more than 20 lines a minute of one kind, each of
/// some 200 bytes.
const MOST: usize = 32 << 10;

/// What the process said, all of it lines of JSON, after it has ended.
fn said(guest: &mut Guest) -> Result<Vec<Value>> {
    let killed = guest.env().command(&["--quiet", "kill", &guest.name]).status()?;
    assert!(killed.success(), "{}", guest.log());
    guest.wait_exit(SOON)?;
    let text = guest.log();
    assert!(text.len() < MOST, "{} bytes: {text}", text.len());
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {text}"));
    let lines: Vec<Value> = text.lines().map(line).collect();
    assert!(lines.iter().all(|line| line["vm"] == guest.name.as_str()), "{text}");
    Ok(lines)
}

/// How many lines there are with this text, and how many were left out.
fn counted(lines: &[Value], text: &str) -> (u64, u64) {
    let of = |line: &&Value| line["message"].as_str().is_some_and(|said| said.contains(text));
    let (left, there): (Vec<_>, Vec<_>) =
        lines.iter().filter(of).partition(|line| line["left_out"].is_u64());
    (there.len() as u64, left.iter().filter_map(|line| line["left_out"].as_u64()).sum())
}

#[test]
fn a_guest_that_floods_its_console_and_its_devices_makes_no_lines_and_its_clients_few() -> Result<()>
{
    const CONSOLE: u64 = 4 << 10;
    let scratch = Scratch::new("flood")?;
    let env = scratch.env("HOSTILE")?;
    let console = scratch.path().join("console");
    let mut command = env.command(&["run", "flood", "--log-format", "json", "--memory", "128MiB"]);
    command.args(["--cmdline", "hostile=flood seed=1"]).arg("--kernel").args(&env.kernel);
    command.args(["--credential", "passwd.plaintext-password.root=sesame-42"]);
    command.arg(format!("--serial=file:{},max={CONSOLE}B", console.display()));
    let mut guest = Guest::spawn(&env, "flood", command)?;
    let long = || std::fs::metadata(&console).map_or(0, |file| file.len());
    eventually(SOON * 2, || {
        Ok(if long() > CONSOLE { Ok(()) } else { Err(format!("{} bytes", long())) })
    })?;
    // It goes on, and so do clients, in the middle of whatever it does.
    let mut client = UnixStream::connect(scratch.path().join("flood.sock"))?;
    let mut answers = BufReader::new(client.try_clone()?).lines();
    for _ in 0..MANY {
        for request in ["pause", "resume"] {
            writeln!(client, r#"{{"request":"{request}"}}"#)?;
            let answer = answers.next().expect("no answer")?;
            assert!(answer.starts_with(r#"{"ok""#), "{answer}");
        }
    }
    // With a note at its end.
    assert!(long() < CONSOLE + 128, "{} bytes", long());
    let lines = said(&mut guest)?;
    assert!(!guest.log().contains("sesame"), "{}", guest.log());
    let (asked, left) = counted(&lines, "a client asks for");
    // And for its end.
    assert_eq!(asked + left, 2 * MANY + 1, "{lines:#?}");
    assert!(asked <= MANY / 2, "{lines:#?}");
    let others = lines.len() as u64 - asked;
    // That it runs, that it has ended, and for each minute what was left out.
    assert!((2..10).contains(&others), "{lines:#?}");
    Ok(())
}

#[test]
fn strangers_that_come_again_and_again_are_counted() -> Result<()> {
    let scratch = Scratch::new("crowd")?;
    let env = scratch.env("HOSTILE")?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let uri = format!("tcp:127.0.0.1:{port}");
    let json = ["--log-format".into(), "json".into()];
    let mut receiver = Guest::receive_with(&env, "crowd", &uri, &json)?;
    for _ in 0..MANY {
        let mut stranger = TcpStream::connect(("127.0.0.1", port))?;
        // It may hang up before it has read all of it.
        let _ = stranger.write_all(b"GET /\x1b[2J HTTP/1.1\r\n\r\n");
        let _ = std::io::copy(&mut stranger, &mut std::io::sink());
    }
    let lines = said(&mut receiver)?;
    let (named, left) = counted(&lines, "turned away 127.0.0.1:");
    assert!((10..=MANY / 2).contains(&named), "{lines:#?}");
    // The last one may still have been at the door.
    assert!((MANY - 1..=MANY).contains(&(named + left)), "{lines:#?}");
    Ok(())
}
