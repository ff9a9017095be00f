//! Bytes from a peer that means harm: an error, never a panic, never an allocation beyond the
//! limits.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::dest::Dest;
use super::model::Model;
use super::oracle::config;
use crate::wire::pages::{Run, encode_runs, pack_lz4, packed_room};
use crate::wire::{
    FEATURE_LZ4, FEATURES, Header, Hello, Kind, MAX_STATE, RoundStart, STATE_PART, StateEnd,
    checksum, codec,
};
use crate::*;

/// A frame with right checksums, whatever is in it.
pub(super) fn frame(kind: u16, seq: u64, payload: &[u8]) -> Vec<u8> {
    let header = Header { kind, seq, len: payload.len() as u32, sum: checksum(&[payload]) };
    let mut out = header.encode().to_vec();
    out.extend_from_slice(payload);
    out
}

fn hello(nr_pages: u64) -> Vec<u8> {
    hello_with(0, nr_pages)
}

pub(super) fn hello_with(features: u64, nr_pages: u64) -> Vec<u8> {
    let hello = Hello { features, nr_pages, description: b"model".to_vec() };
    codec::encode(&hello, "hello", 1 << 20).unwrap()
}

pub(super) fn round(round: u32) -> Vec<u8> {
    codec::encode(&RoundStart { round }, "round", 64).unwrap()
}

pub(super) fn pages(first: u64, nr: u32, zero: bool, content: usize) -> Vec<u8> {
    let mut out = vec![];
    encode_runs(&[Run { first, nr, zero }], &mut out);
    out.resize(out.len() + content, 9);
    out
}

/// A frame of `nr` pages whose compressed content has `len` bytes.
fn packed_pages(first: u64, nr: u32, len: usize) -> Vec<u8> {
    let mut out = pages(first, nr, false, 0);
    out.extend(pack_lz4(&vec![9; len], &mut vec![0; packed_room()]).unwrap());
    out
}

fn end(state: &[u8]) -> Vec<u8> {
    let end = StateEnd { len: state.len() as u64, crc: crc32fast::hash(state) };
    codec::encode(&end, "end", 64).unwrap()
}

/// Feeds bytes to a receiver and then ends the stream.
pub(super) fn feed(bytes: Vec<u8>) -> (Result<Received, Failure>, Dest) {
    let (near, far) = UnixStream::pair().unwrap();
    let mut drain = near.try_clone().unwrap();
    let drainer = thread::spawn(move || {
        let _ = drain.read_to_end(&mut Vec::new());
    });
    let feeder = thread::spawn(move || {
        let mut near = near;
        let _ = near.write_all(&bytes);
        let _ = near.shutdown(Shutdown::Write);
    });
    let mut dest = Dest::default();
    let cfg =
        DestinationConfig { stall_timeout: Duration::from_secs(2), ..DestinationConfig::default() };
    let result = receive(Box::new(far), &mut dest, &cfg, &(), &CancelToken::new());
    feeder.join().unwrap();
    drainer.join().unwrap();
    (result, dest)
}

pub(super) fn stream(frames: &[(Kind, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![];
    for (seq, (kind, payload)) in frames.iter().enumerate() {
        out.extend(frame(*kind as u16, seq as u64, payload));
    }
    out
}

/// A short, valid migration.
fn valid() -> Vec<(Kind, Vec<u8>)> {
    vec![
        (Kind::Hello, hello(100)),
        (Kind::Round, round(1)),
        (Kind::Pages, pages(3, 2, false, 8192)),
        (Kind::Idle, vec![]),
        (Kind::Round, round(2)),
        (Kind::Pages, pages(4, 96, true, 0)),
        (Kind::State, b"state".to_vec()),
        (Kind::StateEnd, end(b"state")),
        (Kind::HandOff, vec![]),
    ]
}

#[test]
fn a_valid_stream_is_received() {
    let (result, dest) = feed(stream(&valid()));
    assert!(result.is_ok() && dest.runs == 1);
    let memory = dest.memory();
    assert!(memory[3 * 4096..4 * 4096].iter().all(|&b| b == 9));
    assert!(memory[4 * 4096..].iter().all(|&b| b == 0));
}

#[test]
fn hostile_streams_are_refused() {
    let with = |at: usize, kind: Kind, payload: Vec<u8>| {
        let mut frames = valid();
        frames[at] = (kind, payload);
        stream(&frames)
    };
    let huge_header = Header { kind: Kind::Hello as u16, seq: 0, len: u32::MAX, sum: 0 };
    let mut gap = stream(&valid()[..2]);
    gap.extend(frame(Kind::Pages as u16, 7, &pages(3, 1, true, 0)));
    let mut early = valid();
    early.truncate(6);
    early.push((Kind::HandOff, vec![]));
    let mut late_pages = valid();
    late_pages.insert(7, (Kind::Pages, pages(3, 1, true, 0)));
    let mut giant_vec = hello(100);
    giant_vec[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut other = huge_header.encode_as(7).to_vec();
    other.extend([0; 100]);
    let mut packed = valid();
    packed[2] = (Kind::PagesLz4, packed_pages(3, 1, 4096));
    let unannounced = stream(&packed);
    packed[0] = (Kind::Hello, hello_with(FEATURE_LZ4, 100));
    assert!(feed(stream(&packed)).0.is_ok());
    packed[2] = (Kind::PagesLz4, packed_pages(3, 1, 1 << 20));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("compressed without a word", unannounced),
        ("more compressed than announced", stream(&packed)),
        ("a feature that there is not", with(0, Kind::Hello, hello_with(FEATURES + 1, 100))),
        ("nothing", vec![]),
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("giant length", huge_header.encode().to_vec()),
        ("other version", other),
        ("giant vector", with(0, Kind::Hello, giant_vec)),
        ("no pages", with(0, Kind::Hello, hello(0))),
        ("giant guest", with(0, Kind::Hello, hello(u64::MAX))),
        ("guest the machine refuses", with(0, Kind::Hello, hello(1 << 30))),
        ("pages before a round", with(1, Kind::Pages, pages(0, 1, true, 0))),
        ("round out of order", with(4, Kind::Round, round(3))),
        ("round again", with(4, Kind::Round, round(1))),
        ("outside RAM", with(2, Kind::Pages, pages(99, 2, true, 0))),
        ("far outside RAM", with(2, Kind::Pages, pages(u64::MAX, 2, true, 0))),
        ("content missing", with(2, Kind::Pages, pages(3, 200, false, 4096))),
        ("sequence", gap),
        ("hand-off before state", stream(&early)),
        ("pages after state", stream(&late_pages)),
        ("state length", with(7, Kind::StateEnd, end(b"other state"))),
        ("state checksum", with(7, Kind::StateEnd, end(b"statE"))),
        ("answer from the source", with(3, Kind::Loaded, vec![])),
        ("payload where none belongs", with(8, Kind::HandOff, vec![1])),
        ("ends before the hand-off", stream(&valid()[..8])),
    ];
    for (name, bytes) in cases {
        let (result, dest) = feed(bytes);
        let failure = result.expect_err(name);
        assert_eq!(dest.runs, 0, "{name}: {failure:?}");
    }
}

#[test]
fn state_beyond_the_limit_is_refused() {
    let mut frames = valid();
    frames.truncate(6);
    for _ in 0..=MAX_STATE / STATE_PART {
        frames.push((Kind::State, vec![1; STATE_PART]));
    }
    let (result, _) = feed(stream(&frames));
    let cause = result.unwrap_err().cause;
    assert!(matches!(cause, Error::Wire(crate::wire::WireError::State(_))), "{cause:?}");
}

#[test]
fn every_cut_and_flip_of_a_valid_stream_is_an_error() {
    let good = stream(&valid());
    // Ends of frames, and a sample of what lies between.
    for cut in (0..good.len()).filter(|c| c % 97 < 3 || *c > good.len() - 150) {
        let (result, dest) = feed(good[..cut].to_vec());
        assert!(result.is_err() && dest.runs == 0, "cut at {cut}");
    }
    for at in (0..good.len()).filter(|c| c % 97 < 3 || *c > good.len() - 150) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let (result, dest) = feed(bad);
        assert!(result.is_err() && dest.runs == 0, "flip at {at}");
    }
}

#[test]
fn peers_that_are_not_wherry_or_not_this_version_are_told_apart() {
    let other = Header { kind: 16, seq: 0, len: 0, sum: 0 };
    let answer = |bytes: Vec<u8>| {
        let model = Model::new(200, false, vec![]);
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&bytes).unwrap();
        let failure =
            migrate(&model.vm(), Box::new(near), &config(HintMode::Auto), &(), &CancelToken::new())
                .unwrap_err();
        assert_eq!(failure.ownership, Ownership::SourceRuns);
        assert_eq!(failure.phase, Phase::Handshake);
        failure.cause
    };
    assert!(matches!(answer(b"SSH-2.0-OpenSSH".to_vec()), Error::NotWherry));
    let version = answer(other.encode_as(2).to_vec());
    assert!(matches!(version, Error::Version { theirs: 2, ours: 1 }), "{version:?}");
    let unexpected = answer(frame(Kind::Running as u16, 0, &[]));
    assert!(matches!(unexpected, Error::Wire(_)), "{unexpected:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn frames_with_right_checksums_and_wrong_content_never_panic(
        mutations in prop::collection::vec((0usize..9, 0usize..64, any::<u8>(), 0u8..4), 1..4),
    ) {
        let mut frames = valid();
        for (at, byte, value, what) in mutations {
            let at = at % frames.len();
            match what {
                0 if !frames[at].1.is_empty() => {
                    let byte = byte % frames[at].1.len();
                    frames[at].1[byte] ^= value | 1;
                }
                1 => { frames.remove(at); }
                2 => { let copy = frames[at].clone(); frames.insert(at, copy); }
                _ => { let len = byte; frames[at].1.resize(len, value); }
            }
            if frames.is_empty() { break; }
        }
        let hand_off = frames.iter().any(|(kind, _)| *kind == Kind::HandOff);
        let (result, dest) = feed(stream(&frames));
        prop_assert_eq!(result.is_ok(), dest.runs == 1);
        prop_assert!(hand_off || dest.runs == 0);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut with_magic = crate::wire::MAGIC.to_vec();
        with_magic.extend_from_slice(&bytes);
        prop_assert!(feed(bytes).0.is_err());
        prop_assert!(feed(with_magic).0.is_err());
    }
}
