//! Asks everybody who connects who it is, all side by side.
//!
//! Ports are probed, scanned and mistaken for others. Until it has said in one whole, valid frame
//! who it is, a connection is nobody's. It is turned away when it says something else, ends, or
//! takes too long, and holds up nobody meanwhile: each has a thread of its own for that time. There
//! are at most [`MAX_WAITING`]; the one that has waited longest is put out for a newcomer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::CancelToken;
use crate::error::Error;
use crate::link::Interrupt;
use crate::transport::{More, TICK, Transport, TransportError};

/// Connections that are being asked at one time.
pub(super) const MAX_WAITING: usize = 64;

type Ask<T> = dyn Fn(Box<dyn Transport>, &Interrupt) -> Result<T, Error> + Send + Sync;

/// Where connections come in.
pub(super) struct Door<'a, T> {
    more: &'a dyn More,
    cancel: &'a CancelToken,
    ask: Arc<Ask<T>>,
    tell: Sender<(u64, Result<T, Error>)>,
    heard: Receiver<(u64, Result<T, Error>)>,
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
        more: &'a dyn More,
        cancel: &'a CancelToken,
        ask: impl Fn(Box<dyn Transport>, &Interrupt) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Self {
        let (tell, heard) = channel();
        Self { more, cancel, ask: Arc::new(ask), tell, heard, waiting: VecDeque::new(), nr: 0 }
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
            match self.more.next(self.cancel, TICK / 4) {
                Ok(transport) => {
                    let put_out = self.admit(transport);
                    if put_out.is_some() {
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
        let put_out = if self.waiting.len() < MAX_WAITING { None } else { self.waiting.pop_front() };
        let put_out = put_out.map(|caller| {
            caller.interrupt.stop.store(true, Ordering::Release);
            Heard { peer: caller.peer, said: Err(Error::Stream(TransportError::Crowded)) }
        });
        let (nr, peer) = (self.nr, transport.peer());
        self.nr += 1;
        let interrupt = Interrupt { cancel: self.cancel.clone(), ..Interrupt::default() };
        let (ask, tell, theirs) = (self.ask.clone(), self.tell.clone(), interrupt.clone());
        let spawned = thread::Builder::new().name("migration-greet".into()).spawn(move || {
            // Fails only when nobody waits any more.
            let _ = tell.send((nr, ask(transport, &theirs)));
        });
        if let Err(e) = spawned {
            let _ = self.tell.send((nr, Err(Error::Connection(e))));
        }
        self.waiting.push_back(Caller { nr, peer, interrupt });
        put_out
    }

    /// `None`: it was put out before it answered, which has been told.
    fn done(&mut self, (nr, said): (u64, Result<T, Error>)) -> Option<Heard<T>> {
        let at = self.waiting.iter().position(|caller| caller.nr == nr)?;
        let Caller { peer, .. } = self.waiting.remove(at)?;
        Some(Heard { peer, said })
    }
}

impl<T> Drop for Door<'_, T> {
    fn drop(&mut self) {
        for caller in &self.waiting {
            caller.interrupt.stop.store(true, Ordering::Release);
        }
    }
}
