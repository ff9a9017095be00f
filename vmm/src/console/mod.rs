//! The guest's serial console on the host side: one output, several listeners, one input.
//!
//! **Output** goes to the sink chosen with `--serial`, to every attached client, and into a small
//! history that a client sees when it attaches. Nobody who does not read may hold up a vCPU: each
//! reader has a thread and a bounded buffer of its own ([`outbox`]); one that falls behind loses
//! the oldest of it, and is told.
//!
//! **Input** that the guest does not take waits where it comes from: a source is read only as fast
//! as the port has room ([`input`]), and not before there is a machine.

mod file;
mod input;
mod outbox;
mod pty;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use self::input::Room;
use self::outbox::Outbox;
use crate::config::SerialSink;
use crate::poll::{hung_up, wait_until_hung_up};
use crate::sync::lock;

/// Bytes of output kept for a client that attaches later.
const HISTORY: usize = 16 << 10;
/// How long readers may take to show the last of it when the guest has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Clients attached at a time.
const MAX_CLIENTS: usize = 8;

/// Takes typed bytes; says how many it took. Whoever has more tries again when
/// [`Console::room`]'s call says so.
type Input = Arc<dyn Fn(&[u8]) -> usize + Send + Sync>;

struct Client {
    id: u64,
    stream: UnixStream,
    outbox: Outbox,
}

#[derive(Default)]
struct Inner {
    sink: Option<Outbox>,
    clients: Vec<Client>,
    next_id: u64,
    history: VecDeque<u8>,
    /// Where typed bytes go: the serial port of the machine that runs now.
    input: Option<Input>,
    /// What is to be read once there is a machine.
    sources: Vec<Box<dyn Read + Send>>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    room: Room,
}

/// Shared by the serial port (output), the control API (clients) and the terminal (input).
/// Outlives a reboot.
#[derive(Clone, Default)]
pub struct Console(Arc<Shared>);

/// A console whose sink is open. There is no thread yet.
pub struct Opened {
    sink: Sink,
    shown: String,
}

enum Sink {
    None,
    Stdio,
    File(file::Limited),
    Pty(File, PathBuf),
}

impl Opened {
    /// The path of a pty's user's end.
    pub fn pty(&self) -> Option<&Path> {
        match &self.sink {
            Sink::Pty(_, path) => Some(path),
            _ => None,
        }
    }

    /// The most bytes that a file of it gets; `None`: any number.
    pub fn largest_file(&self) -> Option<u64> {
        match &self.sink {
            Sink::None | Sink::Pty(..) => Some(0),
            Sink::File(file) => file.most(),
            // Redirected to a file, standard output has no limit of ours.
            Sink::Stdio => {
                let out = io::stdout().as_fd().try_clone_to_owned().map(File::from);
                let file = out.and_then(|out| out.metadata()).is_ok_and(|out| out.is_file());
                if file { None } else { Some(0) }
            }
        }
    }

    /// The console, and what it is for people. It begins to write, and to read once there is a
    /// machine.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn start(self) -> io::Result<(Console, String)> {
        let console = Console::default();
        let pty = self.pty().map(|path| format!("pty {}", path.display()));
        let shown = pty.unwrap_or(self.shown);
        match self.sink {
            Sink::None => {}
            Sink::Stdio => console.join(Some(Box::new(io::stdin())), io::stdout())?,
            Sink::File(file) => console.join(None, file)?,
            Sink::Pty(master, _) => {
                let source = pty::PtyIn(master.try_clone()?);
                console.join(Some(Box::new(source)), pty::PtyOut(master))?;
            }
        }
        Ok((console, shown))
    }
}

/// The end that the serial port writes to.
pub struct ConsoleOut(Console);

impl Inner {
    fn is_full(&self) -> bool {
        // Those who left and whose reading thread has not seen it yet do not count.
        let here = self.clients.iter().filter(|client| !hung_up(&client.stream));
        here.count() >= MAX_CLIENTS
    }

    fn forget(&mut self, gone: impl Fn(&Client) -> bool) {
        for client in self.clients.extract_if(.., |client| gone(client)) {
            client.outbox.close();
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0.inner)
    }

    /// Opens the sink, without a thread.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(sink: &SerialSink) -> io::Result<Opened> {
        let shown = sink.to_string();
        let sink = match sink {
            SerialSink::None => Sink::None,
            SerialSink::Stdio => Sink::Stdio,
            SerialSink::File { path, max } => {
                Sink::File(file::Limited::append(path.as_ref(), *max)?)
            }
            SerialSink::Pty => {
                let (master, path) = pty::open()?;
                Sink::Pty(master, path)
            }
        };
        Ok(Opened { sink, shown })
    }

    fn join(
        &self,
        source: Option<Box<dyn Read + Send>>,
        sink: impl Write + Send + 'static,
    ) -> io::Result<()> {
        let sink = Outbox::spawn(sink)?;
        let mut inner = self.lock();
        inner.sink = Some(sink);
        inner.sources.extend(source);
        Ok(())
    }

    /// Lets everybody show what is left, for a second at most; what comes later is not shown.
    pub fn finish(&self) {
        let (sink, clients) = {
            let mut inner = self.lock();
            (inner.sink.take(), std::mem::take(&mut inner.clients))
        };
        let outboxes = || sink.iter().chain(clients.iter().map(|client| &client.outbox));
        outboxes().for_each(Outbox::close);
        let end = Instant::now() + LAST_WORDS;
        while !outboxes().all(Outbox::is_finished) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        for client in &clients {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }

    /// The output end for a serial port.
    pub fn output(&self) -> ConsoleOut {
        ConsoleOut(self.clone())
    }

    /// Sends typed bytes to `input` from now on (the serial port of a new machine).
    pub fn connect(&self, input: Input) {
        let sources = {
            let mut inner = self.lock();
            inner.input = Some(input);
            std::mem::take(&mut inner.sources)
        };
        for source in sources {
            let console = self.clone();
            // Without a thread there is no input; the guest runs all the same.
            let _ = wherry_threads::of_kind("console-in")
                .spawn(move || console.pump(source, &|| false));
        }
        self.0.room.tell();
    }

    /// To be called when the port has room again for input that it did not take.
    pub fn room(&self) -> Box<dyn Fn() + Send> {
        let shared = self.0.clone();
        Box::new(move || shared.room.tell())
    }

    /// Feeds bytes to the guest. Returns how many were taken.
    fn type_in(&self, bytes: &[u8]) -> usize {
        // The port may call back for output: never hold our lock across it.
        let input = self.lock().input.clone();
        input.map_or(0, |input| input(bytes))
    }

    /// Whether a client can be attached.
    ///
    /// # Errors
    /// There are too many.
    pub fn check(&self) -> io::Result<()> {
        if self.lock().is_full() { Err(too_many()) } else { Ok(()) }
    }

    /// Attaches a client: it sees recent output, then all that follows; what it sends is typed
    /// into the guest. It is forgotten when it has closed its end, or [`finish`](Self::finish).
    ///
    /// # Errors
    /// There are too many, or the process is out of descriptors or threads.
    pub fn attach(&self, client: UnixStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let (reader, writer) = (client.try_clone()?, client.try_clone()?);
        let id = {
            let mut inner = self.lock();
            if inner.is_full() {
                return Err(too_many());
            }
            let outbox = Outbox::spawn(writer)?;
            outbox.push(inner.history.make_contiguous());
            inner.next_id += 1;
            let id = inner.next_id;
            inner.clients.push(Client { id, stream: client, outbox });
            id
        };
        let console = self.clone();
        let spawned = wherry_threads::of_kind("console-client").spawn(move || {
            console.pump(&reader, &|| hung_up(&reader));
            // Who has said all may still listen.
            wait_until_hung_up(&reader);
            console.lock().forget(|client| client.id == id);
        });
        spawned.map(drop).inspect_err(|_| self.lock().forget(|client| client.id == id))
    }

    /// Reads `from` until it ends, or until the guest takes nothing and its source is `gone`.
    fn pump(&self, mut from: impl Read, gone: &dyn Fn() -> bool) {
        let mut buf = [0; 4096];
        loop {
            match from.read(&mut buf) {
                Ok(0) => return,
                Ok(n) => {
                    if !self.feed(buf.get(..n).unwrap_or_default(), gone) {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Standard input may have been made so by somebody else.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(_) => return,
            }
        }
    }

    /// Types all of `bytes`, waiting for room; false if the guest takes nothing and the source is
    /// `gone`.
    fn feed(&self, mut bytes: &[u8], gone: &dyn Fn() -> bool) -> bool {
        let mut in_vain = false;
        loop {
            let turn = self.0.room.turn();
            let taken = self.type_in(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if bytes.is_empty() {
                return true;
            }
            if taken == 0 && in_vain && gone() {
                return false;
            }
            in_vain = !self.0.room.wait(turn);
        }
    }
}

fn too_many() -> io::Error {
    let text = format!("{MAX_CLIENTS} consoles are attached already");
    io::Error::new(io::ErrorKind::ResourceBusy, text)
}

impl Write for ConsoleOut {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock();
        inner.history.extend(buf);
        let over = inner.history.len().saturating_sub(HISTORY);
        inner.history.drain(..over);
        let clients = inner.clients.iter().map(|client| &client.outbox);
        inner.sink.iter().chain(clients).for_each(|outbox| outbox.push(buf));
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
