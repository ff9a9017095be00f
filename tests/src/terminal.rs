//! Terminals for tests.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{ControlModes, InputModes, LocalModes, OutputModes, tcgetattr};

use crate::Result;

/// A terminal, and what is typed at it.
pub fn open() -> Result<(File, File)> {
    let keyboard = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?);
    grantpt(&keyboard)?;
    unlockpt(&keyboard)?;
    let path = ptsname(&keyboard, Vec::new())?.into_string()?;
    let terminal =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?;
    Ok((terminal, keyboard))
}

/// A line at a time, shown as it is typed, and Ctrl-C is a signal: all of what raw mode is without.
pub const COOKED: LocalModes = LocalModes::ICANON.union(LocalModes::ECHO).union(LocalModes::ISIG);

/// How a terminal is set.
pub type Modes = (InputModes, OutputModes, ControlModes, LocalModes);

/// How this one is.
pub fn modes(terminal: &File) -> Result<Modes> {
    let t = tcgetattr(terminal)?;
    Ok((t.input_modes, t.output_modes, t.control_modes, t.local_modes))
}
