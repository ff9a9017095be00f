//! What a frame looks like to the connection.

use std::io::{self, IoSlice, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::FrameLimit;
use crate::link::{Cap, FrameWriter, Interrupt};
use crate::transport::{Throttle, WriteHalf};
use crate::wire::pages::{Run, encode_runs};
use crate::wire::{HEADER_LEN, Kind};

/// What was written, how much of it by each call, and where it was flushed.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    calls: Vec<usize>,
    flushed: Vec<usize>,
}

/// Takes `most` bytes a call.
struct Takes {
    most: usize,
    seen: Arc<Mutex<Seen>>,
}

impl Write for Takes {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let all = bufs.iter().flat_map(|buf| buf.iter());
        let mut seen = self.seen.lock().unwrap();
        let before = seen.bytes.len();
        seen.bytes.extend(all.take(self.most));
        let taken = seen.bytes.len() - before;
        seen.calls.push(taken);
        Ok(taken)
    }

    /// Needs some time for it.
    fn flush(&mut self) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap();
        let end = seen.bytes.len();
        seen.flushed.push(end);
        match seen.flushed.iter().filter(|at| **at == end).count() {
            3.. => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl WriteHalf for Takes {
    fn shutdown(&self) {}
}

/// Sends a frame of memory and one without payload to a connection that takes so much at a time.
fn sent(most: usize, cap: Option<Cap>) -> (Seen, Vec<u8>, Vec<u8>) {
    let seen = Arc::<Mutex<Seen>>::default();
    let out = Box::new(Takes { most, seen: seen.clone() });
    let patience = (Duration::from_secs(10), FrameLimit::default());
    let mut writer = FrameWriter::new(out, cap, patience, Interrupt::default());
    let (mut table, content) = (Vec::new(), vec![7; 32 * 4096]);
    encode_runs(&[Run { first: 3, nr: 32, zero: false }], &mut table);
    writer.send_pages(&table, (&content, None), &mut []).unwrap();
    writer.send(Kind::Idle, &[]).unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(writer.bytes(), seen.bytes.len() as u64);
    (seen, table, content)
}

#[test]
fn a_frame_is_one_call_and_the_same_bytes_however_they_go_out() {
    let (whole, table, content) = sent(usize::MAX, None);
    let payload = [table, content].concat();
    assert_eq!(whole.calls, [HEADER_LEN + payload.len(), HEADER_LEN]);
    assert_eq!(whole.bytes[HEADER_LEN..][..payload.len()], payload);
    // Nothing of a frame stays behind until the next one, which may never come.
    let ends = [HEADER_LEN + payload.len(), 2 * HEADER_LEN + payload.len()];
    assert_eq!(whole.flushed, ends.map(|end| [end; 3]).concat());
    // Cut anywhere: within the header, the table, the content.
    for most in [1000, 40, 7] {
        assert!(sent(most, None).0.bytes == whole.bytes, "{most} bytes a call");
    }
    // A cap of 10 ms' worth: cut by this side, and no more than that is taken at once.
    let throttle = Throttle::new(5_000_000);
    let piece = throttle.piece();
    let (capped, ..) = sent(usize::MAX, Some(Arc::new(Mutex::new(throttle))));
    assert!(capped.bytes == whole.bytes);
    assert!(capped.calls.iter().all(|&taken| taken <= piece), "{:?}", capped.calls);
    assert!(capped.calls.len() >= payload.len() / piece);
}
