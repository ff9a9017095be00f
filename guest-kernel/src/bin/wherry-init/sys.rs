//! The few system calls that std does not wrap.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A C string of `text`, cut at the first NUL, which none of ours has.
pub fn c_string(text: impl AsRef<OsStr>) -> CString {
    let bytes = text.as_ref().as_bytes();
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// The outcome of a system call that gives -1 on failure.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// mount(2).
pub fn mount(
    source: impl AsRef<OsStr>,
    target: impl AsRef<OsStr>,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> io::Result<()> {
    let (source, target, kind, data) =
        (c_string(source), c_string(target), c_string(kind), c_string(data));
    // SAFETY: all four are NUL-terminated strings that live through the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })
    .map(|_| ())
}

const QUIET: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// Mounts what every init needs; a failure shows soon enough by itself.
pub fn mount_basics() {
    mount_all(&[
        ("devtmpfs", "/dev", libc::MS_NOSUID),
        ("proc", "/proc", QUIET | libc::MS_NOEXEC),
        ("sysfs", "/sys", QUIET | libc::MS_NOEXEC),
    ]);
}

/// Mounts file systems of memory over what the initramfs has there.
pub fn mount_scratch() {
    mount_all(&[("tmpfs", "/run", QUIET), ("tmpfs", "/tmp", QUIET)]);
}

fn mount_all(all: &[(&str, &str, libc::c_ulong)]) {
    for (kind, target, flags) in all {
        let _ = fs::create_dir_all(target);
        // The kernel mounts /dev by itself where it is configured so.
        let _ = mount(kind, target, kind, *flags, "");
    }
}

/// Whether there is a PCI bus with anything on it. Wherry's guests have none.
pub fn has_pci() -> bool {
    fs::read_dir("/sys/bus/pci/devices").is_ok_and(|mut d| d.next().is_some())
}

/// Loads one module file.
pub fn load_module(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open and the parameter string is NUL-terminated; the kernel
    // verifies the content.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        // Loaded already, or a kernel that knows no modules and has everything built in.
        let fine = matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOSYS));
        return if fine { Ok(()) } else { Err(error) };
    }
    Ok(())
}

/// An empty VM. While it exists KVM leaves virtualisation on: with the first VM it turns that on on
/// all CPUs and with the last one off again, and software emulation sometimes freezes there.
pub fn keep_kvm_on() -> io::Result<(File, OwnedFd)> {
    // include/uapi/linux/kvm.h: _IO(KVMIO, 0x01)
    const KVM_CREATE_VM: libc::Ioctl = 0xAE01;
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    // SAFETY: the descriptor is open; the argument is a number, the machine type.
    let fd = check(unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) })?;
    // SAFETY: the call has just returned this descriptor and nobody else owns it.
    Ok((kvm, unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Which kernel messages reach the console: those below `level`.
pub fn console_loglevel(level: i32) {
    const SYSLOG_ACTION_CONSOLE_LEVEL: libc::c_int = 8;
    // SAFETY: this action uses only the number; a null buffer is allowed.
    unsafe { libc::klogctl(SYSLOG_ACTION_CONSOLE_LEVEL, std::ptr::null_mut(), level) };
}

/// The kernel's messages so far, as far as its buffer reaches.
pub fn kernel_log() -> String {
    const SYSLOG_ACTION_READ_ALL: libc::c_int = 3;
    let mut text = vec![0u8; 1 << 18];
    let room = text.len() as libc::c_int;
    // SAFETY: the buffer is writable and as long as the call is told.
    let len = unsafe { libc::klogctl(SYSLOG_ACTION_READ_ALL, text.as_mut_ptr().cast(), room) };
    text.truncate(usize::try_from(len).unwrap_or(0));
    String::from_utf8_lossy(&text).into_owned()
}

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Power off.
    Poweroff,
    /// Reboot.
    Reboot,
}

/// Ends the machine.
pub fn end(how: End) -> ! {
    let command = match how {
        End::Poweroff => libc::RB_POWER_OFF,
        End::Reboot => libc::RB_AUTOBOOT,
    };
    // SAFETY: both calls take plain numbers; as PID 1 there is nothing left that must be saved.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `uname -r`.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
