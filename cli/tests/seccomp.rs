//! A VM's process whose thread makes a call that it may not make.

// A test's way to have a call made is not in a release.
#![cfg(debug_assertions)]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::receiver_place;

/// Nothing here takes a second; only a hang takes longer than this.
const HANG: Duration = Duration::from_secs(30);

fn wherry(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wherry"));
    command.args(args).env("WHERRY_RUNTIME_DIR", dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a receiver ends in which threads of this kind make such a call.
fn receive(dir: &Path, kind: &str, mode: &str) -> Output {
    let uri = format!("unix:{}", dir.join("move").display());
    let log = format!("file:{}", dir.join("console").display());
    let args = ["receive", "web", &uri, "--serial", &log, "--seccomp", mode];
    let mut vm = wherry(dir, &args).env("WHERRY_FORBIDDEN_CALL", kind).spawn().unwrap();
    // Clients come, until it has ended, or has answered one.
    let start = Instant::now();
    while vm.try_wait().unwrap().is_none() {
        if wherry(dir, &["info", "web"]).output().unwrap().status.success() {
            // One whose main thread is the one to end it may answer before that.
            if wherry(dir, &["kill", "web"]).output().unwrap().status.success() {
                break;
            }
        }
        assert!(start.elapsed() < HANG, "it neither ends nor answers");
    }
    vm.wait_with_output().unwrap()
}

/// A VM of its own for each mode, one after the other.
fn ends_by_sigsys(dir: &Path, kind: &str, thread: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let Output { status, stderr, .. } = receive(dir, kind, "kill");
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{kind}: {said}");
    let line = format!("wherry: thread {thread}: system call personality (135) is not allowed");
    assert_eq!(said.matches(&line).count(), 1, "{said}");
    // Or it is not the end: ended by `wherry kill`, which is no failure of its own.
    for mode in ["log", "off"] {
        let Output { status, stderr, .. } = receive(dir, kind, mode);
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(10), "{kind}, {mode}: {said}");
        assert!(!said.contains("not allowed"), "{said}");
    }
}

#[test]
fn it_ends_by_sigsys_and_says_thread_and_call() {
    let Some((_temp, runtime)) = receiver_place() else { return };
    thread::scope(|scope| {
        for (kind, thread) in [
            ("signals", "signals"),
            ("console-out", "console-out"),
            ("control", "control"),
            ("control-client", "control-client"),
            ("main", "wherry-vm"),
            ("receive", "receive"),
        ] {
            let dir = runtime.path().join(kind);
            scope.spawn(move || ends_by_sigsys(&dir, kind, thread));
        }
    });
}
