//! The process that reads an image, for this crate's tests: Wherry's own programs start themselves.
//! It also misbehaves when it is told to, as one would that an image has taken over.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::exit;

use wherry_rootfs::{Limits, reader, sandbox};

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    reader::serve_if_asked(&arguments);
    let deed = arguments.get(1).and_then(|deed| deed.to_str()).unwrap_or_default();
    match deed {
        "landlock" => landlock(),
        "hang" => {
            // The last of the limits that the reader gives.
            let seconds = arguments.last().and_then(|number| number.to_str()?.parse().ok());
            confine(&Limits { cpu_seconds: seconds.unwrap_or(1), ..Limits::default() });
            loop {
                std::hint::spin_loop();
            }
        }
        "sleep" => loop {
            std::thread::park();
        },
        "nothing" => {}
        "garbage" => {
            let _ = std::io::stdout().write_all(&[0xFF; 8192]);
        }
        "panic" => {
            std::panic::set_hook(Box::new(|_| {}));
            confined();
            panic!("as a parser would");
        }
        "memory" => {
            confined();
            let much: Vec<u8> = Vec::with_capacity(1 << 40);
            exit(much.capacity().min(3) as i32);
        }
        "file" => {
            confined();
            exit(i32::from(stdout().write_at(&[1], 1 << 40).is_err()) + 10);
        }
        call => forbidden(call),
    }
}

fn confined() {
    confine(&Limits::default());
}

fn confine(limits: &Limits) {
    if reader::confine(limits).is_err() {
        exit(90);
    }
}

/// Standard output, to be written at positions.
fn stdout() -> File {
    // SAFETY: the process was started with it, and nothing else here uses it at the same time.
    File::from(unsafe { OwnedFd::from_raw_fd(1) })
}

/// Exits with 0 if Landlock alone keeps a file shut, with 7 if this kernel has none.
fn landlock() {
    match sandbox::forbid_all_files() {
        Ok(true) => exit(i32::from(File::open("/proc/self/status").is_ok())),
        Ok(false) => exit(7),
        Err(_) => exit(91),
    }
}

fn forbidden(call: &str) {
    let path = c"/etc/hostname".as_ptr();
    let image = std::io::stdin().as_raw_fd();
    confined();
    // SAFETY: none of them has an effect on this process's memory: either the filter ends the
    // process, or they fail, or they make what nobody uses.
    unsafe {
        match call {
            "socket" => _ = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0),
            "open" => _ = libc::open(path, libc::O_RDONLY),
            "exec" => _ = libc::execl(path, path, std::ptr::null::<libc::c_char>()),
            "fork" => _ = libc::fork(),
            "kill" => _ = libc::kill(libc::getppid(), 0),
            "ioctl" => _ = libc::ioctl(image, libc::TCGETS, std::ptr::null_mut::<u8>()),
            "write-image" => _ = libc::pwrite(image, path.cast(), 1, 0),
            "code" => {
                let (read, exec) = (libc::PROT_READ, libc::PROT_EXEC);
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                _ = libc::mmap(std::ptr::null_mut(), 4096, read | exec, flags, -1, 0);
            }
            "map-image" => {
                let flags = libc::MAP_PRIVATE;
                _ = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, image, 0);
            }
            "ptrace" => _ = libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0),
            _ => exit(92),
        }
    }
    exit(0);
}
