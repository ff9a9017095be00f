//! A receiver whose port is found by others goes on waiting for its source.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use super::dest::Dest;
use super::handoff::{PAGES, script};
use super::hostile::{frame, hello, machine, stream};
use super::model::Model;
use super::oracle::config;
use crate::error::describe;
use crate::wire::{Abort, Kind, MAX_PAGES, WireError, codec};
use crate::*;

/// Longer than any test: what waits for it has failed.
pub(super) const NEVER: Duration = Duration::from_secs(3600);
/// Longer than a busy machine needs.
pub(super) const GUARD: Duration = Duration::from_secs(60);

pub(super) struct Host {
    pub(super) at: Endpoint,
    pub(super) cancel: CancelToken,
    turned_away: Receiver<String>,
    thread: JoinHandle<(Option<Result<Received, Failure>>, Dest)>,
}

/// A receiver that gives each visitor so long to say Hello.
fn host(hello_timeout: Duration) -> Host {
    host_at(Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap(), hello_timeout)
}

/// The same, where there is a listener already.
pub(super) fn host_at(listener: Listener, hello_timeout: Duration) -> Host {
    let at = listener.endpoint().unwrap();
    let (tell, turned_away) = channel();
    let cancel = CancelToken::new();
    let token = cancel.clone();
    let thread = thread::spawn(move || {
        let cfg = DestinationConfig { hello_timeout, ..DestinationConfig::default() };
        let mut dest = Dest::default();
        let mut told = |peer: &str, why: &Error| {
            assert!(!peer.is_empty());
            let _ = tell.send(describe(why));
        };
        match await_source(listener, &cfg, &token, &mut told) {
            Ok(arrival) => (Some(receive_from(arrival, &mut dest, &cfg, &(), &token)), dest),
            Err(_) => (None, dest),
        }
    });
    Host { at, cancel, turned_away, thread }
}

impl Host {
    pub(super) fn visit(&self) -> TcpStream {
        let (Endpoint::Tcp(at) | Endpoint::Tls(at)) = &self.at else { unreachable!() };
        TcpStream::connect(at).unwrap()
    }

    /// Why the next one was sent away that was.
    pub(super) fn turned_away(&self) -> String {
        self.turned_away.recv_timeout(GUARD).expect("nobody was turned away")
    }

    /// It has been cancelled, and there is no guest.
    pub(super) fn ends_without_a_guest(self) -> bool {
        let (received, dest) = self.thread.join().unwrap();
        received.is_none() && dest.runs == 0
    }

    /// The true source comes.
    pub(super) fn takes_the_source(self, streams: u32) {
        let near = connect(&self.at, GUARD, &CancelToken::new()).unwrap();
        self.takes(near, streams);
    }

    /// A source that has connected is the one that is taken.
    pub(super) fn takes(self, near: Box<dyn Transport>, streams: u32) {
        let model = Model::new(PAGES, false, script());
        let cfg = SourceConfig { streams, ..config(HintMode::Auto) };
        migrate(&model.vm(), near, &cfg, &(), &CancelToken::new()).unwrap();
        let (received, dest) = self.thread.join().unwrap();
        assert!(received.unwrap().is_ok() && dest.runs == 1);
        model.compare(&dest.memory()).unwrap();
    }
}

#[test]
fn strangers_are_turned_away_and_the_source_is_taken() {
    let host = host(NEVER);
    // A port check, one that resets, a browser, noise, and somebody who gives up at once.
    drop(host.visit());
    assert!(host.turned_away().contains("closed"));
    let reset = host.visit();
    SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
    drop(reset);
    host.turned_away();
    let not_wherry = Error::NotWherry.to_string();
    for text in [b"GET / HTTP/1.1\r\nHost: b\r\n\r\n".as_slice(), &[0xff; 300]] {
        let mut noise = host.visit();
        noise.write_all(text).unwrap();
        assert_eq!(host.turned_away(), not_wherry);
        // Not left hanging either.
        let _ = noise.read_to_end(&mut Vec::new());
    }
    let abort = codec::encode(&Abort::new("no\x1b[31m"), Kind::Abort).unwrap();
    host.visit().write_all(&frame(Kind::Abort as u16, 0, &abort)).unwrap();
    let why = host.turned_away();
    assert!(why.contains("no\u{fffd}[31m") && !why.contains('\x1b'), "{why:?}");
    host.takes_the_source(1);
}

#[test]
fn silent_and_slow_strangers_do_not_hold_up_the_source() {
    for streams in [1, 3] {
        let host = host(NEVER);
        let silent = host.visit();
        let mut slow = host.visit();
        slow.write_all(&frame(Kind::Hello as u16, 0, &[0; 50])[..9]).unwrap();
        host.takes_the_source(streams);
        drop((silent, slow));
    }
}

#[test]
fn who_does_not_say_hello_in_time_is_turned_away() {
    let host = host(Duration::from_millis(300));
    let silent = host.visit();
    assert!(host.turned_away().contains("longer than 300 ms"));
    let mut slow = host.visit();
    let hello = frame(Kind::Hello as u16, 0, &[0; 1000]);
    let dripping = thread::spawn(move || {
        // Each byte long before a connection counts as stalled.
        hello
            .iter()
            .take_while(|byte| {
                thread::sleep(Duration::from_millis(20));
                slow.write_all(&[**byte]).is_ok()
            })
            .count()
    });
    assert!(host.turned_away().contains("longer than 300 ms"));
    assert!(dripping.join().unwrap() < 1000);
    drop(silent);
    host.takes_the_source(1);
}

#[test]
fn who_says_hello_and_brings_no_machine_is_turned_away() {
    let host = host(Duration::from_millis(300));
    let mut silent = host.visit();
    silent.write_all(&stream(&[hello(0)])).unwrap();
    assert!(host.turned_away().contains("longer than 300 ms"));
    let mut gone = host.visit();
    gone.write_all(&stream(&[hello(0)])).unwrap();
    drop(gone);
    host.turned_away();
    // Nor is a machine one that no host could have.
    let malformed = Error::from(WireError::Payload(Kind::Machine));
    for nr_pages in [0, MAX_PAGES + 1, u64::MAX] {
        let mut impossible = host.visit();
        impossible.write_all(&stream(&[hello(0), machine(nr_pages)])).unwrap();
        assert_eq!(host.turned_away(), describe(&malformed));
    }
    drop(silent);
    host.takes_the_source(1);
}

#[test]
fn a_crowd_of_silent_strangers_is_bounded() {
    let host = host(NEVER);
    let crowd: Vec<TcpStream> = (0..80).map(|_| host.visit()).collect();
    for _ in 0..80 - 64 {
        assert!(host.turned_away().contains("connection"));
    }
    host.takes_the_source(2);
    drop(crowd);
}

#[test]
fn waiting_for_a_source_is_cancelled_whoever_else_is_there() {
    let host = host(NEVER);
    let silent = host.visit();
    host.cancel.cancel();
    assert!(host.ends_without_a_guest());
    drop(silent);
}
