//! Asks every peer that connects who it is, all side by side.
//!
//! Ports are probed, scanned and mistaken for others. Until a peer has introduced itself in whole,
//! valid frames, it counts for nothing. It is turned away when it says something else, ends, or
//! takes too long. Meanwhile it holds up nobody, since each peer has a thread of its own for that
//! time.
//!
//! At most [`MAX_WAITING`] peers wait. A newcomer then replaces the one that has waited longest of
//! the host that has the most of them, so whoever probes a port makes room itself. A peer that was
//! replaced but had introduced itself by then is still heard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::config::DestinationConfig;
use crate::control::CancelToken;
use crate::error::Error;
use crate::link::{Deadline, Interrupt};
use crate::transport::{Connections, TICK, Transport, TransportError};

/// Connections that are being asked at one time.
pub(super) const MAX_WAITING: usize = 64;

/// Does what precedes the first frame. Returns the deadline for all that somebody who connects has
/// to say.
pub(super) fn greet(
    transport: &mut dyn Transport,
    cfg: &DestinationConfig,
    interrupt: &Interrupt,
) -> Result<Option<Deadline>, Error> {
    let deadline = Deadline::after(cfg.hello_timeout);
    match transport.greet(cfg.hello_timeout, &|| interrupt.check().is_err()) {
        Ok(()) => Ok(deadline),
        Err(TransportError::Cancelled) => Err(interrupt.check().err().unwrap_or(Error::Cancelled)),
        Err(TransportError::Tls(e)) => Err(Error::Tls(e)),
        Err(e) => Err(Error::Stream(e)),
    }
}

/// Which one of those that were asked, and what it said.
type Answer<T> = (u64, Heard<T>);

type Ask<T> = dyn Fn(Box<dyn Transport>, &Interrupt) -> Result<T, Error> + Send + Sync;

/// Where connections come in.
pub(super) struct Door<'a, T> {
    connections: &'a dyn Connections,
    cancel: &'a CancelToken,
    ask: Arc<Ask<T>>,
    tell: Sender<Answer<T>>,
    heard: Receiver<Answer<T>>,
    /// Those that are being asked, the first one the longest.
    waiting: VecDeque<Caller>,
    nr: u64,
}

struct Caller {
    nr: u64,
    peer: String,
    interrupt: Interrupt,
}

/// What has become of one that connected.
pub(super) struct Heard<T> {
    /// Who it was, for messages.
    pub(super) peer: String,
    pub(super) said: Result<T, Error>,
}

impl<'a, T: Send + 'static> Door<'a, T> {
    /// `ask` is called on a thread of its own for each connection and must end within a limit.
    pub(super) fn new(
        connections: &'a dyn Connections,
        cancel: &'a CancelToken,
        ask: impl Fn(Box<dyn Transport>, &Interrupt) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Self {
        let (tell, heard) = channel();
        Self {
            connections,
            cancel,
            ask: Arc::new(ask),
            tell,
            heard,
            waiting: VecDeque::new(),
            nr: 0,
        }
    }

    /// The next one of which it is known who it is, or that it is a stranger. `None`: nobody within
    /// `patience`.
    pub(super) fn next(&mut self, patience: Duration) -> Result<Option<Heard<T>>, TransportError> {
        let began = Instant::now();
        loop {
            if let Ok(heard) = self.heard.try_recv() {
                match self.done(heard) {
                    None => continue,
                    heard => return Ok(heard),
                }
            }
            match self.connections.next(self.cancel, TICK / 4) {
                Ok(transport) => {
                    let put_out = self.admit(transport);
                    // Callers without a pause must not make it longer.
                    if put_out.is_some() || began.elapsed() >= patience {
                        return Ok(put_out);
                    }
                }
                Err(TransportError::TimedOut(_)) => {
                    if let Ok(heard) = self.heard.recv_timeout(TICK / 20)
                        && let Some(heard) = self.done(heard)
                    {
                        return Ok(Some(heard));
                    }
                    if began.elapsed() >= patience {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Begins to ask. Returns the one that was put out, if there are too many.
    fn admit(&mut self, transport: Box<dyn Transport>) -> Option<Heard<T>> {
        let put_out = if self.waiting.len() < MAX_WAITING { None } else { self.make_room() };
        let (nr, peer) = (self.nr, transport.peer());
        self.nr += 1;
        let interrupt = Interrupt { cancel: self.cancel.clone(), ..Interrupt::default() };
        let (ask, tell, theirs) = (self.ask.clone(), self.tell.clone(), interrupt.clone());
        let name = peer.clone();
        let spawned = wherry_threads::of_kind("migration-greet").spawn(move || {
            // Fails only when nobody waits any more.
            let said = ask(transport, &theirs);
            let _ = tell.send((nr, Heard { peer: name, said }));
        });
        if let Err(e) = spawned {
            let heard = Heard { peer: peer.clone(), said: Err(Error::Connection(e)) };
            let _ = self.tell.send((nr, heard));
        }
        self.waiting.push_back(Caller { nr, peer, interrupt });
        put_out
    }

    /// Takes one out of those that wait. Returns what has become of it.
    fn make_room(&mut self) -> Option<Heard<T>> {
        while let Ok(answer) = self.heard.try_recv() {
            if let Some(heard) = self.done(answer) {
                return Some(heard);
            }
        }
        let host =
            |c: &Caller| c.peer.rsplit_once(':').map_or(c.peer.clone(), |(host, _)| host.into());
        let hosts: Vec<String> = self.waiting.iter().map(host).collect();
        let of_one = |at: &usize| hosts.iter().filter(|host| hosts.get(*at) == Some(host)).count();
        // The last of the greatest, seen from behind.
        let at = (0..hosts.len()).rev().max_by_key(of_one)?;
        let caller = self.waiting.remove(at)?;
        caller.interrupt.stop.store(true, Ordering::Release);
        Some(Heard { peer: caller.peer, said: Err(Error::Stream(TransportError::Crowded)) })
    }

    /// `None`: it was put out before it answered, which has been told, and it is a stranger.
    fn done(&mut self, (nr, heard): Answer<T>) -> Option<Heard<T>> {
        let at = self.waiting.iter().position(|caller| caller.nr == nr);
        let waited = at.and_then(|at| self.waiting.remove(at)).is_some();
        (waited || heard.said.is_ok()).then_some(heard)
    }
}

impl<T> Drop for Door<'_, T> {
    fn drop(&mut self) {
        for caller in &self.waiting {
            caller.interrupt.stop.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::transport::Halves;

    const GUARD: Duration = Duration::from_secs(60);
    const SOURCE: &str = "10.0.0.1:1";

    struct Caller(String);

    impl Transport for Caller {
        fn split(self: Box<Self>) -> std::io::Result<Halves> {
            unreachable!("nobody reads it")
        }

        fn peer(&self) -> String {
            self.0.clone()
        }
    }

    /// Callers in this order, then nobody; the source speaks when the last one is in.
    #[derive(Clone)]
    struct Street(Arc<Mutex<VecDeque<String>>>, Arc<AtomicBool>);

    impl Connections for Street {
        fn next(
            &self,
            _: &CancelToken,
            wait: Duration,
        ) -> Result<Box<dyn Transport>, TransportError> {
            match self.0.lock().unwrap().pop_front() {
                Some(peer) => Ok(Box::new(Caller(peer))),
                None => {
                    self.1.store(true, Ordering::SeqCst);
                    Err(TransportError::TimedOut(wait))
                }
            }
        }
    }

    /// The source answers when it may; a probe from a port that three divides is silent, others say
    /// something else.
    fn door<'a>(street: &'a Street, cancel: &'a CancelToken, minds: bool) -> Door<'a, ()> {
        let may = street.1.clone();
        Door::new(street, cancel, move |transport, interrupt| {
            let peer = transport.peer();
            let port: u32 = peer.rsplit_once(':').unwrap().1.parse().unwrap();
            let is_source = peer == SOURCE;
            while is_source || port.is_multiple_of(3) {
                if is_source && may.load(Ordering::SeqCst) {
                    return Ok(());
                }
                if minds || !is_source {
                    interrupt.check()?;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(if port % 3 == 1 { Error::Closed } else { Error::NotWherry })
        })
    }

    fn street(callers: impl Iterator<Item = String>) -> Street {
        Street(Arc::new(Mutex::new(callers.collect())), Arc::default())
    }

    /// Who was turned away before the source was taken.
    fn until_the_source(door: &mut Door<'_, ()>) -> Vec<String> {
        let mut turned_away = Vec::new();
        loop {
            let heard = door.next(GUARD).unwrap().expect("the source was not taken");
            if heard.said.is_ok() {
                assert_eq!(heard.peer, SOURCE);
                return turned_away;
            }
            turned_away.push(heard.peer);
        }
    }

    #[test]
    fn who_probes_a_port_puts_out_probes_and_not_a_source_that_is_silent_for_a_moment() {
        let probe = |port| format!("10.0.0.66:{port}");
        let callers = (0..40).map(probe).chain([SOURCE.into()]).chain((40..400).map(probe));
        let (street, cancel) = (street(callers), CancelToken::new());
        let turned_away = until_the_source(&mut door(&street, &cancel, true));
        assert!(!turned_away.iter().any(|peer| peer == SOURCE));
        assert!(
            turned_away.len() >= 134 - MAX_WAITING,
            "{} silent ones made room",
            turned_away.len()
        );
    }

    #[test]
    fn nobody_is_put_out_for_a_place_that_is_free() {
        let (street, cancel) = (street(std::iter::empty()), CancelToken::new());
        let mut door = door(&street, &cancel, true);
        street.1.store(true, Ordering::SeqCst);
        door.admit(Box::new(Caller(SOURCE.into())));
        // It has answered, and nobody has looked.
        let answer = door.heard.recv().unwrap();
        door.tell.send(answer).unwrap();
        for n in 1..MAX_WAITING {
            assert!(door.admit(Box::new(Caller(format!("10.0.0.1:{}", 3 * n)))).is_none());
        }
        let heard = door.admit(Box::new(Caller("10.0.0.1:3000".into()))).unwrap();
        assert!(heard.said.is_ok() && heard.peer == SOURCE, "{}", heard.peer);
    }

    #[test]
    fn a_source_that_was_put_out_while_its_greeting_came_is_taken() {
        let crowd = (1..=MAX_WAITING).map(|n| format!("10.0.0.1:{}", 3 * n));
        let (street, cancel) =
            (street([SOURCE.into()].into_iter().chain(crowd)), CancelToken::new());
        let turned_away = until_the_source(&mut door(&street, &cancel, false));
        assert_eq!(turned_away, [SOURCE]);
    }
}
