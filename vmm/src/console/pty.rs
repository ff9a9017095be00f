//! The pseudo-terminal of `--serial pty`.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::poll::wait;

/// How often a terminal that nobody has open, or that says it has room and has none, is asked.
const AGAIN: Duration = Duration::from_millis(50);

/// Opens a pseudo-terminal in raw mode. Returns our end and the path of its user's.
///
/// Raw, because in its default mode a terminal echoes what we write: the guest's output would come
/// back as its input.
pub(super) fn open() -> io::Result<(File, PathBuf)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = File::from(openpt(flags)?);
    rustix::io::ioctl_fionbio(&master, true)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let path = PathBuf::from(OsStr::from_bytes(name.as_bytes()));
    let mut mode = tcgetattr(&master)?;
    mode.make_raw();
    tcsetattr(&master, OptionalActions::Now, &mode)?;
    // Linux says "nobody has it open" only of a terminal that somebody had.
    drop(OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?);
    Ok((master, path))
}

/// Our end, for output. What is written while nobody has the other end open is discarded: who
/// opens it wants to see what is new.
pub(super) struct PtyOut(pub(super) File);

impl Write for PtyOut {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if wait(&self.0, PollFlags::OUT)?.contains(PollFlags::HUP) {
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
        wait(&self.0, PollFlags::IN)?;
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
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;
    use crate::poll;

    /// Waits until nobody has the other end open: a process that another test starts has it, too,
    /// until it is the program that it is to be.
    fn alone(master: &File) {
        let end = Instant::now() + Duration::from_secs(60);
        while !poll::look(master, PollFlags::OUT).unwrap().contains(PollFlags::HUP) {
            assert!(Instant::now() < end, "somebody has it open");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_pty_neither_echoes_nor_edits_nor_keeps_what_nobody_reads() {
        let (master, path) = open().unwrap();
        alone(&master);
        let (mut out, mut input) = (PtyOut(master.try_clone().unwrap()), PtyIn(master));
        // More than a terminal holds. Apart, since one that waits would do so for ever.
        let (mut unread, (done, is_done)) = (PtyOut(out.0.try_clone().unwrap()), channel());
        std::thread::spawn(move || done.send(unread.write_all(&[b'o'; 100_000]).is_ok()));
        assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(true), "it waits for a user");
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
            let typed = poll::look(&input.0, PollFlags::IN).unwrap();
            assert!(typed.is_empty(), "the guest's output came back as input");
            user.write_all(b"a\x03\r\x13").unwrap();
            let mut typed = [0; 4];
            input.read_exact(&mut typed).unwrap();
            assert_eq!(&typed, b"a\x03\r\x13");
            drop(user);
            alone(&out.0);
            out.write_all(b"between").unwrap();
        }
    }
}
