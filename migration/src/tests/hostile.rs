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
use crate::traits::DestinationVm;
use crate::wire::pages::{Run, encode_runs, pack_lz4, packed_room};
use crate::wire::version::{Agreed, Hello, NEWEST, VERSIONS, Welcome};
use crate::wire::{
    FEATURE_CRC32, FEATURE_LZ4, FEATURE_UNSUMMED, FEATURES, Header, Kind, MAX_STATE, Machine,
    RoundStart, STATE_PART, StateEnd, Sum, WireError, codec,
};
use crate::*;

/// A frame with right checksums, whatever is in it.
pub(super) fn frame(kind: u16, seq: u64, payload: &[u8]) -> Vec<u8> {
    frame_of(NEWEST, kind, seq, payload)
}

/// The same, of any version.
pub(super) fn frame_of(version: u16, kind: u16, seq: u64, payload: &[u8]) -> Vec<u8> {
    frame_summed(Sum::Xxh64, version, kind, seq, payload)
}

/// The same, by what it is summed.
pub(super) fn frame_summed(sum: Sum, version: u16, kind: u16, seq: u64, payload: &[u8]) -> Vec<u8> {
    let sum = sum.over(&[payload]);
    let header = Header { version, kind, seq, len: payload.len() as u32, sum };
    let mut out = header.encode().to_vec();
    out.extend_from_slice(payload);
    out
}

pub(super) fn hello(needed: u64) -> (Kind, Vec<u8>) {
    let hello = Hello::new(&VERSIONS, needed);
    (Kind::Hello, codec::encode(&hello, Kind::Hello).unwrap())
}

pub(super) fn machine(nr_pages: u64) -> (Kind, Vec<u8>) {
    let machine = Machine { nr_pages, description: b"model".to_vec() };
    (Kind::Machine, codec::encode(&machine, Kind::Machine).unwrap())
}

/// A destination's Welcome that uses these features, and its Ready.
pub(super) fn welcome(features: u64) -> Vec<(Kind, Vec<u8>)> {
    let welcome = Welcome::new(Agreed { version: NEWEST, features });
    vec![(Kind::Welcome, codec::encode(&welcome, Kind::Welcome).unwrap()), (Kind::Ready, vec![])]
}

pub(super) fn round(round: u32) -> Vec<u8> {
    codec::encode(&RoundStart { round }, Kind::Round).unwrap()
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
    codec::encode(&end, Kind::StateEnd).unwrap()
}

/// Feeds bytes to a receiver and then ends the stream.
pub(super) fn feed(bytes: Vec<u8>) -> (Result<Received, Failure>, Dest) {
    let mut dest = Dest::default();
    (feed_to(bytes, &mut dest), dest)
}

/// The same, with a machine of its own.
pub(super) fn feed_to(bytes: Vec<u8>, dest: &mut dyn DestinationVm) -> Result<Received, Failure> {
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
    let cfg = DestinationConfig {
        stall_timeout: Duration::from_secs(2),
        crc32: true,
        ..DestinationConfig::default()
    };
    let result = receive(Box::new(far), dest, &cfg, &(), &CancelToken::new());
    feeder.join().unwrap();
    drainer.join().unwrap();
    result
}

pub(super) fn stream(frames: &[(Kind, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![];
    for (seq, (kind, payload)) in frames.iter().enumerate() {
        out.extend(frame(*kind as u16, seq as u64, payload));
    }
    out
}

/// A short, valid migration.
pub(super) fn valid() -> Vec<(Kind, Vec<u8>)> {
    vec![
        hello(0),
        machine(100),
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
fn memory_is_summed_as_was_agreed_and_all_else_as_ever() {
    let sent = |features, kinds: &[Kind]| {
        let mut frames = valid();
        frames[0] = hello(features);
        let bytes = frames.iter().zip(0..).flat_map(|((kind, payload), seq)| {
            let sum = if kinds.contains(kind) { Sum::Crc32 } else { Sum::Xxh64 };
            frame_summed(sum, NEWEST, *kind as u16, seq, payload)
        });
        feed(bytes.collect())
    };
    let refused = |(result, dest): (Result<Received, Failure>, Dest)| {
        let Error::Wire(WireError::PayloadSum) = result.unwrap_err().cause else { return false };
        dest.memory().iter().all(|&byte| byte == 0)
    };
    assert!(sent(FEATURE_CRC32, &[Kind::Pages]).0.is_ok());
    assert!(refused(sent(FEATURE_CRC32, &[])));
    assert!(refused(sent(0, &[Kind::Pages])));
    assert!(refused(sent(FEATURE_CRC32, &[Kind::Pages, Kind::Round])));
    // Nothing else finds damage here.
    let (result, _) = sent(FEATURE_UNSUMMED, &[]);
    let cause = result.unwrap_err().cause;
    assert!(matches!(cause, Error::Wire(WireError::Features(FEATURE_UNSUMMED))), "{cause}");
}

#[test]
fn hostile_streams_are_refused() {
    let with = |at: usize, kind: Kind, payload: Vec<u8>| {
        let mut frames = valid();
        frames[at] = (kind, payload);
        stream(&frames)
    };
    let for_machine = |nr_pages| with(1, Kind::Machine, machine(nr_pages).1);
    let (version, kind) = (NEWEST, Kind::Hello as u16);
    let huge_header = Header { version, kind, seq: 0, len: u32::MAX, sum: 0 };
    let mut gap = stream(&valid()[..3]);
    gap.extend(frame(Kind::Pages as u16, 7, &pages(3, 1, true, 0)));
    let mut early = valid();
    early.truncate(7);
    early.push((Kind::HandOff, vec![]));
    let mut late_pages = valid();
    late_pages.insert(8, (Kind::Pages, pages(3, 1, true, 0)));
    let mut giant_vec = machine(100).1;
    giant_vec[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let later = Hello::new(&(NEWEST + 1..=NEWEST + 2), 0);
    let later = codec::encode(&later, Kind::Hello).unwrap();
    let other = frame_of(NEWEST + 1, Kind::Round as u16, 2, &round(1));
    let mut packed = valid();
    packed[3] = (Kind::PagesLz4, packed_pages(3, 1, 4096));
    let unannounced = stream(&packed);
    packed[0] = hello(FEATURE_LZ4);
    assert!(feed(stream(&packed)).0.is_ok());
    packed[3] = (Kind::PagesLz4, packed_pages(3, 1, 1 << 20));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("compressed without a word", unannounced),
        ("more compressed than announced", stream(&packed)),
        ("a feature that there is not", with(0, Kind::Hello, hello(FEATURES + 1).1)),
        ("nothing", vec![]),
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("giant length", huge_header.encode().to_vec()),
        ("a source of later versions", frame_of(NEWEST + 2, kind, 0, &later)),
        ("another version later on", [stream(&valid()[..2]), other].concat()),
        ("giant vector", with(1, Kind::Machine, giant_vec)),
        ("no pages", for_machine(0)),
        ("giant guest", for_machine(u64::MAX)),
        ("guest the machine refuses", for_machine(1 << 30)),
        ("pages before a round", with(2, Kind::Pages, pages(0, 1, true, 0))),
        ("round out of order", with(5, Kind::Round, round(3))),
        ("round again", with(5, Kind::Round, round(1))),
        ("outside RAM", with(3, Kind::Pages, pages(99, 2, true, 0))),
        ("far outside RAM", with(3, Kind::Pages, pages(u64::MAX, 2, true, 0))),
        ("content missing", with(3, Kind::Pages, pages(3, 200, false, 4096))),
        ("sequence", gap),
        ("hand-off before state", stream(&early)),
        ("pages after state", stream(&late_pages)),
        ("state length", with(8, Kind::StateEnd, end(b"other state"))),
        ("state checksum", with(8, Kind::StateEnd, end(b"statE"))),
        ("answer from the source", with(4, Kind::Loaded, vec![])),
        ("payload where none belongs", with(9, Kind::HandOff, vec![1])),
        ("ends before the hand-off", stream(&valid()[..9])),
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
    frames.truncate(7);
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
    // A frame of a version that this side does not speak; and what an older destination says to
    // one of this side's.
    let version = answer(frame_of(1, Kind::Welcome as u16, 0, &[0; 8])).to_string();
    assert!(version.contains("the other has version 1, this one version"), "{version}");
    let abort = codec::encode(&crate::wire::Abort::new("speaks 1"), Kind::Abort).unwrap();
    let refused = answer(frame_of(1, Kind::Abort as u16, 0, &abort));
    assert!(matches!(&refused, Error::Refused(why) if why == "speaks 1"), "{refused:?}");
    let unexpected = answer(frame(Kind::Running as u16, 0, &[]));
    assert!(matches!(unexpected, Error::Wire(_)), "{unexpected:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn frames_with_right_checksums_and_wrong_content_never_panic(
        mutations in prop::collection::vec((0usize..10, 0usize..64, any::<u8>(), 0u8..4), 1..4),
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
