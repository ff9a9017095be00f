//! The lab's KVM host: the caller's file system as root, one command, its streams and its exit
//! code.
//!
//! The root is the caller's, read over 9p and never written: an overlay in memory takes all
//! changes. Folders named as writable are mounted from the caller directly. Streams go through
//! pipes and threads of ours to [`ports`], because a port can be opened only once and the command
//! may reopen `/dev/stderr`. In a lab without virtio the initramfs stays the root.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use wherry_guest_kernel::labconf::LabConf;

use crate::ports::{self, Ports};
use crate::{modules, nudge, sys};

const NINE_P: &str = "trans=virtio,version=9p2000.L,msize=512000,access=any";

/// Runs the job and powers the lab off.
pub fn main(job: &[u8]) -> ! {
    sys::mount_basics();
    wait_for_clock();
    let failed = modules::load_all(true);
    if !failed.is_empty() {
        eprintln!("wherry-lab:{failed}");
    }
    let _keep = sys::keep_kvm_on();
    nudge::start();
    let conf = LabConf::decode(job);
    let open =
        if conf.as_ref().is_some_and(|conf| conf.serial) { ports::serial } else { ports::virtio };
    let outcome = open().and_then(|mut ports| {
        let outcome = conf
            .ok_or_else(|| "malformed job".to_owned())
            .and_then(|conf| prepare(&conf).map(|()| conf))
            .and_then(|conf| run(&conf, &mut ports));
        let line = match &outcome {
            Ok(line) => format!("{line}\n"),
            Err(text) => format!("failed {}\n", text.replace('\n', " ")),
        };
        // SAFETY: sync takes nothing and cannot fail.
        unsafe { libc::sync() };
        ports.control.write_all(line.as_bytes()).map_err(|e| e.to_string())
    });
    if let Err(text) = outcome {
        eprintln!("wherry-lab: {text}");
    }
    // The caller ends the machine once it has read everything; this is for when it does not.
    thread::sleep(Duration::from_secs(20));
    sys::end(sys::End::Poweroff)
}

/// Waits until the kernel knows how fast its clock ticks. A second after its start it measures that
/// better than at first, and KVM keeps what it found when it was loaded. If the two differ, KVM
/// scales its guests' TSC, software emulation does not, and the guests' timers ring by as much too
/// late as the clocks are apart: half a minute, some days after the caller's start.
fn wait_for_clock() {
    let deadline = Instant::now() + Duration::from_secs(10);
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    while fs::read_to_string(source).is_ok_and(|name| name.trim() != "tsc")
        && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(10));
    }
}

fn step<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{}: {e}", what.into()))
}

/// Builds the root and moves into it.
fn prepare(conf: &LabConf) -> Result<(), String> {
    if conf.serial {
        mount_in_dev(Path::new("/"))?;
        step("make the working directory", fs::create_dir_all(&conf.cwd))?;
    } else {
        callers_root(&conf.writable)?;
    }
    for (link, target) in
        [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(link));
    }
    let _ = fs::create_dir_all("/run/user/0");
    let _ = fs::create_dir_all("/run/lock");
    step("bring up the loopback", loopback_up())?;
    // The lab is for measuring; nothing may pause it to look for hung tasks.
    let _ = fs::write("/proc/sys/kernel/hung_task_timeout_secs", "0");
    for (from, to) in &conf.copies {
        step(format!("copy {}", from.display()), copy(Path::new(from), Path::new(to)))?;
    }
    Ok(())
}

/// Mounts the caller's files and moves into them.
fn callers_root(writable: &[(OsString, OsString)]) -> Result<(), String> {
    let quiet = libc::MS_NOSUID | libc::MS_NODEV;
    for dir in ["/lower", "/upper", "/root"] {
        step(dir, fs::create_dir_all(dir))?;
    }
    step(
        "mount the caller's root",
        sys::mount("root", "/lower", "9p", libc::MS_RDONLY, &format!("{NINE_P},cache=loose")),
    )?;
    step("mount tmpfs", sys::mount("tmpfs", "/upper", "tmpfs", 0, "size=75%"))?;
    for dir in ["/upper/changes", "/upper/work"] {
        step(dir, fs::create_dir_all(dir))?;
    }
    let layers = "lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work";
    step("mount the overlay", sys::mount("overlay", "/root", "overlay", 0, layers))?;
    let root = Path::new("/root");
    for (source, name, flags, data) in [
        ("devtmpfs", "dev", libc::MS_NOSUID, ""),
        ("proc", "proc", quiet, ""),
        ("sysfs", "sys", quiet, ""),
        ("tmpfs", "run", quiet, "mode=755"),
    ] {
        mount_on(&root.join(name), source, flags, data)?;
    }
    mount_in_dev(root)?;
    for (tag, path) in writable {
        let target = root.join(Path::new(path).strip_prefix("/").unwrap_or(Path::new(path)));
        let options = format!("{NINE_P},cache=mmap");
        step(format!("mount {}", target.display()), sys::mount(tag, &target, "9p", 0, &options))?;
    }
    // In place of the first root, not below it: who is in a part of the root only may make no user
    // namespace, as passt does.
    step("cd /root", std::env::set_current_dir(root))?;
    step("move the root", sys::mount(".", "/", "", libc::MS_MOVE, ""))?;
    step("chroot", std::os::unix::fs::chroot("."))?;
    step("cd /", std::env::set_current_dir("/"))
}

fn mount_on(target: &Path, kind: &str, flags: libc::c_ulong, data: &str) -> Result<(), String> {
    let _ = fs::create_dir_all(target);
    step(format!("mount {}", target.display()), sys::mount(kind, target, kind, flags, data))
}

/// What belongs into `/dev` and is no device.
fn mount_in_dev(root: &Path) -> Result<(), String> {
    let pts = "mode=620,ptmxmode=666";
    mount_on(&root.join("dev/pts"), "devpts", libc::MS_NOSUID, pts)?;
    mount_on(&root.join("dev/shm"), "tmpfs", libc::MS_NOSUID, "mode=1777")
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).map(|_| ())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: plain numbers; the descriptor is owned below.
    let socket = sys::check(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: the descriptor was just created and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives through the call.
    sys::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }).map(|_| ())
}

/// Finds a program as the shell would, by the PATH of the job's environment.
fn find_program(conf: &LabConf) -> PathBuf {
    let name = PathBuf::from(&conf.argv[0]);
    if name.components().count() > 1 {
        return name;
    }
    let path = conf.env.iter().find(|(k, _)| k == "PATH").map(|(_, v)| v.clone());
    let path = path.unwrap_or_else(|| {
        OsString::from("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    });
    std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|p| p.is_file()).unwrap_or(name)
}

/// Copies one stream until its end, counting the bytes that went out.
fn relay(
    mut from: impl Read + Send + 'static,
    mut to: File,
    count: Arc<AtomicU64>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
            count.fetch_add(len as u64, Ordering::SeqCst);
        }
    })
}

/// Runs the command; returns the closing line for the control port.
fn run(conf: &LabConf, ports: &mut Ports) -> Result<String, String> {
    let mut command = Command::new(find_program(conf));
    command.args(&conf.argv[1..]).env_clear().envs(conf.env.iter().map(|(k, v)| (k, v)));
    command
        .current_dir(&conf.cwd)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let text = format!("{}: {e}\n", conf.argv[0].display());
            let mut err = ports.err.take().ok_or("no port")?;
            step("report", err.write_all(text.as_bytes()))?;
            let code = if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            return Ok(format!("exit {code} 0 {}", text.len()));
        }
    };
    step("report", ports.control.write_all(b"running\n"))?;
    let counts: [Arc<AtomicU64>; 2] = Default::default();
    let (out, err) = (child.stdout.take().ok_or("no pipe")?, child.stderr.take().ok_or("no pipe")?);
    let (out_port, err_port) =
        (ports.out.take().ok_or("no port")?, ports.err.take().ok_or("no port")?);
    let relays = [
        relay(out, out_port, Arc::clone(&counts[0])),
        relay(err, err_port, Arc::clone(&counts[1])),
    ];
    let done = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&done);
    let mut stdin = child.stdin.take().ok_or("no pipe")?;
    // Without a port of its own nothing comes in: the command sees the end at once.
    if let Some(mut input) = ports.input.take() {
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while !ended.load(Ordering::Relaxed) {
                match input.read(&mut buffer) {
                    Ok(len @ 1..)
                        if stdin.write_all(&buffer[..len]).is_ok() && stdin.flush().is_ok() => {}
                    _ => break,
                }
            }
        });
    }
    let status = wait(child.id())?;
    done.store(true, Ordering::Relaxed);
    // What the command wrote is in the pipes; a process it left behind may hold them open for ever.
    let total = || -> [u64; 2] { std::array::from_fn(|i| counts[i].load(Ordering::SeqCst)) };
    let (mut last, mut quiet_since) = (total(), Instant::now());
    while relays.iter().any(|r| !r.is_finished())
        && quiet_since.elapsed() < Duration::from_millis(500)
    {
        thread::sleep(Duration::from_millis(5));
        if total() != last {
            (last, quiet_since) = (total(), Instant::now());
        }
    }
    let [out, err] = total();
    Ok(format!("exit {status} {out} {err}"))
}

/// Waits for the child, reaping the orphans that become ours as PID 1. A signal n is exit code
/// 128 + n.
fn wait(child: u32) -> Result<i32, String> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for an int.
        let pid = step("wait", sys::check(unsafe { libc::wait(&mut status) }))?;
        if pid as u32 == child {
            let status = std::process::ExitStatus::from_raw(status);
            return Ok(status.code().unwrap_or(128 + status.signal().unwrap_or(0)));
        }
    }
}
