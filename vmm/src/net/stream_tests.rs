//! Frames in pieces, and an other side that lies, ends, or does not read.

use super::*;

fn pair() -> (Stream, UnixStream) {
    let (own, other) = UnixStream::pair().unwrap();
    other.set_nonblocking(true).unwrap();
    (Stream::new(own).unwrap(), other)
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|nth| (nth as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

/// The next frame, or why there is none; with as many looks as it takes.
fn next(stream: &mut Stream) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = vec![0; LONGEST];
    loop {
        match stream.read(&mut bytes) {
            Ok(len) => return Ok(bytes[..len].to_vec()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.kind()),
        }
    }
}

#[test]
fn frames_arrive_whole_wherever_the_pieces_end() {
    let frames = [frame(60, 1), frame(1, 2), frame(1514, 3)];
    let bytes = frames.each_ref().map(|frame| framed(frame)).concat();
    for piece in [1, 3, 4, 5, 61, bytes.len()] {
        let (mut stream, mut other) = pair();
        let mut got = Vec::new();
        for part in bytes.chunks(piece) {
            other.write_all(part).unwrap();
            while let Ok(frame) = next(&mut stream) {
                got.push(frame);
            }
        }
        assert!(got == frames, "in pieces of {piece}");
        assert_eq!(next(&mut stream), Err(ErrorKind::WouldBlock));
    }
}

#[test]
fn the_longest_frames_find_room_behind_others() {
    let (mut stream, mut other) = pair();
    let (mut left, mut got) = (Vec::new(), Vec::new());
    for nth in 0..8 {
        left.extend(framed(&frame(LONGEST - nth, nth as u8)));
    }
    let mut left = &left[..];
    while got.len() < 8 {
        let written = other.write(left).unwrap_or(0);
        left = &left[written..];
        got.extend(next(&mut stream));
    }
    assert!((0..8).all(|nth| got[nth] == frame(LONGEST - nth, nth as u8)));
}

#[test]
fn each_look_reads_once_so_that_others_have_their_turn() {
    let (mut stream, mut other) = pair();
    other.write_all(&framed(&frame(60, 1))[..30]).unwrap();
    let mut bytes = [0; LONGEST];
    assert_eq!(stream.read(&mut bytes).unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(stream.read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_length_that_no_frame_has_ends_the_stream() {
    for len in [0, LONGEST as u32 + 1, 0x0100_0000, u32::MAX] {
        let (mut stream, mut other) = pair();
        other.write_all(&framed(&frame(20, 1))).unwrap();
        other.write_all(&len.to_be_bytes()).unwrap();
        assert_eq!(next(&mut stream), Ok(frame(20, 1)), "what came before it counts");
        assert_eq!(next(&mut stream), Err(ErrorKind::InvalidData), "{len}");
        assert_eq!(stream.input.len(), BUFFER, "no memory for what it says");
    }
    let (mut stream, other) = pair();
    drop(other);
    assert_eq!(next(&mut stream), Err(ErrorKind::UnexpectedEof));
    assert_eq!(stream.write(&[0; 60]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(stream.write(&[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(stream.write(&[0; LONGEST + 1]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_frame_longer_than_the_room_goes_out_in_parts() {
    let (mut stream, mut other) = pair();
    socket2::SockRef::from(&stream.socket).set_send_buffer_size(4096).unwrap();
    let (first, second) = (frame(LONGEST, 1), frame(60, 2));
    stream.write(&first).unwrap();
    assert!(stream.is_half_done(), "it was not cut");
    assert_eq!(stream.write(&second).unwrap_err().kind(), ErrorKind::WouldBlock);
    let (mut got, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
    while got.len() < 4 + LONGEST {
        let len = other.read(&mut bytes).unwrap();
        got.extend_from_slice(&bytes[..len]);
        let _ = stream.flush();
    }
    assert!(got == framed(&first) && !stream.is_half_done());
    stream.write(&second).unwrap();
}

#[test]
fn the_rest_of_a_frame_goes_before_the_next_one() {
    let (mut stream, mut other) = pair();
    let (first, second) = (framed(&frame(60, 1)), frame(60, 2));
    stream.output = first.clone();
    stream.write(&second).unwrap();
    let mut bytes = vec![0; 1 << 16];
    let len = other.read(&mut bytes).unwrap();
    assert!(bytes[..len] == [first, framed(&second)].concat() && !stream.is_half_done());
}

#[test]
fn a_frame_that_does_not_fit_stays_whole_and_nothing_overtakes_it() {
    let (mut stream, mut other) = pair();
    let mut sent = Vec::new();
    let full = loop {
        let frame = frame(1 + sent.len() * 37 % 3000, sent.len() as u8);
        match stream.write(&frame) {
            Ok(()) => sent.push(frame),
            Err(e) => break e.kind(),
        }
    };
    assert_eq!(full, ErrorKind::WouldBlock);
    // As if only a part had found room, wherever that ends.
    let part = framed(&frame(700, 9));
    for end in [1, 4, 5, 699] {
        stream.output = part[..end].to_vec();
        assert!(stream.is_half_done());
        assert_eq!(stream.write(&[1; 60]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let (mut got, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
        while stream.is_half_done() {
            let len = other.read(&mut bytes).unwrap();
            got.extend_from_slice(&bytes[..len]);
            let _ = stream.flush();
        }
        while let Ok(len @ 1..) = other.read(&mut bytes) {
            got.extend_from_slice(&bytes[..len]);
        }
        let before: Vec<u8> = sent.drain(..).flat_map(|frame| framed(&frame)).collect();
        assert!(got == [&before, &part[..end]].concat());
        while stream.write(&[2; 3000]).is_ok() {
            sent.push(vec![2; 3000]);
        }
    }
}
