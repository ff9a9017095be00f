//! Every sink and source, with a real port and a guest that does as Linux does.

use std::sync::mpsc::channel;
use std::thread;

use wherry_devices::serial::Serial;
use wherry_devices::{BusDevice, InterruptLine};

use super::*;

/// Only so that a test that fails does not hang.
const GUARD: Duration = Duration::from_secs(60);

fn console() -> Console {
    Console::open(&SerialSink::None).unwrap().start().unwrap().0
}

fn attach(console: &Console) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    console.attach(ours).unwrap();
    theirs.set_read_timeout(Some(GUARD)).unwrap();
    theirs
}

fn read_exactly(from: &mut impl Read, len: usize) -> Vec<u8> {
    let mut got = vec![0; len];
    from.read_exact(&mut got).unwrap();
    got
}

/// Reads until `end` has come.
fn read_until(from: &mut impl Read, end: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !got.ends_with(end) {
        got.extend(read_exactly(from, 1));
    }
    got
}

#[derive(Default)]
struct Line {
    high: Mutex<bool>,
    changed: std::sync::Condvar,
}
impl InterruptLine for Line {
    fn set(&self, high: bool) -> io::Result<()> {
        *self.high.lock().unwrap() = high;
        self.changed.notify_all();
        Ok(())
    }
}
impl Line {
    fn wait(&self) {
        let high = self.high.lock().unwrap();
        let (high, _) = self.changed.wait_timeout_while(high, GUARD, |high| !*high).unwrap();
        assert!(*high, "no interrupt, and input is missing");
    }
}

/// A machine's port, and what its guest has read.
struct Guest {
    console: Console,
    line: Arc<Line>,
    port: Arc<Mutex<Serial>>,
    got: Vec<u8>,
}

impl Guest {
    fn new(console: &Console) -> Self {
        let line = Arc::<Line>::default();
        let mut port = Serial::new(line.clone(), Box::new(console.output()));
        port.write(1, &[1]);
        Self::around(console, line, port)
    }

    fn around(console: &Console, line: Arc<Line>, mut port: Serial) -> Self {
        port.on_room(console.room());
        port.restore_line().unwrap();
        let port = Arc::new(Mutex::new(port));
        let typed = port.clone();
        console.connect(Arc::new(move |bytes| typed.lock().unwrap().enqueue(bytes)));
        Self { console: console.clone(), line, port, got: Vec::new() }
    }

    fn access(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.port.lock().unwrap().read(at, &mut byte);
        byte[0]
    }

    fn read(&mut self, len: usize) {
        while self.got.len() < len {
            self.line.wait();
            while self.access(2) & 1 == 0 {
                for _ in 0..256 {
                    if self.access(5) & 1 == 0 {
                        break;
                    }
                    self.got.push(self.access(0));
                }
            }
        }
    }

    fn print(&self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.port.lock().unwrap().write(0, &[*byte]));
    }

    /// Pauses, as before the state is saved, and goes on as another machine's port.
    fn moved(self) -> Self {
        self.port.lock().unwrap().set_paused(true);
        let state = self.port.lock().unwrap().state();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(self.port.lock().unwrap().state(), state, "input came while paused");
        let line = Arc::<Line>::default();
        let port = Serial::restore(&state, line.clone(), Box::new(self.console.output())).unwrap();
        let Self { console, got, .. } = self;
        Self { got, ..Self::around(&console, line, port) }
    }
}

fn script(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ n >> 8) as u8).collect()
}

/// `write` gives the script to a source of `console`'s; all of it must reach the guest, through
/// pauses and moves.
fn all_input_arrives(console: &Console, write: impl FnOnce(&[u8]) + Send + 'static) {
    const LEN: usize = 300_000;
    let writer = thread::spawn(move || write(&script(LEN)));
    let mut guest = Guest::new(console);
    for part in 1..=6 {
        guest.read(LEN / 6 * part);
        guest.port.lock().unwrap().set_paused(true);
        guest.port.lock().unwrap().set_paused(false);
        guest = guest.moved();
    }
    assert!(guest.got == script(LEN), "changed, or out of order");
    writer.join().unwrap();
}

#[test]
fn all_of_a_pipe_arrives() {
    let console = console();
    let (reader, mut writer) = io::pipe().unwrap();
    console.join(Some(Box::new(reader)), io::sink()).unwrap();
    all_input_arrives(&console, move |script| writer.write_all(script).unwrap());
}

#[test]
fn all_that_a_client_sends_arrives() {
    let console = console();
    let mut client = attach(&console);
    all_input_arrives(&console, move |script| client.write_all(script).unwrap());
}

#[test]
fn all_that_a_ptys_user_sends_arrives() {
    let opened = Console::open(&SerialSink::Pty).unwrap();
    let user = std::fs::OpenOptions::new().read(true).write(true).open(opened.pty().unwrap());
    let (console, shown) = opened.start().unwrap();
    assert!(shown.starts_with("pty /"), "{shown}");
    let mut user = user.unwrap();
    // Held open until all has arrived: a terminal's last user takes unread input with it.
    all_input_arrives(&console, {
        let mut user = user.try_clone().unwrap();
        move |script| user.write_all(script).unwrap()
    });
    let guest = Guest::new(&console);
    guest.print(b"hello\n");
    assert_eq!(read_exactly(&mut user, 6), b"hello\n");
}

#[test]
fn nothing_is_read_before_there_is_a_machine_and_nothing_beyond_its_room() {
    let console = console();
    let (reads, counted) = channel();
    struct Counting(std::sync::mpsc::Sender<usize>);
    impl Read for Counting {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            buf.fill(b'x');
            let _ = self.0.send(buf.len());
            Ok(buf.len())
        }
    }
    console.join(Some(Box::new(Counting(reads))), io::sink()).unwrap();
    assert_eq!((console.type_in(b"x"), counted.try_recv().is_err()), (0, true), "taken by nobody");
    assert_eq!(console.lock().sources.len(), 1, "it waits, unread");
    let room = 10_000;
    let left = Mutex::new(room);
    let (full, is_full) = channel();
    console.connect(Arc::new(move |bytes| {
        let mut left = left.lock().unwrap();
        let taken = bytes.len().min(*left);
        *left -= taken;
        if taken == 0 {
            let _ = full.send(());
        }
        taken
    }));
    is_full.recv_timeout(GUARD).unwrap();
    assert_eq!(counted.try_iter().sum::<usize>(), room.next_multiple_of(4096));
}

#[test]
fn a_client_that_pauses_sees_all_that_fits_and_goes_on() {
    let console = console();
    let guest = Guest::new(&console);
    let mut client = attach(&console);
    // Byte by byte: a socket counts some hundreds for each write.
    guest.print(&script(LIMIT_OF_A_CLIENT));
    assert!(read_exactly(&mut client, LIMIT_OF_A_CLIENT) == script(LIMIT_OF_A_CLIENT));
    guest.print(b"more");
    assert_eq!(read_exactly(&mut client, 4), b"more");
}

const LIMIT_OF_A_CLIENT: usize = outbox::LIMIT;

#[test]
fn a_client_that_falls_behind_holds_up_nothing_is_told_and_goes_on() {
    let console = console();
    let mut client = attach(&console);
    let mut out = console.output();
    for _ in 0..1000 {
        out.write_all(&[b'x'; 1024]).unwrap();
    }
    out.write_all(b"end").unwrap();
    let seen = read_until(&mut client, b"end");
    let text = String::from_utf8_lossy(&seen);
    assert!(seen.len() < 1_000_000 && text.contains("bytes of output lost]\r\n"));
    out.write_all(b"next").unwrap();
    assert_eq!(read_exactly(&mut client, 4), b"next");
}

#[test]
fn clients_that_left_a_silent_guest_are_forgotten() {
    let console = console();
    // Said, and not only closed: a process that another test is just starting may still have it.
    let leave = |client: UnixStream| client.shutdown(Shutdown::Both).unwrap();
    for _ in 0..5 * MAX_CLIENTS {
        leave(attach(&console));
    }
    let mut here: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| attach(&console)).collect();
    assert!(console.check().is_err());
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = console.attach(ours).unwrap_err();
    assert!(error.to_string().contains("8 consoles are attached"), "{error}");
    here.pop().map(leave).unwrap();
    console.check().unwrap();
    here.push(attach(&console));
    // Not only uncounted, but gone.
    let end = Instant::now() + GUARD;
    while console.lock().clients.len() > MAX_CLIENTS {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_has_said_all_still_listens() {
    let console = console();
    let mut client = attach(&console);
    client.write_all(b"ls\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut guest = Guest::new(&console);
    guest.read(3);
    guest.print(b"files");
    assert_eq!(read_exactly(&mut client, 5), b"files");
}

#[test]
fn a_late_client_sees_what_was_printed_and_can_type() {
    let console = console();
    let mut guest = Guest::new(&console);
    guest.print(b"hello");
    let mut client = attach(&console);
    assert_eq!(read_exactly(&mut client, 5), b"hello");
    client.write_all(b"ls\n").unwrap();
    guest.read(3);
    assert_eq!(guest.got, b"ls\n");
}

#[test]
fn the_last_words_reach_everybody_and_then_comes_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let sink = SerialSink::File { path: path.clone().into(), max: None };
    let opened = Console::open(&sink).unwrap();
    assert_eq!(opened.largest_file(), None);
    let (console, _) = opened.start().unwrap();
    let mut client = attach(&console);
    console.output().write_all(b"power down\n").unwrap();
    console.finish();
    assert_eq!(std::fs::read(path).unwrap(), b"power down\n");
    let mut seen = Vec::new();
    client.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"power down\n");
}
