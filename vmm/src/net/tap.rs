//! A tap device of the host.
//!
//! Frames come and go with the header of virtio-net, which is also the kernel's
//! (`IFF_VNET_HDR`): checksums and segmentation stay undone until a frame leaves the host, or for
//! good. A tap opened by name is given back by the kernel when the process ends.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use wherry_devices::host::{Frames, HostFd, Offloads};
use wherry_devices::virtio::net::constants::HEADER;

use super::later::Later;

/// Where a tap is opened.
const DEV_TUN: &str = "/dev/net/tun";
/// Ethernet frames with the header in front and nothing else.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// All that there is.
const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, ecn: true };

/// An open tap. Clones are the same one.
#[derive(Clone)]
pub struct Tap(Arc<File>, Arc<Later<Offloads>>);

/// An error with this text in front.
fn because(what: String) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

impl Tap {
    /// The tap of this name. One that does not exist is made, and brought up, if this process may.
    ///
    /// # Errors
    /// The text says what to do about it.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut request = request(name)?;
        let new = !Path::new("/sys/class/net").join(name).exists();
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEV_TUN)
            .map_err(|e| no_tun(&e))?;
        request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })
            .map_err(|e| refusal(name, new, &e))?;
        if new {
            up(request).map_err(because(format!("cannot bring up tap `{name}`")))?;
        }
        Self::prepare(file).map_err(because(format!("tap `{name}`")))
    }

    /// A tap that this process was started with.
    ///
    /// # Errors
    /// It is none, or not one that can be used.
    pub fn inherited(fd: RawFd) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::other(format!("descriptor {fd} {why}"));
        // SAFETY: fcntl with F_GETFD takes any number.
        if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(wrong("is not open"));
        }
        let mut request = empty();
        // SAFETY: TUNGETIFF writes one ifreq, which `request` is; what `fd` is does not matter.
        check(unsafe { libc::ioctl(fd, libc::TUNGETIFF, &mut request) })
            .map_err(|_| wrong("is not a tap that is attached to a device"))?;
        // SAFETY: all its bits are set or zero.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & FLAGS != FLAGS {
            return Err(wrong("must be a tap with IFF_NO_PI and IFF_VNET_HDR"));
        }
        // SAFETY: it is open, whoever started this process gave it to the tap's only user, and
        // each is taken once: the command line refuses one that is named twice.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        fcntl_setfd(&file, FdFlags::CLOEXEC)?;
        ioctl_fionbio(&file, true)?;
        Self::prepare(file).map_err(because(format!("descriptor {fd}")))
    }

    fn prepare(file: File) -> io::Result<Self> {
        let size = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })?;
        // One that does not refuse now does not refuse later. None at first, since whoever had it
        // before may have left some.
        set(&file, ALL)?;
        set(&file, Offloads::default())?;
        let file = Arc::new(file);
        let later = Later::new({
            let file = file.clone();
            move |offloads| {
                // See above.
                let _ = set(&file, offloads);
            }
        });
        Ok(Self(file, Arc::new(later)))
    }
}

/// Waits for the kernel's lock of all networks.
fn set(tap: &File, offloads: Offloads) -> io::Result<()> {
    let Offloads { csum, tso4, tso6, ecn } = offloads;
    let bits = [
        (csum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
    ];
    let on = bits.into_iter().filter(|(on, _)| *on);
    let bits = on.fold(0, |bits, (_, bit)| bits | bit);
    // SAFETY: TUNSETOFFLOAD takes a number.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
}

fn check(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn empty() -> libc::ifreq {
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    unsafe { std::mem::zeroed() }
}

/// Whether a tap may be called so.
///
/// # Errors
/// It may not; the text says why.
pub fn check_name(name: &str) -> io::Result<()> {
    request(name).map(drop)
}

/// A request about the interface of this name.
fn request(name: &str) -> io::Result<libc::ifreq> {
    let mut request = empty();
    // No pattern (`tap%d`), of which the kernel makes a name of its own; room for the final zero.
    let fine = |byte: u8| byte.is_ascii_graphic() && !b"%/:".contains(&byte);
    let fits = (1..request.ifr_name.len()).contains(&name.len());
    if !fits || !name.bytes().all(fine) || [".", ".."].contains(&name) {
        let why = format!(
            "`{}` is no name of a network interface: those have 1 to 15 letters without spaces, \
             /, : and %",
            name.escape_debug()
        );
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    Ok(request)
}

/// Why no tap can be opened at all.
fn no_tun(e: &io::Error) -> io::Error {
    let way_out = match e.kind() {
        ErrorKind::NotFound => "; `modprobe tun` makes it",
        ErrorKind::PermissionDenied => "; it must be open to this user, as it usually is to all",
        _ => "",
    };
    io::Error::new(e.kind(), format!("cannot open {DEV_TUN}: {e}{way_out}"))
}

fn refusal(name: &str, new: bool, e: &io::Error) -> io::Error {
    let text = match e.raw_os_error() {
        Some(libc::EBUSY) => format!("tap `{name}` is in use by another program"),
        Some(libc::EPERM | libc::EACCES) if new => format!(
            "there is no tap `{name}`, and no permission to make one; \
             `ip tuntap add {name} mode tap user $USER` makes it"
        ),
        Some(libc::EPERM | libc::EACCES) => {
            format!(
                "no permission to use tap `{name}`, which belongs to somebody else; \
                 `ip tuntap add {name} mode tap user $USER` makes one for this user"
            )
        }
        Some(libc::EINVAL) => {
            format!("`{name}` is no tap with one queue (`ip tuntap add {name} mode tap`)")
        }
        _ => format!("cannot open tap `{name}`: {e}"),
    };
    io::Error::new(e.kind(), text)
}

fn up(mut request: libc::ifreq) -> io::Result<()> {
    // SAFETY: socket takes any numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    // SAFETY: it was opened a moment ago, for this.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: SIOCGIFFLAGS reads and writes one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: the kernel wrote the flags.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
}

impl Frames for Tap {
    fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(frame)
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        // A frame is written whole or not at all. Nobody says when there would be room for one that
        // is not.
        (&*self.0).write(frame).map(drop).map_err(|_| ErrorKind::Other.into())
    }

    fn can_offload(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.1.set(offloads);
        Ok(())
    }

    fn fd(&self) -> HostFd {
        self.0.clone()
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
