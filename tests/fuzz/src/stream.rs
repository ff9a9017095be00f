//! Frames over a stream socket, whose other side sends anything in any pieces and reads when it
//! likes.
//!
//! Each byte chooses an operation, the ones after it are its operands. Whatever was done: what is
//! read are the frames that were sent, whole and in order, up to the first length that no frame
//! has; and what the other side reads are the frames that were taken, whole and in order, however
//! little room there was.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use socket2::SockRef;
use wherry_vmm::net::stream::{LONGEST, Stream};

use crate::bytes::Bytes;

/// Operations, for seeds.
mod op {
    pub const RAW: u8 = 0;
    pub const FRAME: u8 = 1;
    pub const READ: u8 = 2;
    pub const WRITE: u8 = 3;
    pub const TAKE: u8 = 4;
    pub const FLUSH: u8 = 5;
    pub const NR: u8 = 6;
}

/// Frames in pieces, a lie, and long ones for a side that reads slowly.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let pieces = [
        &[op::RAW, 3, 0, 0, 0, op::READ][..],
        &[op::RAW, 4, 3, 7, 8, 9, op::READ, op::READ],
        &[op::FRAME, 60, 0, op::FRAME, 0xff, 0xff, op::READ, op::READ, op::READ],
    ]
    .concat();
    let lie = [&pieces[..], &[op::RAW, 4, 0, 1, 0, 0xf, op::READ, op::READ]].concat();
    let long = [op::WRITE, 0xff, 0xff, op::WRITE, 60, 0, op::TAKE, 0xff, 8, op::FLUSH];
    vec![("pieces", pieces), ("lie", lie), ("long", long.repeat(4))]
}

struct Run {
    stream: Stream,
    other: UnixStream,
    /// What the other side has sent, and how much of it was read.
    sent: Vec<u8>,
    read: usize,
    /// What it is to get, and how much it has.
    taken: Vec<u8>,
    got: usize,
}

/// See the module's text.
pub fn stream(data: &[u8]) {
    let mut input = Bytes(data);
    let (own, other) = UnixStream::pair().expect("sockets");
    // Long frames do not fit at once.
    SockRef::from(&own).set_send_buffer_size(4096).expect("a socket");
    other.set_nonblocking(true).expect("a socket");
    let stream = Stream::new(own).expect("a socket");
    let mut run = Run { stream, other, sent: vec![], read: 0, taken: vec![], got: 0 };
    let mut whole = true;
    while !input.is_empty() && whole {
        whole = run.step(&mut input);
    }
    // All that was taken goes out, if the other side reads.
    while run.got < run.taken.len() {
        run.flush();
        assert!(run.take(1 << 16) > 0, "nothing more comes of {}", run.taken.len() - run.got);
    }
    assert!(!run.stream.is_half_done() && run.take(1) == 0);
}

impl Run {
    /// `false`: the stream is over.
    fn step(&mut self, input: &mut Bytes<'_>) -> bool {
        match input.u8() % op::NR {
            op::RAW => {
                let len = input.u8().into();
                self.send(input.take(len));
            }
            op::FRAME => {
                let len = usize::from(input.u16()).max(1);
                self.send(&(len as u32).to_be_bytes());
                let frame: Vec<u8> =
                    (0..len).map(|nth| (nth * 31 + self.sent.len()) as u8).collect();
                self.send(&frame);
            }
            op::READ => return self.read(),
            op::WRITE => self.write(input.u16().into()),
            op::TAKE => drop(self.take(input.u16().into())),
            _ => self.flush(),
        }
        true
    }

    /// What has no room is not sent: the frames are others then.
    fn send(&mut self, bytes: &[u8]) {
        let len = self.other.write(bytes).unwrap_or(0);
        self.sent.extend_from_slice(&bytes[..len]);
    }

    fn read(&mut self) -> bool {
        let come = &self.sent[self.read..];
        let len = come.first_chunk().map(|len| u32::from_be_bytes(*len) as usize);
        let lie = len.is_some_and(|len| len == 0 || len > LONGEST);
        let mut frame = vec![0; LONGEST];
        match self.stream.read(&mut frame) {
            Ok(read) => {
                assert!(Some(read) == len && frame[..read] == come[4..][..read]);
                self.read += 4 + read;
            }
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                assert!(lie);
                return false;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                let whole = len.is_some_and(|len| come.len() >= 4 + len);
                assert!(!whole && !lie, "there is one");
            }
        }
        true
    }

    fn write(&mut self, len: usize) {
        let frame: Vec<u8> = (0..len).map(|nth| (nth * 17 + self.taken.len()) as u8).collect();
        match self.stream.write(&frame) {
            Ok(()) => {
                self.taken.extend((len as u32).to_be_bytes());
                self.taken.extend(frame);
            }
            Err(e) if len == 0 => assert!(e.kind() != ErrorKind::BrokenPipe),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
    }

    /// The other side reads. Returns how much there was.
    fn take(&mut self, most: usize) -> usize {
        let mut bytes = vec![0; most];
        let len = self.other.read(&mut bytes).unwrap_or(0);
        assert!(self.taken.get(self.got..self.got + len) == Some(&bytes[..len]));
        self.got += len;
        len
    }

    fn flush(&mut self) {
        if let Err(e) = self.stream.flush() {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
        }
    }
}
