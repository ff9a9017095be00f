//! The table by itself, and filters in processes that are this test again.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use wherry_tests::terminal;

use super::table::{BASE, DESCRIPTORS, KINDS, LAUNCHING, OF_CLIENTS, STARTING};
use super::*;

/// Which kind of thread a process is to have, and what that does.
const KIND: &str = "WHERRY_TEST_KIND";
const ACT: &str = "WHERRY_TEST_ACT";

/// This test again, in a process of its own.
fn process(test: &str, kind: &str, act: &str) -> Output {
    process_at(Stdio::null(), test, kind, act)
}

/// The same, with this as standard input.
fn process_at(stdin: impl Into<Stdio>, test: &str, kind: &str, act: &str) -> Output {
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new(own);
    command.args([&test, "--exact", "--nocapture", "--test-threads=1"]);
    command.stdin(stdin).env(KIND, kind).env(ACT, act).env("RUST_BACKTRACE", "1").output().unwrap()
}

fn act(what: &str) {
    match what {
        // Says which personality this process has.
        "personality" => {
            // SAFETY: it changes nothing.
            unsafe { libc::syscall(libc::SYS_personality, 0xffff_ffff_u64) };
        }
        "panic" => panic!("a panic is said"),
        "work" => {
            // More threads than there are heaps, each with its own memory.
            let work = || drop(vec![vec![1_u8; 100_000]; 100]);
            let threads: Vec<_> = (0..40)
                .map(|_| wherry_threads::of_kind("migration-walk").spawn(work).unwrap())
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        // Refused, and that is all.
        "read a file" => {
            let error = std::fs::File::open("/proc/sys/vm/overcommit_memory").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        }
        "write a file" => drop(std::fs::File::create("/dev/null")),
        "abort" => std::process::abort(),
        // SAFETY: it is not, which is what is looked at.
        "touch nothing" => unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) },
        "overflow" => drop(black_box(deep(0))),
        other => panic!("{other}?"),
    }
}

fn deep(n: u64) -> u64 {
    let frame = black_box([n; 64]);
    if n == u64::MAX { 0 } else { deep(n + 1) + frame[0] }
}

/// If this is such a process: does what it is for. On a terminal, if it has one, that is raw.
fn is_process() -> bool {
    let Ok(kind) = std::env::var(KIND) else { return false };
    let what = std::env::var(ACT).unwrap();
    // As a VM's process, and no core for each of many ends.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
    begin(Mode::Kill, None).unwrap();
    let _raw = crate::terminal::RawMode::enter().unwrap();
    let kind = KINDS.iter().find(|k| k.name == kind).unwrap().name;
    let thread = wherry_threads::of_kind(kind).named(kind.chars().take(15).collect());
    let ended = thread.spawn(move || act(&what)).unwrap().join();
    std::process::exit(i32::from(ended.is_err()));
}

#[test]
fn a_forbidden_call_of_each_kind_ends_the_process_and_is_said() {
    if is_process() {
        return;
    }
    for kind in KINDS {
        let test = "a_forbidden_call_of_each_kind_ends_the_process_and_is_said";
        let Output { status, stderr, .. } = process(test, kind.name, "personality");
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{}: {said}", kind.name);
        let name: String = kind.name.chars().take(15).collect();
        let line = format!("thread {name}: system call personality (135) is not allowed");
        assert!(said.contains(&line), "{said}");
    }
}

/// And as without a terminal, with what the standard library says of a stack.
#[test]
fn a_fault_in_each_kind_of_thread_ends_the_process_and_puts_the_terminal_back() {
    if is_process() {
        return;
    }
    let test = "a_fault_in_each_kind_of_thread_ends_the_process_and_puts_the_terminal_back";
    for kind in KINDS {
        for (act, signal, says) in [
            ("abort", libc::SIGABRT, ""),
            ("touch nothing", libc::SIGSEGV, ""),
            ("overflow", libc::SIGABRT, "has overflowed its stack"),
        ] {
            let (terminal, _keyboard) = terminal::open().unwrap();
            let before = terminal::modes(&terminal).unwrap();
            let own = terminal.try_clone().unwrap();
            let Output { status, stderr, .. } = process_at(own, test, kind.name, act);
            let said = String::from_utf8_lossy(&stderr);
            assert_eq!(status.signal(), Some(signal), "{}, {act}: {said}", kind.name);
            assert!(said.contains(says), "{}, {act}: {said}", kind.name);
            let after = terminal::modes(&terminal).unwrap();
            assert!(after == before, "{}, {act}: {after:?}", kind.name);
        }
    }
}

#[test]
fn threads_allocate_panic_and_start_others_within_their_lists() {
    if is_process() {
        return;
    }
    let test = "threads_allocate_panic_and_start_others_within_their_lists";
    let Output { status, stderr, .. } = process(test, "migration", "work");
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    for kind in KINDS {
        let Output { status, stderr, .. } = process(test, kind.name, "panic");
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{}: {said}", kind.name);
        assert!(said.contains("a panic is said") && said.contains("backtrace"), "{said}");
    }
}

/// What libc reads of its own accord it does without; nobody else has a reason to open a file so.
#[test]
fn a_file_that_is_only_read_is_refused_and_any_other_ends_the_process() {
    if is_process() {
        return;
    }
    let test = "a_file_that_is_only_read_is_refused_and_any_other_ends_the_process";
    for kind in ["vcpu", "devices", "disk"] {
        let Output { status, stderr, .. } = process(test, kind, "read a file");
        assert!(status.success(), "{kind}: {status}: {}", String::from_utf8_lossy(&stderr));
        assert_eq!(process(test, kind, "write a file").status.signal(), Some(libc::SIGSYS));
    }
}

#[test]
fn lists_are_sorted_and_name_calls_that_there_are() {
    for (of, list) in KINDS.iter().map(|kind| (kind.name, kind.calls)).chain([
        ("base", BASE),
        ("descriptors", DESCRIPTORS),
        ("starting", STARTING),
        ("launching", LAUNCHING),
    ]) {
        assert!(list.is_sorted_by(|a, b| a < b), "{of}");
        for call in list {
            assert!(names::number(call).is_some(), "{of}: {call}");
            assert!(of == "base" || !BASE.contains(call), "{of}: {call} is in the base");
            assert!(of == "descriptors" || !DESCRIPTORS.contains(call), "{of}: {call}");
        }
    }
    let used: BTreeSet<_> = KINDS
        .iter()
        .flat_map(|kind| kind.requests.iter().copied().flatten())
        .chain(report::REQUESTS)
        .map(|r| r.name)
        .collect();
    for request in requests::ALL {
        assert!(used.contains(request.name), "{} is nobody's", request.name);
    }
}

#[test]
fn no_thread_may_reach_beyond_the_process() {
    const NEVER: &[&str] = &[
        "bpf",
        "execve",
        "execveat",
        "fork",
        "init_module",
        "io_uring_setup",
        "keyctl",
        "mount",
        "move_mount",
        "open_by_handle_at",
        "perf_event_open",
        "pidfd_getfd",
        "process_vm_readv",
        "process_vm_writev",
        "ptrace",
        "reboot",
        "setns",
        "unshare",
        "userfaultfd",
    ];
    for kind in KINDS {
        let allowed = kind.all();
        let found = NEVER.iter().find(|call| allowed.calls.contains(*call));
        assert_eq!(found, None, "{}", kind.name);
    }
    // Those that a guest talks to open and start nothing.
    for kind in ["vcpu", "devices", "disk", "console-in", "console-out"] {
        let allowed = allowed::kind(kind).unwrap().all();
        for call in ["open", "openat", "openat2", "unlink", "memfd_create", "execve", "kill"] {
            assert!(!allowed.calls.contains(call), "{kind}: {call}");
        }
    }
}

/// Every thread that the sources start is in the table, and no other is.
#[test]
fn the_table_has_the_kinds_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut started = BTreeSet::from(["main".to_owned()]);
    for folder in ["vmm/src", "devices/src", "migration/src"] {
        sources(&root.join(folder), &mut |path, text| {
            let theirs = path.ends_with("migration/src/aside.rs");
            if path.to_string_lossy().contains("tests") || theirs {
                return;
            }
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            assert!(!text.contains("thread::spawn("), "{}: of which kind?", path.display());
            assert!(!text.contains("thread::Builder::"), "{}: of which kind?", path.display());
            for begin in ["of_kind(\"", "aside(\"", "unless_killed(\""] {
                let kinds = text.split(begin).skip(1).filter_map(|rest| rest.split('"').next());
                started.extend(kinds.map(str::to_owned));
            }
        });
    }
    let known = KINDS.iter().map(|kind| kind.name).chain(OF_CLIENTS.iter().copied());
    let known: BTreeSet<_> = known.map(str::to_owned).collect();
    assert_eq!(started, known);
    for kind in KINDS {
        for child in kind.starts {
            assert!(allowed::kind(child).is_some(), "{}: {child}", kind.name);
        }
    }
}

fn sources(folder: &Path, see: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, see);
        } else if path.extension().is_some_and(|e| e == "rs") {
            see(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}
