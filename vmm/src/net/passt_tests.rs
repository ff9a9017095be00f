//! passt, and others in its place.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use rustix::process::Pid;
use wherry_devices::host::Frames;
use wherry_devices::virtio::net::constants::MAX_FRAME;
use wherry_tests::needs::PASST;

use super::*;
use crate::logging::Format;
use crate::logging::fixture::Heard;

/// Only so that a test that fails does not hang.
const GUARD: Duration = Duration::from_secs(60);

impl Program {
    /// A script whose standard input is the network. It notes its process in `pids`.
    fn script(text: &str, pids: &Path) -> Self {
        let text = format!("echo $$ >> '{}'\n{text}", pids.display());
        let command = ["/bin/sh", "-c", &text].map(Into::into).into();
        Self { command, pause: Duration::from_millis(1), patience: GUARD, apart: false }
    }

    /// A network that gives back what it gets.
    pub fn echo() -> Self {
        Self::script("exec cat >&0", Path::new("/dev/null"))
    }
}

/// Starts it, and watches it.
fn watched(program: Program) -> io::Result<Watch> {
    let mut watch = Watch::start(program)?;
    watch.begin("net0")?;
    Ok(watch)
}

/// The processes that a script has noted, once there are as many.
fn processes(pids: &Path, nr: usize) -> Vec<i32> {
    let until = Instant::now() + GUARD;
    loop {
        let noted = fs::read_to_string(pids).unwrap_or_default();
        let all: Vec<i32> = noted.lines().filter_map(|line| line.parse().ok()).collect();
        if all.len() >= nr {
            return all;
        }
        assert!(Instant::now() < until, "{noted}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_gone(pid: i32) -> bool {
    rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_err()
}

/// The next frame that is as wanted.
fn frame(user: &mut User, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (until, mut bytes) = (Instant::now() + GUARD, vec![0; MAX_FRAME]);
    loop {
        match user.read(&mut bytes) {
            Ok(len) if wanted(&bytes[..len]) => return bytes[..len].to_vec(),
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        assert!(Instant::now() < until, "no such frame");
    }
}

#[test]
fn it_ends_with_the_network() {
    let temp = tempfile::tempdir().unwrap();
    let pids = temp.path().join("pids");
    // It does not end by itself.
    let watch = watched(Program::script("cat >&0; exec sleep 1000", &pids)).unwrap();
    let mut user = watch.user().clone();
    user.write(&[3; 80]).unwrap();
    frame(&mut user, |frame| frame[12..] == [3; 68]);
    drop(watch);
    assert!(is_gone(processes(&pids, 1)[0]) && !user.link());
}

#[test]
fn one_that_ends_is_started_again_and_the_guest_sees_the_link_go_and_come() {
    let temp = tempfile::tempdir().unwrap();
    let pids = temp.path().join("pids");
    // The first answer, and no more.
    let once = Program::script("exec dd bs=1 count=46 >&0 2>/dev/null", &pids);
    let watch = watched(once).unwrap();
    let all = processes(&pids, 4);
    assert!(is_gone(all[0]) && is_gone(all[1]) && is_gone(all[2]));
    drop(watch);
    assert!(processes(&pids, 4).into_iter().all(is_gone));
}

#[test]
fn one_that_sends_no_frames_is_ended_and_started_again() {
    let temp = tempfile::tempdir().unwrap();
    let pids = temp.path().join("pids");
    let text = "dd bs=1 count=46 >&0 2>/dev/null; printf '\\0\\0\\0\\0' >&0; exec sleep 1000";
    let watch = watched(Program::script(text, &pids)).unwrap();
    let (mut user, mut bytes) = (watch.user().clone(), vec![0; MAX_FRAME]);
    while user.read(&mut bytes).is_err_and(|e| e.kind() != ErrorKind::InvalidData) {}
    assert!(is_gone(processes(&pids, 2)[0]));
}

#[test]
fn what_is_wrong_at_the_start_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let pids = temp.path().join("pids");
    let why = |program| watched(program).err().unwrap().to_string();
    let taken = "echo Failed to bind >&2; echo 'Failed to send 9 bytes to syslog' >&2; exit 3";
    let text = why(Program::script(taken, &pids));
    assert_eq!(text, "passt ended (exit status: 3): Failed to bind");
    let mut deaf = Program::script("exec sleep 1000", &pids);
    deaf.patience = Duration::ZERO;
    assert_eq!(why(deaf), "passt does not answer");
    let absent = Program { command: vec!["no-such-passt".into()], ..Program::echo() };
    assert!(why(absent).contains("`apt-get install passt` installs it"));
    let forbidden = Program { command: vec!["/".into()], ..Program::echo() };
    assert!(why(forbidden).contains("cannot start `passt`: "));
    assert!(processes(&pids, 1).into_iter().all(is_gone));
}

/// With the real one. `None`, and said, where there is none, or no network that it could use.
fn real(forwards: Vec<Forward>) -> Option<io::Result<Watch>> {
    let started = watched(Program::new(&UserNet { forwards, mtu: Some(1500) }));
    match started.as_ref().map_err(ToString::to_string) {
        Err(why) if why == ABSENT => PASST.or_not_run(Err(why)),
        Err(why) if why.contains("External interface not usable") => {
            PASST.not_run(why);
            None
        }
        _ => Some(started),
    }
}

#[test]
fn the_real_one_forwards_a_port_and_says_if_it_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().port();
    let forward = Forward { address: Ipv4Addr::LOCALHOST.into(), host, guest: 22 };
    let Some(taken) = real(vec![forward]) else { return };
    let why = taken.err().unwrap().to_string();
    assert!(why.contains("bind") && why.contains(&host.to_string()), "{why}");
    drop(listener);
    let watch = real(vec![forward]).unwrap().unwrap();
    let mut user = watch.user().clone();
    let client = std::thread::spawn(move || TcpStream::connect(("127.0.0.1", host)).is_ok());
    // A SYN for 10.0.2.15, port 22, behind the header and Ethernet.
    let syn = frame(&mut user, |frame| frame.get(24..26) == Some(&[8, 0]) && frame[35] == 6);
    assert_eq!((&syn[42..46], &syn[48..50]), (&[10, 0, 2, 15][..], &[0, 22][..]));
    // Somebody answers for the gateway, whoever asks.
    user.write(&[&[0; 12][..], &question_4()].concat()).unwrap();
    frame(&mut user, |frame| frame.get(24..26) == Some(&[8, 6]) && frame[33] == 2);
    // So the client's connection ends.
    drop(watch);
    let _ = client.join().unwrap();
}

#[test]
fn the_real_one_ends_by_itself_when_nobody_is_left() {
    let program = Program::new(&UserNet::default());
    let Some(_) = real(vec![]) else { return };
    let (user, quit) = (User::new().unwrap(), AtomicBool::new(false));
    let launcher = program.launcher().unwrap();
    let (mut running, stream) = start(&program, &launcher, &user, &quit).unwrap();
    // As when this process is killed.
    drop(stream);
    let until = Instant::now() + GUARD;
    while !look(&running.job, PollFlags::IN).unwrap().contains(PollFlags::IN) {
        assert!(Instant::now() < until, "it runs on");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(running.job.wait(None).unwrap().unwrap().success());
}

#[test]
fn a_guest_that_brings_its_network_down_again_and_again_does_not_fill_the_log() {
    let heard = Heard::new(Format::Human);
    let lines = heard.flood(|nr| down("net0", &format!("passt sent {nr}")));
    let first = "wherry: network `net0` is down: passt sent 0; passt is started again\n";
    assert!(lines[0].starts_with(first), "{}", lines[0]);
}
