//! The guest's end with an other side that is slow, lies, goes and comes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use wherry_devices::virtio::net::constants::MAX_FRAME;

use super::*;

/// What the event loop hears of a network: news, each once.
struct Loop {
    epoll: Epoll,
    _fd: HostFd,
}

impl Loop {
    fn of(user: &User) -> Self {
        let (epoll, fd) = (Epoll::new().unwrap(), user.fd());
        let news = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), news).unwrap();
        Self { epoll, _fd: fd }
    }

    fn has_news(&self) -> bool {
        self.epoll.wait(0, &mut [EpollEvent::default()]).unwrap() > 0
    }
}

fn up() -> (User, UnixStream, Loop) {
    let user = User::new().unwrap();
    let hears = Loop::of(&user);
    assert!(!user.is_connected() && !user.clone().link());
    let other = connect(&user);
    assert!(hears.has_news() && !hears.has_news(), "once");
    (user, other, hears)
}

fn connect(user: &User) -> UnixStream {
    let (own, other) = UnixStream::pair().unwrap();
    other.set_nonblocking(true).unwrap();
    user.connect(Stream::new(own).unwrap()).unwrap();
    other
}

#[test]
fn frames_lose_their_header_on_the_way_out_and_get_an_empty_one_on_the_way_in() {
    let (mut user, mut other, hears) = up();
    user.write(&[&[0; HEADER][..], &[7; 60]].concat()).unwrap();
    let mut bytes = [0xff; MAX_FRAME];
    let len = other.read(&mut bytes).unwrap();
    assert_eq!(bytes[..len], [&[0, 0, 0, 60][..], &[7; 60]].concat());
    other.write_all(&[0, 0, 0, 2, 8, 9]).unwrap();
    assert!(hears.has_news());
    bytes.fill(0xff);
    assert_eq!(user.read(&mut bytes).unwrap(), HEADER + 2);
    assert_eq!(bytes[..HEADER + 3], [&[0; HEADER][..], &[8, 9, 0xff]].concat());
    assert_eq!(user.read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(!user.can_offload() && user.set_offloads(Offloads::default()).is_ok());
    user.set_offloads(Offloads { csum: true, ..Offloads::default() }).unwrap_err();
}

#[test]
fn there_is_news_when_there_is_room_again_and_only_then() {
    let (mut user, mut other, hears) = up();
    let full = std::iter::repeat_with(|| user.write(&[0; 3000])).find_map(Result::err);
    assert_eq!(full.unwrap().kind(), ErrorKind::WouldBlock);
    assert!(!hears.has_news());
    let mut bytes = vec![0; 1 << 16];
    while other.read(&mut bytes).is_ok() {}
    assert!(hears.has_news() && user.link());
    user.write(&[0; 3000]).unwrap();
    // With room there is none of it.
    while other.read(&mut bytes).is_ok() {}
    assert!(!hears.has_news());
    // What is half done goes on by itself, with no frame behind it.
    while user.write(&[0; 3000]).is_ok() {}
    while other.read(&mut bytes).is_ok() {}
    assert!(hears.has_news() && user.link() && !lock(&user.0.line).full);
}

#[test]
fn what_is_no_stream_of_frames_takes_the_link_down_and_another_brings_it_back() {
    let (mut user, mut other, hears) = up();
    let mut bytes = [0; MAX_FRAME];
    for lie in [&[0; 4][..], &[0xff; 4], &[]] {
        other.write_all(lie).unwrap();
        if lie.is_empty() {
            drop(other);
        }
        assert!(hears.has_news() && user.link(), "nobody has looked");
        assert!(!user.wait_told(&[], Instant::now()));
        let error = loop {
            match user.read(&mut bytes) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => break e.kind(),
                Ok(len) => panic!("{len}"),
            }
        };
        // Reset: it has not read all that was sent.
        assert!(matches!(error, ErrorKind::InvalidData | ErrorKind::ConnectionReset), "{error}");
        assert!(user.wait_told(&[], Instant::now()), "who watches passt knows");
        assert!(hears.has_news() && !user.link() && !user.is_connected());
        assert_eq!(user.read(&mut bytes).unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(user.write(&[0; 80]).unwrap_err().kind(), ErrorKind::NotConnected, "lost");
        assert!(user.disconnect().is_some() && user.disconnect().is_none());
        other = connect(&user);
        assert!(hears.has_news() && user.link());
        user.write(&[0; 80]).unwrap();
    }
    assert!(user.disconnect().is_none() && hears.has_news() && !user.link());
}

#[test]
fn news_that_nobody_heard_is_news_again() {
    let (mut user, mut other, hears) = up();
    other.write_all(&[0, 0, 0, 1, 5]).unwrap();
    assert!(hears.has_news() && !hears.has_news());
    user.wake();
    assert!(hears.has_news());
}
