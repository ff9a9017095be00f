//! Real sockets, and the news of them as the device's event loop gets them.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use wherry_devices::host::Stream;

use super::hub::MAX_CLIENTS;
use super::*;

/// A hub, and an event loop that is told of news alone, as the device's is.
struct Host {
    hub: Hub,
    events: OwnedFd,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn host(patience: Patience) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.vsock");
    let hub = Hub::open(&path, patience).unwrap();
    let events = epoll::create(CreateFlags::CLOEXEC).unwrap();
    let fd = hub.fd();
    // SAFETY: `fd` is open as long as the hub is.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    let flags = EventFlags::IN | EventFlags::ET;
    epoll::add(&events, borrowed, EventData::new_u64(0), flags).unwrap();
    Host { hub, events, path, _dir: dir }
}

impl Host {
    /// Waits until there is news. Returns it.
    fn news(&mut self) -> Vec<(u64, bool)> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(1);
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        epoll::wait(&self.events, spare_capacity(&mut events), Some(&patience)).unwrap();
        assert_eq!(events.len(), 1, "no news");
        let mut news = Vec::new();
        self.hub.news(&mut news);
        news
    }

    /// Waits until this is told of a stream.
    fn told(&mut self, token: u64, gone: bool) {
        while !self.news().contains(&(token, gone)) {}
    }

    /// Waits until this client is sent away.
    fn send_away(&mut self, mut client: UnixStream) {
        client.set_nonblocking(true).unwrap();
        while client.read(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            self.news();
        }
    }

    /// The next client, once there is one.
    fn client(&mut self, token: u64) -> (u32, Box<dyn Stream>) {
        loop {
            if let Some(client) = self.hub.accept(token) {
                return client;
            }
            self.news();
        }
    }

    /// A client that wants port 22, and the device's end.
    fn connected(&mut self, token: u64) -> (UnixStream, Box<dyn Stream>) {
        let mut client = self.call();
        client.write_all(b"CONNECT 22\n").unwrap();
        let (port, stream) = self.client(token);
        assert_eq!(port, 22);
        (client, stream)
    }

    fn call(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }
}

/// What a stream has, once it has something.
fn read(host: &mut Host, stream: &mut dyn Stream) -> Vec<u8> {
    let mut bytes = [0; 100];
    loop {
        match stream.read(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => drop(host.news()),
            got => return bytes[..got.unwrap()].to_vec(),
        }
    }
}

/// Whether the client is sent away without a word.
fn is_sent_away(mut client: UnixStream) -> bool {
    let mut rest = Vec::new();
    match client.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        // It had said more than anybody read.
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_client_gets_its_port_when_the_guest_answers_and_bytes_go_both_ways() {
    let mut host = host(Patience::default());
    assert_eq!(std::fs::metadata(&host.path).unwrap().mode() & 0o777, 0o600);
    let mut client = host.call();
    // In pieces, with bytes of the stream behind it.
    client.write_all(b"CONN").unwrap();
    assert!(host.hub.accept(1).is_none());
    client.write_all(b"ECT 22\nearly").unwrap();
    let (port, mut stream) = host.client(1);
    assert_eq!(port, 22);
    assert_eq!(read(&mut host, &mut *stream), b"early");
    stream.accepted(1 << 30).unwrap();
    assert_eq!(stream.write(b"hello").unwrap(), 5);
    let mut got = [0; 19];
    client.read_exact(&mut got[..14]).unwrap();
    client.read_exact(&mut got[14..]).unwrap();
    assert_eq!(&got, b"OK 1073741824\nhello");
    client.write_all(b"back").unwrap();
    assert_eq!(read(&mut host, &mut *stream), b"back");
    // One half, then the other.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&mut host, &mut *stream), b"");
    stream.write(b"more").unwrap();
    stream.shutdown(Shutdown::Write);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"more");
}

#[test]
fn every_change_is_news_and_a_client_that_is_gone_is_told_as_such() {
    let mut host = host(Patience::default());
    let (mut client, mut stream) = host.connected(7);
    let mut other = host.connected(8);
    // What the device has not read stays no news for ever: the next bytes are.
    for _ in 0..3 {
        host.hub.news(&mut Vec::new());
        client.write_all(b"x").unwrap();
        host.told(7, false);
    }
    // A reader that is slow: there is room again.
    while stream.write(&[0; 4096]).is_ok() {}
    host.hub.news(&mut Vec::new());
    client.set_nonblocking(true).unwrap();
    while client.read(&mut [0; 4096]).is_ok() {}
    host.told(7, false);
    drop(client);
    host.told(7, true);
    other.0.shutdown(Shutdown::Write).unwrap();
    host.told(8, false);
    assert_eq!(other.1.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn a_client_that_talks_nonsense_is_sent_away() {
    let mut host = host(Patience::default());
    for line in [&b"GET / HTTP/1.1\r\n"[..], b"CONNECT\n", b"\n", &[b'C'; 1000]] {
        let mut client = host.call();
        client.write_all(line).unwrap();
        host.news();
        assert!(host.hub.accept(1).is_none());
        assert!(is_sent_away(client));
    }
    let client = host.call();
    client.shutdown(Shutdown::Write).unwrap();
    host.news();
    assert!(host.hub.accept(1).is_none());
    assert!(is_sent_away(client));
    host.connected(1);
}

#[test]
fn a_client_that_says_nothing_is_sent_away_in_time_and_one_whose_guest_is_silent() {
    let at_once = Duration::ZERO;
    let mut host = host(Patience { line: at_once, answer: Duration::from_secs(3600) });
    let silent = host.call();
    let mut trickling = host.call();
    trickling.write_all(b"CONN").unwrap();
    assert!(host.hub.accept(1).is_none());
    host.send_away(silent);
    host.send_away(trickling);

    let mut host = self::host(Patience { line: Duration::from_secs(3600), answer: at_once });
    let (client, stream) = host.connected(5);
    host.told(5, true);
    drop(stream);
    assert!(is_sent_away(client));
    // One that was answered is not.
    let (_client, mut stream) = host.connected(6);
    stream.accepted(9).unwrap();
    let client = host.call();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(!host.news().contains(&(6, true)));
}

#[test]
fn silent_clients_are_few_and_the_next_come_when_they_are_gone() {
    let mut host = host(Patience::default());
    let mut silent: Vec<_> = (0..MAX_CLIENTS).map(|_| host.call()).collect();
    let mut late = host.call();
    late.write_all(b"CONNECT 5\n").unwrap();
    assert!(host.hub.accept(1).is_none(), "there is no room");
    silent.pop();
    host.news();
    let (port, mut stream) = host.hub.accept(1).unwrap();
    assert_eq!(port, 5);
    stream.accepted(1).unwrap();
}

#[test]
fn the_guest_reaches_who_listens_beside_the_socket() {
    let mut host = host(Patience::default());
    assert!(host.hub.connect(3, u32::MAX).is_err());
    let beside = format!("{}_{}", host.path.display(), u32::MAX);
    let listener = UnixListener::bind(&beside).unwrap();
    let mut stream = host.hub.connect(3, u32::MAX).unwrap();
    stream.write(b"hello").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).unwrap();
    server.write_all(b"back").unwrap();
    assert_eq!((&got, &read(&mut host, &mut *stream)[..]), (b"hello", &b"back"[..]));
    drop(listener);
    assert!(host.hub.connect(4, u32::MAX).is_err(), "its socket is there, and nobody listens");
}

#[test]
fn the_guest_reaches_nobody_in_a_folder_that_took_the_place_of_the_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, aside) = (dir.path().join("its"), dir.path().join("aside"));
    std::fs::create_dir(&folder).unwrap();
    let mut hub = Hub::open(&folder.join("web.vsock"), Patience::default()).unwrap();
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let _stranger = UnixListener::bind(folder.join("web.vsock_1234")).unwrap();
    assert!(hub.connect(3, 1234).is_err());
    let _listener = UnixListener::bind(aside.join("web.vsock_1234")).unwrap();
    hub.connect(3, 1234).unwrap();
}

#[test]
fn the_socket_is_taken_once_replaced_when_stale_and_gone_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.vsock");
    drop(UnixListener::bind(&path).unwrap());
    let vsock = Vsock::at(&path);
    assert_eq!(vsock.path(), None);
    vsock.check(&[]).unwrap();
    assert_eq!(vsock.path(), None, "nobody needs it");
    let first = vsock.get().unwrap();
    vsock.get().unwrap();
    assert_eq!(vsock.path(), Some(&*path));
    let error = Vsock::at(&path).get().err().unwrap().to_string();
    assert!(error.contains("web.vsock"), "{error}");
    drop((vsock, first));
    assert!(!path.exists());
    let long = format!("{}/web.vsock", "x".repeat(MAX_PATH - 9));
    for path in ["".into(), "..".into(), "x".repeat(MAX_NAME + 1), long] {
        let error = Vsock::at(path).get().err().unwrap().to_string();
        assert!(error.contains("--vsock path=FILE"), "{error}");
    }
}
