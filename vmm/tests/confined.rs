//! What a process may do once it has confined itself. Each case is a process with one thread: this
//! program again.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use wherry_vmm::confine::{ConfineError, Needs, Use, enter, landlock};
use wherry_vmm::memory::{Backing, Ram};

/// First argument of such a process; then come the case and a folder.
const CASE: &str = "--case";
const MIB: u64 = 1 << 20;

type Case = fn(&Path);

/// Each by its name.
macro_rules! cases {
    ($($case:ident,)*) => { [$((stringify!($case), $case as Case),)*] };
}

const CASES: [(&str, Case); 4] = cases![
    what_is_open_stays_and_nothing_else_is_opened,
    nothing_is_executed_bound_or_signalled,
    files_have_a_limit_and_cores_none_of_the_guest,
    a_process_that_has_threads_is_not_taken_for_confined,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, name, folder] = &arguments[..]
        && first == CASE
    {
        let case = CASES.iter().find(|(case, _)| case == name).expect("a case").1;
        case(Path::new(folder));
        return ExitCode::SUCCESS;
    }
    // As a filter of cargo test's.
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    let mut failed = 0;
    for (name, _) in CASES.iter().filter(|(name, _)| wanted.is_none_or(|part| name.contains(part)))
    {
        // On a file system that has files without names.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let own = std::env::current_exe().unwrap();
        let status = Command::new(own).args([CASE, name]).arg(folder.path()).status().unwrap();
        println!("test {name} ... {}", if status.success() { "ok" } else { "FAILED" });
        failed += u32::from(!status.success());
    }
    ExitCode::from(u8::from(failed > 0))
}

fn made(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir(&path).unwrap();
    path
}

fn open(folder: &Path) -> File {
    File::open(folder).unwrap()
}

/// It is forbidden.
fn refused<T>(what: &str, done: std::io::Result<T>) {
    match done {
        Ok(_) => panic!("{what}: allowed"),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied, "{what}: {e}"),
    }
}

/// Confines this process. False, and said, where nothing forbids files.
fn confined(needs: Needs) -> bool {
    let has = enter(needs).unwrap();
    assert_eq!(has, landlock::version().is_some());
    if !has {
        let _ = writeln!(std::io::stderr(), "not run: this kernel has no Landlock");
    }
    has
}

/// Whether this is an open folder.
fn is_folder(fd: i32) -> bool {
    // SAFETY: zeros are a stat, which the call fills; any number may be asked about.
    let stat = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut stat) == 0).then_some(stat)
    };
    stat.is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn what_is_open_stays_and_nothing_else_is_opened(folder: &Path) {
    let outside = folder.join("outside");
    fs::write(&outside, "secret").unwrap();
    let [runtime, sockets, written, read, memory] =
        ["runtime", "sockets", "written", "read", "memory"].map(|name| made(folder, name));
    for disks in [&written, &read] {
        fs::write(disks.join("disk"), [0; 512]).unwrap();
    }
    drop(UnixListener::bind(sockets.join("move")).unwrap());
    let mut needs = Needs::default();
    needs.folder(open(&runtime), Use::Sockets).unwrap();
    needs.beside(&sockets.join("move"), Use::Remove).unwrap();
    needs.folder(open(&written), Use::Disk { written: true }).unwrap();
    needs.folder(open(&read), Use::Disk { written: false }).unwrap();
    let backing = Backing::open(Some(&memory)).unwrap();
    needs.folder(backing.folder().unwrap(), Use::Memory).unwrap();
    let mut held = File::open(&outside).unwrap();
    let there = UnixListener::bind(folder.join("there")).unwrap();
    if !confined(needs) {
        return;
    }
    // Of all the folders the one of the memory, which is used without its path.
    let left = (0..100).filter(|fd| is_folder(*fd)).count();
    assert_eq!(left, 1, "folders are still open");
    // What is open.
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "secret");
    // Others' files.
    refused("open", File::open(&outside));
    refused("list", fs::read_dir(folder));
    refused("list the runtime folder", fs::read_dir(&runtime));
    refused("make", File::create(folder.join("new")));
    refused("remove", fs::remove_file(&outside));
    refused("truncate", File::options().write(true).truncate(true).open(&outside));
    refused("link", std::os::unix::fs::symlink("/etc/passwd", runtime.join("link")));
    refused("make a folder", fs::create_dir(runtime.join("folder")));
    for path in ["/etc/passwd", "/dev/null", "/proc/self/status", "/dev/kvm"] {
        refused(path, File::open(path));
    }
    // Sockets are made under another name, and renamed; a lock is beside each.
    let socket = UnixListener::bind(runtime.join(".web.new")).unwrap();
    fs::rename(runtime.join(".web.new"), runtime.join("web.sock")).unwrap();
    drop(socket);
    fs::remove_file(runtime.join("web.sock")).unwrap();
    File::options().write(true).create(true).truncate(false).open(runtime.join("x.lock")).unwrap();
    refused("read a lock", File::open(runtime.join("x.lock")));
    fs::remove_file(runtime.join("x.lock")).unwrap();
    fs::remove_file(sockets.join("move")).unwrap();
    refused("make a socket", UnixListener::bind(sockets.join("other")));
    // A peer on this host.
    UnixStream::connect(there.local_addr().unwrap().as_pathname().unwrap()).unwrap();
    // Disks and memory.
    let both = |path: &Path| File::options().read(true).write(true).open(path.join("disk"));
    both(&written).unwrap().write_at(b"x", 0).unwrap();
    refused("write a disk that is only read", both(&read));
    File::open(read.join("disk")).unwrap();
    refused("make a disk", File::create(written.join("new")));
    refused("remove a disk", fs::remove_file(written.join("disk")));
    Ram::new(MIB, &backing).unwrap();
    Ram::new(MIB, &Backing::Memfd).unwrap();
}

fn nothing_is_executed_bound_or_signalled(folder: &Path) {
    let mut needs = Needs::default();
    needs.folder(open(folder), Use::Sockets).unwrap();
    let bound = TcpListener::bind("127.0.0.1:0").unwrap();
    let version = landlock::version().unwrap_or(0);
    if !confined(needs) {
        return;
    }
    refused("execute", Command::new("/bin/true").status());
    TcpStream::connect(bound.local_addr().unwrap()).unwrap();
    if version >= 4 {
        refused("bind", TcpListener::bind("127.0.0.1:0"));
    }
    if version >= 6 {
        let parent = rustix::process::getppid().unwrap();
        assert!(rustix::process::test_kill_process(parent).is_err(), "the parent is signalled");
        rustix::process::test_kill_process(rustix::process::getpid()).unwrap();
    }
    // It is no program that gets more rights than this one.
    assert!(rustix::thread::no_new_privs().unwrap());
}

fn files_have_a_limit_and_cores_none_of_the_guest(_: &Path) {
    // As the first thing that the VM's process does. SAFETY: ignoring a signal installs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let log = tempfile::tempfile().unwrap();
    let mut needs = Needs::default();
    needs.largest_file = Some(8 * MIB);
    enter(needs).unwrap();
    let limit = |resource| getrlimit(resource).maximum;
    assert_eq!((limit(Resource::Core), limit(Resource::Fsize)), (Some(0), Some(8 * MIB)));
    assert!(limit(Resource::Nofile).is_some_and(|most| most <= 4096));
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    // A memory file is a file.
    let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len(8 * MIB).unwrap();
    for file in [&memory, &log] {
        file.write_at(b"x", 8 * MIB - 1).unwrap();
        let error = file.write_at(b"x", 8 * MIB).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    }
    assert!(memory.set_len(8 * MIB + 1).is_err() && memory.as_fd().try_clone_to_owned().is_ok());
}

fn a_process_that_has_threads_is_not_taken_for_confined(_: &Path) {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || wait.recv());
    assert!(matches!(enter(Needs::default()), Err(ConfineError::Threads(2))));
    File::open("/etc/passwd").unwrap();
    drop(go);
    let _ = other.join();
}
