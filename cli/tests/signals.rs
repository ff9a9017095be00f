//! What a process that becomes another keeps: ignored signals, the terminal, the exit code.
//!
//! Signals that were ignored when the command started stay ignored: `nohup` sets SIGHUP so, and a
//! shell without job control sets SIGINT and SIGQUIT so for what it starts with `&`.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use common::receiver_place;
use wherry_tests::terminal::{self, COOKED, modes};
use wherry_vmm::control::{Client, Info, Request, RuntimeDir};

/// Nothing here takes a second; only a hang takes longer than this.
const HANG: Duration = Duration::from_secs(30);

/// Starts `wherry` from a shell that ignores `ignored`.
fn wherry(dir: &Path, ignored: &str, args: &[&str]) -> Child {
    Command::new("sh")
        .args([
            "-c",
            &format!("trap '' {ignored}; exec \"$0\" \"$@\""),
            env!("CARGO_BIN_EXE_wherry"),
        ])
        .args(args)
        .env("WHERRY_RUNTIME_DIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn send(child: &Child, signal: i32) {
    // SAFETY: the child has not been waited for, so its id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// How it has ended, and standard error.
fn end(mut child: Child) -> (ExitStatus, String) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > HANG {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap(), text)
}

/// A VM whose migration goes on until it is cancelled. Tells of each request.
fn slow_vm(dir: &RuntimeDir) -> Receiver<String> {
    std::fs::create_dir(dir.path()).unwrap();
    let listener = UnixListener::bind(dir.socket("web")).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut migration = None;
        for stream in listener.incoming() {
            answer(stream.unwrap(), &mut migration, &tell);
        }
    });
    told
}

fn answer(mut stream: UnixStream, migration: &mut Option<UnixStream>, tell: &Sender<String>) {
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
    if line.contains("\"migrate_cancel\"") {
        stream.write_all(b"{\"ok\":{}}\n").unwrap();
        let mut migration = migration.take().unwrap();
        migration
            .write_all(b"{\"error\":{\"code\":\"cancelled\",\"message\":\"cancelled\"}}\n")
            .unwrap();
    } else {
        *migration = Some(stream);
    }
    let _ = tell.send(line);
}

#[test]
fn a_migration_in_the_background_is_not_cancelled_by_signals_that_were_ignored() {
    let temp = tempfile::tempdir().unwrap();
    let dir = RuntimeDir::at(temp.path().join("run"));
    let told = slow_vm(&dir);
    let child = wherry(dir.path(), "HUP INT QUIT", &["migrate", "web", "tcp:127.0.0.1:1"]);
    assert!(told.recv_timeout(HANG).unwrap().contains("\"migrate\""));
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        send(&child, signal);
    }
    // Had one of the three counted, this would be the second, which leaves without an answer.
    send(&child, libc::SIGTERM);
    assert!(told.recv_timeout(HANG).unwrap().contains("\"migrate_cancel\""));
    let (status, text) = end(child);
    assert_eq!((status.code(), text.matches("cancelling").count()), (Some(5), 1), "{text}");
}

#[test]
fn a_receiver_outlives_the_terminal_that_it_was_started_in_with_nohup() {
    let Some((temp, dir)) = receiver_place() else { return };
    let uri = format!("unix:{}", temp.path().join("move.sock").display());
    let child = wherry(dir.path(), "HUP INT", &["receive", "web", &uri, "--serial", "none"]);
    let start = Instant::now();
    while Client::connect(&dir, "web").is_err() {
        assert!(start.elapsed() < HANG, "{:?}", end(child));
        std::thread::sleep(Duration::from_millis(5));
    }
    send(&child, libc::SIGHUP);
    send(&child, libc::SIGINT);
    Client::connect(&dir, "web").unwrap().call::<Info>(&Request::Info {}).unwrap();
    // The code is the signal's that ended it.
    send(&child, libc::SIGTERM);
    let (status, text) = end(child);
    assert_eq!(status.code(), Some(128 + libc::SIGTERM), "{text}");
}

/// A receiver whose guest's console is on `terminal`.
fn receive_at(terminal: &File, temp: &Path, dir: &RuntimeDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wherry"));
    command
        .args(["receive", "web", &format!("unix:{}", temp.join("move.sock").display())])
        .env("WHERRY_RUNTIME_DIR", dir.path())
        .stdin(terminal.try_clone().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// The same, once it has made the terminal raw.
fn receiving_at(terminal: &File, temp: &Path, dir: &RuntimeDir) -> Child {
    let child = receive_at(terminal, temp, dir).spawn().unwrap();
    let start = Instant::now();
    while Client::connect(dir, "web").is_err() {
        assert!(start.elapsed() < HANG, "{:?}", end(child));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!modes(terminal).unwrap().3.intersects(COOKED), "{:?}", modes(terminal));
    child
}

#[test]
fn a_terminal_is_raw_while_a_vm_has_it_and_as_it_was_afterwards() {
    let Some((temp, dir)) = receiver_place() else { return };
    let (terminal, mut keyboard) = terminal::open().unwrap();
    let before = modes(&terminal).unwrap();
    assert!(before.3.contains(COOKED));
    let child = receiving_at(&terminal, temp.path(), &dir);
    keyboard.write_all(b"\x1dq").unwrap();
    let (status, text) = end(child);
    assert_eq!((status.code(), modes(&terminal).unwrap() == before), (Some(10), true), "{text}");
}

/// Nobody who would put it back outlives the VM's process, so the thread that ends it does.
#[test]
fn a_terminal_is_as_it_was_after_a_signal_that_ends_the_process() {
    let Some((temp, dir)) = receiver_place() else { return };
    for signal in [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV] {
        let (terminal, _keyboard) = terminal::open().unwrap();
        let before = modes(&terminal).unwrap();
        let child = receiving_at(&terminal, temp.path(), &dir);
        send(&child, signal);
        let (status, text) = end(child);
        let ended = (status.signal(), modes(&terminal).unwrap() == before);
        assert_eq!(ended, (Some(signal), true), "{text}");
    }
}

#[cfg(debug_assertions)]
#[test]
fn a_terminal_is_as_it_was_after_a_call_that_is_not_allowed() {
    let Some((temp, dir)) = receiver_place() else { return };
    // One that may set a terminal for its own work, and one that may not.
    for kind in ["main", "control"] {
        let (terminal, _keyboard) = terminal::open().unwrap();
        let before = modes(&terminal).unwrap();
        let mut command = receive_at(&terminal, temp.path(), &dir);
        let (status, text) = end(command.env("WHERRY_FORBIDDEN_CALL", kind).spawn().unwrap());
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{kind}: {text}");
        assert!(text.contains("personality"), "{kind}: {text}");
        assert!(modes(&terminal).unwrap() == before, "{kind}: {:?}", modes(&terminal));
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_not_the_end() {
    let temp = tempfile::tempdir().unwrap();
    let trace = temp.path().join("a.trace");
    let lines = [
        r#"{"t_us":0,"event":"start","version":1,"nr_pages":4096,"hints":"off","downtime_limit_us":300000,"max_rounds":30,"switchover_estimate_us":10000}"#,
        r#"{"t_us":10,"event":"end","report":{}}"#,
    ];
    std::fs::write(&trace, lines.join("\n") + "\n").unwrap();
    let page = temp.path().join("page.html");
    let script = "ulimit -f 0; exec \"$0\" report \"$1\" -o \"$2\"";
    let out = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_wherry")])
        .args([&trace, &page])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && text.contains("cannot write"), "{} {text}", out.status);
}
