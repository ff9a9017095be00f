//! The process that reads an image: what it may do, how it ends, and what is believed of it.

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use wherry_rootfs::reader::{ARGUMENT, Span};
use wherry_rootfs::{BootFiles, Error, Limits, Reader, Why};

const PROGRAM: &str = env!("CARGO_BIN_EXE_wherry-rootfs-reader");

/// Time enough for the slowest machine; what is judged is never how long something takes.
fn patient() -> Limits {
    Limits { deadline: Duration::from_secs(300), cpu_seconds: 120, ..Limits::default() }
}

fn read_with(argument: &str, image: &[u8], limits: Limits) -> Result<BootFiles, Error> {
    Reader::new(PROGRAM, &[argument], limits).read(&file(image))
}

fn bytes(found: &BootFiles, Span { start, len }: Span) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    found.file().read_exact_at(&mut bytes, start).unwrap();
    bytes
}

#[test]
fn what_an_image_boots_comes_through_in_a_sealed_file() {
    if !mke2fs_is_here() {
        return;
    }
    let found = read_with(ARGUMENT, &Tree::debian().ext4(), patient()).unwrap();
    assert!(bytes(&found, found.kernel()) == kernel());
    assert!(bytes(&found, found.initrd().unwrap()) == initrd());
    assert_eq!(found.listing.uuid(), UUID);
    assert!(found.file().write_at(b"x", 0).is_err() && found.file().set_len(0).is_err());
}

#[test]
fn an_image_open_for_writing_and_past_the_cache_is_read() {
    if !mke2fs_is_here() {
        return;
    }
    let path = tempfile::NamedTempFile::new().unwrap();
    // Its end is on no boundary.
    std::fs::write(&path, [Tree::debian().ext4(), vec![1; 777]].concat()).unwrap();
    let mut options = OpenOptions::new();
    match options.read(true).write(true).custom_flags(libc::O_DIRECT).open(&path) {
        Ok(image) => {
            let found = Reader::new(PROGRAM, &[ARGUMENT], patient()).read(&image).unwrap();
            assert!(bytes(&found, found.initrd().unwrap()) == initrd());
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "no O_DIRECT on temporary files: not run: {e}");
        }
    }
}

#[test]
fn refusals_come_through_with_their_text() {
    for (image, why) in [(vec![0; 1 << 20], Why::NoRoot), (b"QFI\xFB".to_vec(), Why::OtherFormat)] {
        match read_with(ARGUMENT, &image, patient()) {
            Err(Error::Refused(refusal)) => assert_eq!(refusal.why, why),
            other => panic!("{other:?}"),
        }
    }
    if mke2fs_is_here() {
        let limits = Limits { initrd: 700_000, ..patient() };
        match read_with(ARGUMENT, &Tree::debian().ext4(), limits) {
            Err(Error::Refused(refusal)) => assert_eq!(refusal.why, Why::TooLarge),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_process_that_does_not_end_is_killed_after_the_deadline() {
    for deed in ["hang", "sleep"] {
        let limits = Limits { deadline: Duration::from_millis(100), ..patient() };
        match read_with(deed, b"", limits) {
            Err(Error::Deadline(limit)) => assert_eq!(limit, limits.deadline),
            other => panic!("{deed}: {other:?}"),
        }
    }
}

#[test]
fn a_process_that_ends_badly_leaves_no_answer() {
    let died_within = |deed, limits| match read_with(deed, b"", limits) {
        Err(Error::Died(how)) => how,
        other => panic!("{deed}: {other:?}"),
    };
    let died = |deed| died_within(deed, patient());
    let hurried = Limits { cpu_seconds: 1, ..patient() };
    assert_eq!(died_within("hang", hurried), "took more than 1 seconds of CPU time");
    assert!(died("panic").contains("exit code 101"));
    assert!(died("memory").contains("256 MiB of memory"));
    assert!(died("socket").contains("system call"));
    // EFBIG, since our own programs ignore SIGXFSZ; the signal where nobody does.
    let large = died("file");
    assert!(large.contains("signal 25") || large.contains("exit code 11"), "{large}");
    for (deed, what) in [("nothing", "none"), ("garbage", "none")] {
        match read_with(deed, b"", patient()) {
            Err(Error::Answer(why)) => assert!(why.contains(what), "{deed}: {why}"),
            other => panic!("{deed}: {other:?}"),
        }
    }
    let limits = Limits::default();
    assert!(matches!(
        Reader::new("/nonexistent", &[], limits).read(&file(b"")),
        Err(Error::Start(_))
    ));
}

#[test]
fn a_forbidden_call_ends_the_process_with_sigsys() {
    for deed in [
        "socket",
        "open",
        "exec",
        "fork",
        "kill",
        "ioctl",
        "write-image",
        "code",
        "map-image",
        "ptrace",
    ] {
        let status = Command::new(PROGRAM)
            .arg(deed)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{deed}: {status}");
    }
}

#[test]
fn landlock_by_itself_keeps_files_shut() {
    let status = Command::new(PROGRAM).arg("landlock").status().unwrap();
    if status.code() == Some(7) {
        let _ = writeln!(std::io::stderr(), "this kernel has no Landlock: not run");
        return;
    }
    assert_eq!(status.code(), Some(0));
}
