//! Names and descriptors that are none, and a real tap where one can be made.

use std::time::{Duration, Instant};

use wherry_devices::virtio::net::constants::ETHERNET;

use super::*;

#[test]
fn what_is_no_name_of_an_interface_is_refused() {
    for name in ["", "tap%d", "a b", "a/b", "..", ".", "sixteen-letters-", "tap\0", "täp", "a:1"] {
        let error = request(name).err().unwrap();
        assert!(error.to_string().contains("no name"), "{name}: {error}");
    }
    request("fifteen-letters").unwrap();
}

#[test]
fn what_is_no_tap_is_refused() {
    let file = tempfile::tempfile().unwrap();
    for (fd, why) in [(-1, "not open"), (1, "not open"), (9999, "not open")] {
        let error = Tap::inherited(fd).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
    let error = Tap::inherited(file.as_raw_fd()).err().unwrap().to_string();
    assert!(error.contains("not a tap"), "{error}");
    // It is still the caller's.
    file.metadata().unwrap();
    // An interface that is no tap.
    let error = Tap::open("lo").err().unwrap().to_string();
    assert!(error.contains("lo") || error.contains(DEV_TUN), "{error}");
}

#[test]
fn an_error_says_what_to_do() {
    let text = |errno, new| refusal("web0", new, &io::Error::from_raw_os_error(errno)).to_string();
    assert!(text(libc::EBUSY, false).contains("in use by another program"));
    assert!(text(libc::EPERM, true).contains("ip tuntap add web0 mode tap user"));
    let text_of_others = text(libc::EPERM, false);
    assert!(text_of_others.contains("no permission to use tap `web0`, which belongs to somebody"));
    assert!(text_of_others.contains("`ip tuntap add web0 mode tap user $USER`"));
    let text_of_none = no_tun(&ErrorKind::NotFound.into()).to_string();
    assert!(text_of_none.contains("/dev/net/tun") && text_of_none.contains("`modprobe tun`"));
    assert!(text(libc::EINVAL, false).contains("no tap with one queue"));
}

/// A tap of this name with another end in its hands, if this process may make one.
fn made(name: &str) -> Option<Tap> {
    match Tap::open(name) {
        Ok(tap) => Some(tap),
        Err(e) => {
            // Not `eprintln`, whose words nobody sees of a test that passes.
            let _ = writeln!(io::stderr(), "net::tap: not run, no tap can be made here: {e}");
            None
        }
    }
}

/// A packet socket on the other side of a tap.
fn other_end(name: &str) -> File {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: socket takes any numbers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, all.into()) };
    check(fd).unwrap();
    // SAFETY: opened a moment ago.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).unwrap();
    // SAFETY: plain data.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index.trim().parse().unwrap();
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is one of `len` bytes.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), len) }).unwrap();
    File::from(socket)
}

/// An Ethernet frame of an experimental kind.
fn frame(byte: u8) -> Vec<u8> {
    let mut frame = vec![byte; HEADER + ETHERNET + 50];
    frame[..HEADER].fill(0);
    frame[HEADER..][..ETHERNET]
        .copy_from_slice(&[2, 0, 0, 0, 0, byte, 2, 0, 0, 0, 0, 7, 0x88, 0xb5]);
    frame
}

/// Whether frames through it need not be cut into segments.
fn cuts_segments(name: &str) -> bool {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GTSO: u32 = 0x1e;
    let (mut request, mut value) = (request(name).unwrap(), [ETHTOOL_GTSO, 0]);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // SAFETY: the request points to an ethtool_value, which is two words.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) }).unwrap();
    value[1] != 0
}

/// Waits until it is so: offloads are set by a thread.
fn soon(what: &str, so: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_pass_a_real_tap_both_ways_and_it_is_taken_once() {
    let name = format!("wt{}", std::process::id() % 1_000_000);
    let Some(mut tap) = made(&name) else { return };
    let text = Tap::open(&name).err().unwrap().to_string();
    assert!(text.contains("in use by another program"), "{text}");
    let mut other = other_end(&name);
    tap.write(&frame(8)).unwrap();
    let mut bytes = vec![0; 2048];
    loop {
        // The kernel greets its neighbours on a link that is new.
        let len = other.read(&mut bytes).unwrap();
        if bytes[..len] == frame(8)[HEADER..] {
            break;
        }
    }
    other.write_all(&frame(9)[HEADER..]).unwrap();
    loop {
        match tap.read(&mut bytes) {
            Ok(len) if bytes[HEADER..len] == frame(9)[HEADER..] => break,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            other => drop(other.unwrap()),
        }
    }
    tap.set_offloads(ALL).unwrap();
    soon("it is left to the guest", || cuts_segments(&name));
    tap.set_offloads(Offloads::default()).unwrap();
    soon("it is not", || !cuts_segments(&name));
    // The same one by its descriptor, whose other owner is gone.
    let fd = rustix::io::dup(&tap.0).unwrap();
    drop(tap);
    let mut tap = Tap::inherited(std::os::fd::IntoRawFd::into_raw_fd(fd)).unwrap();
    tap.write(&frame(10)).unwrap();
    drop(tap);
    soon("it was made for this process", || !Path::new("/sys/class/net").join(&name).exists());
}
