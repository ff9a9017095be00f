use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use socket2::SockRef;

use super::super::words::{By, Side};
use super::*;
use crate::tests::tls::Hosts;

const GUARD: Duration = Duration::from_secs(60);

fn end(side: Side) -> End {
    End { side, by: By::Folder }
}

/// Two ends that have shaken hands.
fn pair() -> (Box<Secured>, Box<Secured>) {
    let hosts = Hosts::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let client = ClientConnection::new(hosts.client().config, name).unwrap();
    let server = ServerConnection::new(hosts.server().config).unwrap();
    let mut near = Secured::new(near, client.into(), end(Side::Source));
    let mut far = Secured::new(far, server.into(), end(Side::Destination));
    let far = thread::spawn(move || {
        far.greet(GUARD, &|| false).unwrap();
        far
    });
    near.greet(GUARD, &|| false).unwrap();
    (Box::new(near), Box::new(far.join().unwrap()))
}

fn send(out: &mut dyn WriteHalf, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) => assert!(is_later(&e), "{e:?}"),
        }
    }
    while let Err(e) = out.flush() {
        assert!(is_later(&e), "{e:?}");
    }
}

/// What comes until the end, and what that is.
fn receive(input: &mut dyn Read) -> (Vec<u8>, io::Result<()>) {
    let (mut all, mut buf) = (Vec::new(), vec![0; 100_000]);
    loop {
        match input.read(&mut buf) {
            Ok(0) => return (all, Ok(())),
            Ok(n) => all.extend(&buf[..n]),
            Err(e) if is_later(&e) => {}
            Err(e) => return (all, Err(e)),
        }
    }
}

/// How often of 200 times nobody held the session.
fn free(shared: &Shared) -> usize {
    let is_free = |_: &u32| {
        thread::sleep(Duration::from_millis(1));
        shared.session.try_lock().is_ok()
    };
    (0..200).filter(is_free).count()
}

#[test]
fn nobody_holds_the_session_while_it_waits() {
    let (near, far) = pair();
    let shared = near.0.clone();
    let ((mut input, mut out), _far) = (near.split().unwrap(), far.split().unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let until_over = |mut wait: Box<dyn FnMut() -> io::Result<usize> + Send>| {
        let over = over.clone();
        thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                if let Err(e) = wait() {
                    assert!(is_later(&e), "{e:?}");
                }
            }
        })
    };
    let reader = until_over(Box::new(move || input.read(&mut [0; 10])));
    let while_reading = free(&shared);
    // Nobody reads at the other end, so this one soon waits for room, and the reader still waits.
    let writer = until_over(Box::new(move || out.write(&[5; 50_000])));
    let while_writing = free(&shared);
    over.store(true, Ordering::SeqCst);
    for thread in [reader, writer] {
        thread.join().unwrap();
    }
    assert!(while_reading > 100 && while_writing > 100, "{while_reading} {while_writing}");
}

#[test]
fn keys_are_renewed_while_both_sides_send() {
    let (near, far) = pair();
    let sessions = [near.0.clone(), far.0.clone()];
    let (near, far) = (near.split().unwrap(), far.split().unwrap());
    let workers = [near, far].map(|(mut input, mut out)| {
        let receiver = thread::spawn(move || receive(&mut *input).0);
        let sender = thread::spawn(move || {
            for n in 0..200u8 {
                send(&mut *out, &[n; 40_000]);
            }
            out
        });
        (sender, receiver)
    });
    for _ in 0..10 {
        for session in &sessions {
            session.session().tls.refresh_traffic_keys().unwrap();
        }
        thread::sleep(Duration::from_millis(1));
    }
    let (senders, receivers): (Vec<_>, Vec<_>) = workers.into_iter().unzip();
    let _outs: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    for session in &sessions {
        session.session().tls.send_close_notify();
        while let Err(e) = session.push() {
            assert!(is_later(&e), "{e:?}");
        }
    }
    for receiver in receivers {
        let got = receiver.join().unwrap();
        assert_eq!(got.len(), 200 * 40_000);
        assert!((0..200u8).all(|n| got[usize::from(n) * 40_000..][..40_000] == [n; 40_000]));
    }
}

#[test]
fn only_a_good_bye_is_an_end() {
    for polite in [true, false] {
        let (near, far) = pair();
        let socket = near.0.socket.try_clone().unwrap();
        let ((_near, mut out), (mut input, _far)) = (near.split().unwrap(), far.split().unwrap());
        send(&mut *out, b"abc");
        match polite {
            true => out.shutdown(),
            false => socket.shutdown(std::net::Shutdown::Both).unwrap(),
        }
        let (got, end) = receive(&mut *input);
        assert_eq!(got, b"abc");
        match end {
            Ok(()) => assert!(polite),
            Err(e) => assert!(!polite && e.kind() == ErrorKind::ConnectionReset, "{e:?}"),
        }
    }
}

#[test]
fn a_write_that_fails_has_taken_nothing_and_a_flush_sends_all_that_was_taken() {
    let (near, far) = pair();
    let shared = near.0.clone();
    // So that it never takes all of what is written below.
    SockRef::from(&shared.socket).set_send_buffer_size(8 << 10).unwrap();
    let ((_near, mut out), (mut input, _far)) = (near.split().unwrap(), far.split().unwrap());
    let mut taken = 0;
    loop {
        match out.write(&[5; 50_000]) {
            Ok(n) => taken += n,
            Err(e) => {
                assert!(is_later(&e), "{e:?}");
                break;
            }
        }
    }
    assert!(shared.session().tls.wants_write(), "nothing was left");
    let receiver = thread::spawn(move || receive(&mut *input).0.len());
    while let Err(e) = out.flush() {
        assert!(is_later(&e), "{e:?}");
    }
    assert!(!shared.session().tls.wants_write());
    shared.socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(receiver.join().unwrap(), taken);
    let before = shared.session().gone;
    let failed = out.write(&[5; 24]).unwrap_err();
    assert_eq!((failed.kind(), shared.session().gone), (ErrorKind::BrokenPipe, before));
    // It is still there, encrypted, and never leaves, whatever the socket would take.
    assert!(shared.session().tls.wants_write() && shared.session().failed);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpStream::connect(other.local_addr().unwrap()).unwrap();
    assert!(shared.session().push(&other).is_err());
    assert_eq!(shared.session().gone, before);
}

#[test]
fn records_without_content_are_not_listened_to_without_end() {
    let (near, far) = pair();
    let [near_session, far_session] = [near.0.clone(), far.0.clone()];
    let ((mut input, _near), (_far, mut out)) = (near.split().unwrap(), far.split().unwrap());
    let mut buf = [0; 10];
    let renew_keys = || {
        far_session.session().tls.refresh_traffic_keys().unwrap();
        far_session.push().unwrap();
    };
    renew_keys();
    while near_session.session().idle == 0 {
        assert!(is_later(&input.read(&mut buf).unwrap_err()));
    }
    // Content makes up for it.
    send(&mut *out, b"abc");
    while let Err(e) = input.read(&mut buf) {
        assert!(is_later(&e), "{e:?}");
    }
    assert_eq!(near_session.session().idle, 0);
    near_session.session().idle = MAX_IDLE;
    renew_keys();
    let (got, end) = receive(&mut *input);
    let said = end.unwrap_err().to_string();
    assert!(got.is_empty() && said.contains("nothing in them"), "{said}");
}

#[test]
fn the_kernel_is_kept_from_hoarding_here_too() {
    let (near, _far) = pair();
    let shared = near.0.clone();
    let (_, out) = near.split().unwrap();
    out.set_unsent(123_456);
    let socket = SockRef::from(&shared.socket);
    assert_eq!(socket.tcp_notsent_lowat().unwrap(), 123_456);
    assert!(socket.tcp_nodelay().unwrap());
}

#[test]
fn nothing_is_split_before_the_handshake() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = ServerConnection::new(Hosts::new().server().config).unwrap();
    let early = Box::new(Secured::new(near, server.into(), end(Side::Destination))).split();
    assert!(early.err().unwrap().to_string().contains("without a handshake"));
}
