//! With programs of the shell's.

use std::io::Read;

use super::*;

/// Only so that a test that fails does not hang.
const GUARD: Option<Duration> = Some(Duration::from_secs(60));

fn shell(script: &str) -> Launcher {
    let arguments = ["-c", script].map(OsString::from).into();
    Launcher::thread(Program::plain("/bin/sh".into(), arguments)).unwrap()
}

#[test]
fn it_is_started_again_and_again_with_what_it_is_given() {
    let launcher = shell("read line; echo \"$line $line\"; read more && exit 4; exit 3");
    for word in ["one", "two"] {
        let (from, to) = (io::pipe().unwrap(), io::pipe().unwrap());
        io::Write::write_all(&mut &from.1, format!("{word}\n").as_bytes()).unwrap();
        drop(from.1);
        let stdio = [Some(from.0.as_fd()), Some(to.1.as_fd()), None];
        let mut job = launcher.start(stdio).unwrap();
        drop(to.1);
        let mut said = String::new();
        (&to.0).read_to_string(&mut said).unwrap();
        assert_eq!(said, format!("{word} {word}\n"));
        assert_eq!(job.wait(GUARD).unwrap().unwrap().code(), Some(3));
    }
}

#[test]
fn it_is_killed_when_that_is_asked_for_and_then_another_runs() {
    let launcher = shell("exec sleep 1000");
    for _ in 0..2 {
        let mut job = launcher.start([None; 3]).unwrap();
        assert_eq!(job.wait(Some(Duration::ZERO)).unwrap(), None);
        let busy = launcher.start([None; 3]).err().unwrap();
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
        job.kill();
        assert_eq!(job.wait(GUARD).unwrap().unwrap().signal(), Some(libc::SIGKILL));
    }
}

#[test]
fn nothing_is_started_with_descriptors_that_did_not_come() {
    let launcher = shell("exit 0");
    // Three are announced.
    send(&launcher.0.control, &[START, 9, 7], SendFlags::NOSIGNAL).unwrap();
    let job = Job { launcher, number: 9, ended: None };
    assert_eq!(job.answer().unwrap(), Some((FAILED, libc::EBADF)));
}

#[test]
fn what_it_started_ends_with_who_asked_for_it() {
    let (mut ends, theirs) = io::pipe().unwrap();
    let launcher = shell("exec sleep 1000");
    let job = launcher.start([None, Some(theirs.as_fd()), None]).unwrap();
    drop((theirs, job, launcher));
    // The last one who has it open is gone.
    assert_eq!(ends.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_cannot_be_started_says_why() {
    let none = Launcher::thread(Program::plain("no-such-program".into(), vec![])).unwrap();
    let error = none.start([None; 3]).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let folder = Launcher::thread(Program::bare("x", "/".into(), vec![])).unwrap();
    let error = folder.start([None; 3]).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

/// What is started has our end of the sockets, so that this is never gone. What it says; nobody has
/// it ended.
fn start_with_our_end(launcher: &Launcher) -> io::PipeReader {
    let (said, theirs) = io::pipe().unwrap();
    let ours = Some(launcher.0.control.as_fd());
    let job = launcher.start([ours, Some(theirs.as_fd()), None]).unwrap();
    std::mem::forget(job);
    said
}

#[test]
fn what_runs_ends_with_the_process_that_had_it_started_whoever_has_the_sockets() {
    let mut process = Command::new("sleep").arg("1000").spawn().unwrap();
    let pidfd = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).unwrap();
    let (control, theirs) = pair().unwrap();
    let other = Other { control: theirs, process: Some(pidfd) };
    let launcher = Launcher::at(control, None);
    let serving = std::thread::spawn(move || {
        let arguments = ["-c", "echo here; exec sleep 1000"].map(OsString::from).into();
        serve(&other, &Program::plain("/bin/sh".into(), arguments));
    });
    let mut said = start_with_our_end(&launcher);
    let mut line = [0; 5];
    said.read_exact(&mut line).unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    let limit = GUARD.map(|limit| Timespec::try_from(limit).unwrap());
    let closed = poll(&mut [PollFd::new(&said, PollFlags::IN)], limit.as_ref());
    assert_eq!(closed, Ok(1), "it still runs");
    assert_eq!(said.read(&mut line).unwrap(), 0);
    serving.join().unwrap();
}

#[test]
fn who_asks_and_does_not_listen_is_not_waited_for() {
    let launcher = shell("exec sleep 1000");
    let said = start_with_our_end(&launcher);
    let end = Instant::now() + GUARD.unwrap();
    let now = Timespec::default();
    while poll(&mut [PollFd::new(&said, PollFlags::IN)], Some(&now)) == Ok(0) {
        assert!(Instant::now() < end, "it still runs");
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = send(&launcher.0.control, &[START, 0, 0], flags);
    }
}
