//! Output on its way to one reader, who may be slow.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Bytes that wait for a reader; then the oldest go, and the reader is told.
pub(super) const LIMIT: usize = 64 << 10;
/// The port gives single bytes: so long they are gathered, to be written in one piece.
const GATHER: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    lost: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// What waits for the reader, and the thread that writes it.
pub(super) struct Outbox {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// How long a sink that does not wait may take nothing before a batch is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// As `write_all`, also where somebody has set the terminal not to wait.
fn write_patiently(to: &mut impl Write, mut rest: &[u8]) -> io::Result<()> {
    let mut moved = Instant::now();
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                rest = rest.get(n..).unwrap_or_default();
                moved = Instant::now();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && moved.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Outbox {
    pub(super) fn spawn(mut to: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let source = shared.clone();
        let thread = wherry_threads::of_kind("console-out").spawn(move || {
            while let Some(batch) = source.take() {
                // A failing sink (closed terminal, full disk) must not stop the guest.
                let _ = write_patiently(&mut to, &batch).and_then(|()| to.flush());
            }
        })?;
        Ok(Self { shared, thread })
    }

    /// Never waits for the reader.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut waiting = lock(&self.shared.waiting);
        if waiting.closed {
            return;
        }
        let idle = waiting.bytes.is_empty();
        waiting.bytes.extend(bytes);
        let over = waiting.bytes.len().saturating_sub(LIMIT);
        waiting.bytes.drain(..over);
        waiting.lost += over;
        if idle {
            self.shared.changed.notify_one();
        }
    }

    /// What is waiting is written, nothing more is taken.
    pub(super) fn close(&self) {
        lock(&self.shared.waiting).closed = true;
        self.shared.changed.notify_one();
    }

    /// Whether all is written after [`close`](Self::close).
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Shared {
    /// Waits for bytes and takes all there are; `None` at the end.
    fn take(&self) -> Option<Vec<u8>> {
        let nothing = |w: &mut Waiting| w.bytes.is_empty() && !w.closed;
        let wait = self.changed.wait_while(lock(&self.waiting), nothing);
        let mut waiting = wait.unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes.is_empty() {
            return None;
        }
        if !waiting.closed {
            drop(waiting);
            std::thread::sleep(GATHER);
            waiting = lock(&self.waiting);
        }
        let mut batch = match std::mem::take(&mut waiting.lost) {
            0 => Vec::new(),
            n => format!("\r\n[wherry: {n} bytes of output lost]\r\n").into_bytes(),
        };
        batch.extend(waiting.bytes.drain(..));
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Tells of each write, and returns from it when told to.
    struct Slow(Sender<Vec<u8>>, Receiver<()>);
    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(buf.to_vec());
            let _ = self.1.recv();
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_that_does_not_wait_loses_nothing() {
        struct Full(u32, Vec<u8>);
        impl Write for Full {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0.is_multiple_of(2) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.1.extend(buf.iter().take(3));
                Ok(buf.len().min(3))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut full = Full(0, Vec::new());
        write_patiently(&mut full, b"the last words").unwrap();
        assert_eq!(full.1, b"the last words");
    }

    #[test]
    fn single_bytes_are_written_in_batches() {
        let ((written, writes), (go, gone)) = (channel(), channel());
        let outbox = Outbox::spawn(Slow(written, gone)).unwrap();
        outbox.push(b"a");
        assert_eq!(writes.recv().unwrap(), b"a");
        (0..1000).for_each(|n| outbox.push(&[n as u8]));
        go.send(()).unwrap();
        assert_eq!(writes.recv().unwrap().len(), 1000);
        drop(go);
        outbox.close();
        assert!(writes.recv().is_err(), "nothing was left");
    }

    #[test]
    fn the_newest_output_is_kept_and_the_loss_is_told() {
        let ((written, writes), (go, gone)) = (channel(), channel());
        let outbox = Outbox::spawn(Slow(written, gone)).unwrap();
        outbox.push(b"a");
        writes.recv().unwrap();
        outbox.push(&[b'x'; LIMIT]);
        outbox.push(b"newest");
        outbox.close();
        drop(go);
        let batch = writes.recv().unwrap();
        assert!(batch.starts_with(b"\r\n[wherry: 6 bytes of output lost]\r\nxxx"));
        assert!(batch.ends_with(b"xxnewest"));
    }
}
