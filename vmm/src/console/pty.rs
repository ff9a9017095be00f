//! The pseudo-terminal of `--serial pty`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// How often a terminal that nobody has open, or that says it has room and has none, is asked.
const AGAIN: Duration = Duration::from_millis(50);

/// Opens a pseudo-terminal in raw mode. Returns our end and the path of its user's.
///
/// Raw, because in its default mode a terminal echoes what we write: the guest's output would come
/// back as its input.
pub(super) fn open() -> io::Result<(File, PathBuf)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: posix_openpt returns a new descriptor or -1.
    let fd = unsafe { libc::posix_openpt(flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and owned by nobody else.
    let master = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut name = [0u8; 128];
    // SAFETY: `fd` is a pty master; `name` is writable for the length given.
    let failed = unsafe {
        libc::grantpt(fd) != 0
            || libc::unlockpt(fd) != 0
            || libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len()) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    let text = std::ffi::CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    let path = PathBuf::from(text.to_string_lossy().into_owned());
    make_raw(fd)?;
    // Linux says "nobody has it open" only of a terminal that somebody had.
    drop(OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?);
    Ok((master, path))
}

fn make_raw(fd: RawFd) -> io::Result<()> {
    let mut mode = std::mem::MaybeUninit::uninit();
    // SAFETY: `mode` has room for one termios, which tcgetattr fills in.
    if unsafe { libc::tcgetattr(fd, mode.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded.
    let mut mode: libc::termios = unsafe { mode.assume_init() };
    // SAFETY: `mode` is an initialised termios that outlives both calls.
    let set = unsafe {
        libc::cfmakeraw(&mut mode);
        libc::tcsetattr(fd, libc::TCSANOW, &mode)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for `events`, or for everybody to have closed the other end; says what there is.
fn wait(file: &File, events: i16) -> io::Result<i16> {
    let mut fd = libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 };
    // SAFETY: `fd` is a valid pollfd that outlives the call.
    if unsafe { libc::poll(&mut fd, 1, -1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd.revents)
}

/// Our end, for output. What is written while nobody has the other end open is discarded: who
/// opens it wants to see what is new.
pub(super) struct PtyOut(pub(super) File);

impl Write for PtyOut {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if wait(&self.0, libc::POLLOUT)? & libc::POLLHUP != 0 {
            return Ok(buf.len());
        }
        match self.0.write(buf) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(AGAIN);
                Err(io::ErrorKind::Interrupted.into())
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Our end, for input. Users come and go: it never ends.
pub(super) struct PtyIn(pub(super) File);

impl Read for PtyIn {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        wait(&self.0, libc::POLLIN)?;
        match self.0.read(buf) {
            // Nobody has it open, and all that was typed has been read.
            Err(e)
                if e.raw_os_error() == Some(libc::EIO) || e.kind() == io::ErrorKind::WouldBlock =>
            {
                std::thread::sleep(AGAIN);
                Err(io::ErrorKind::Interrupted.into())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(file: &File, events: i16) -> bool {
        let mut fd = libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 };
        // SAFETY: `fd` is a valid pollfd that outlives the call, which does not wait.
        unsafe { libc::poll(&mut fd, 1, 0) > 0 && fd.revents & events != 0 }
    }

    #[test]
    fn a_pty_neither_echoes_nor_edits_nor_keeps_what_nobody_reads() {
        let (master, path) = open().unwrap();
        let (mut out, mut input) = (PtyOut(master.try_clone().unwrap()), PtyIn(master));
        // More than a terminal holds.
        out.write_all(&[b'o'; 100_000]).unwrap();
        for _ in 0..2 {
            let mut user = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOCTTY)
                .open(&path)
                .unwrap();
            out.write_all(b"new\n").unwrap();
            let mut seen = [0; 4];
            user.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"new\n");
            assert!(!ready(&input.0, libc::POLLIN), "the guest's output came back as input");
            user.write_all(b"a\x03\r\x13").unwrap();
            let mut typed = [0; 4];
            input.read_exact(&mut typed).unwrap();
            assert_eq!(&typed, b"a\x03\r\x13");
            drop(user);
            out.write_all(b"between").unwrap();
        }
    }
}
