//! The ways out of the lab for the command's streams and for what init says: virtio-serial ports,
//! or the PC's serial ports where there is no virtio.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use wherry_guest_kernel::labconf::{PORTS, Port, SERIAL_PORTS};

use crate::{nudge, sys};

/// The caller's ends of these are the command's streams.
pub struct Ports {
    /// To the command; nothing comes in over serial ports.
    pub input: Option<File>,
    /// Its output.
    pub out: Option<File>,
    /// Its errors.
    pub err: Option<File>,
    /// Lines from init.
    pub control: File,
}

/// Opens the virtio-serial ports by their names; they appear soon after the driver is loaded.
pub fn virtio() -> Result<Ports, String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    // Each is opened once: closing the input would throw away what is in it.
    let open = |wanted: Port| loop {
        match port(wanted) {
            Some(file) => return Ok(file),
            None if Instant::now() > deadline => {
                return Err(format!("no port {}", PORTS[wanted as usize]));
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    nudge::answer(open(Port::Nudge)?);
    let (control, out, err) = (open(Port::Control)?, open(Port::Out)?, open(Port::Err)?);
    let mut input = open(Port::In)?;
    // The caller's first byte means nothing; until it is there, reading gives a false end of file.
    while Instant::now() < deadline && !matches!(input.read(&mut [0]), Ok(1)) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(Ports { input: Some(input), out: Some(out), err: Some(err), control })
}

fn port(port: Port) -> Option<File> {
    let wanted = PORTS[port as usize];
    let class = Path::new("/sys/class/virtio-ports");
    let node = fs::read_dir(class).ok()?.find_map(|entry| {
        let entry = entry.ok()?;
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == wanted).then(|| entry.file_name())
    })?;
    let read = matches!(port, Port::In | Port::Nudge);
    OpenOptions::new().read(read).write(port != Port::In).open(Path::new("/dev").join(node)).ok()
}

/// Opens the PC's serial ports: bytes go out as they are, at full speed.
pub fn serial() -> Result<Ports, String> {
    let open = |path: &str| raw_tty(path).map_err(|e| format!("{path}: {e}"));
    let [out, err, control] = SERIAL_PORTS;
    let (out, err) = (open(out)?, open(err)?);
    Ok(Ports { input: None, out: Some(out), err: Some(err), control: open(control)? })
}

fn raw_tty(path: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let tty = options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?;
    // SAFETY: all-zero is a valid termios; tcgetattr fills it.
    let mut mode: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `mode` lives through all calls, which change nothing else.
    unsafe {
        sys::check(libc::tcgetattr(tty.as_raw_fd(), &mut mode))?;
        libc::cfmakeraw(&mut mode);
        mode.c_cflag = mode.c_cflag & !libc::CBAUD | libc::B115200 | libc::CLOCAL;
        sys::check(libc::tcsetattr(tty.as_raw_fd(), libc::TCSANOW, &mode))?;
    }
    Ok(tty)
}
