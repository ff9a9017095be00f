//! Sides of different versions, and what no version may change.

use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::thread;

use super::dest::Dest;
use super::hostile::{feed, frame_of, frame_summed, hello, machine, pages, round, stream};
use super::model::Model;
use super::oracle::{config, pair};
use crate::traits::{Machine, SourceVm};
use crate::transport::{Halves, WriteHalf};
use crate::wire::boot::{Boot, BootWanted, FileId};
use crate::wire::digests::Digests;
use crate::wire::pages::{pack_lz4, packed_room};
use crate::wire::version::{Agreed, Hello, NEWEST, VERSIONS, Welcome};
use crate::wire::{
    Abort, FEATURE_CRC32, HEADER_LEN, Header, Join, Kind, StateEnd, Streams, Sum, SyncPoint,
    VerifyChunk,
};
use crate::*;

/// The payload of a frame of each kind.
fn payload(kind: Kind) -> Vec<u8> {
    fn control<T: serde::Serialize>(value: &T) -> Vec<u8> {
        wherry_codec::encode(value).unwrap()
    }
    let release = || "wherry 0.2.0".to_string();
    match kind {
        Kind::Hello => {
            control(&Hello { oldest: 2, newest: 3, needed: 5, offered: 8, release: release() })
        }
        Kind::Welcome => {
            let agreed = Agreed { version: 2, features: 5 };
            control(&Welcome { release: release(), ..Welcome::new(agreed) })
        }
        Kind::Machine => machine(0x1234_5678).1,
        Kind::Round => round(7),
        Kind::Pages => pages(0x12_3456, 2, false, 8192),
        Kind::PagesLz4 => {
            let mut out = pages(3, 1, false, 0);
            out.extend(pack_lz4(&[9; 4096], &mut vec![0; packed_room()]).unwrap());
            out
        }
        Kind::State => b"state".to_vec(),
        Kind::StateEnd => control(&StateEnd { len: 5, crc: crc32fast::hash(b"state") }),
        Kind::Verify => control(&VerifyChunk { first: 0x10_0000, nr: 77 }),
        Kind::Digests => {
            let (mut digests, mut out) = (Digests::default(), vec![]);
            digests.begin(0x10_0000, 77);
            digests.push(0x10_0003, &[1; 4096]);
            digests.encode(&mut out);
            out
        }
        Kind::Streams => control(&Streams { nr: 3, token: 0x1234 << 100 }),
        Kind::Join => control(&Join { stream: 2, token: 0x1234 << 100 }),
        Kind::Sync => control(&SyncPoint { round: 7 }),
        Kind::Boot => {
            let file = FileId { len: 0x1234, digest: 0x0102_0304_0506_0708 };
            control(&Boot { description: b"what".to_vec(), files: vec![file] })
        }
        Kind::BootPart => b"part".to_vec(),
        Kind::BootWanted => control(&BootWanted { files: vec![true, false] }),
        Kind::Abort => control(&Abort::new("why")),
        Kind::Idle | Kind::HandOff | Kind::Ready | Kind::Loaded | Kind::Running => vec![],
    }
}

#[test]
fn golden_bytes_of_every_frame() {
    for kind in (0..=u16::MAX).filter_map(Kind::from_u16) {
        let memory = matches!(kind, Kind::Pages | Kind::PagesLz4);
        for (features, name) in [(0, ""), (FEATURE_CRC32, if memory { "-crc32" } else { "" })] {
            let sum = Sum::of(kind, features);
            let frame = frame_summed(sum, 2, kind as u16, 0x77, &payload(kind));
            let name = format!("frame-{:02}-{kind:?}{name}.bin", kind as u16).to_lowercase();
            wherry_codec::golden::check(env!("CARGO_MANIFEST_DIR"), &name, &frame);
        }
    }
}

/// Notes for which version it was to describe and save itself.
struct Asked {
    inner: Arc<Model>,
    versions: Mutex<Vec<u16>>,
}

impl Machine for Asked {
    fn pause(&self) -> io::Result<()> {
        self.inner.pause()
    }
    fn resume(&self) -> io::Result<()> {
        self.inner.resume()
    }
    fn hand_over(&self, begun: bool) -> io::Result<()> {
        self.inner.hand_over(begun)
    }
    fn describe(&self, version: u16) -> io::Result<Vec<u8>> {
        self.versions.lock().unwrap().push(version);
        self.inner.describe(version)
    }
    fn save(&self, version: u16) -> io::Result<Vec<u8>> {
        self.versions.lock().unwrap().push(version);
        self.inner.save(version)
    }
}

/// Moves a guest from one side to another. Returns the versions in which its machine was described
/// and saved.
fn moved(
    from: RangeInclusive<u16>,
    to: RangeInclusive<u16>,
    streams: u32,
) -> Result<Vec<u16>, Box<(Failure, Failure)>> {
    let from = SourceConfig { versions: from, streams, ..config(HintMode::Auto) };
    moved_by(&from, DestinationConfig { versions: to, ..DestinationConfig::default() })
}

fn moved_by(
    from: &SourceConfig,
    to: DestinationConfig,
) -> Result<Vec<u16>, Box<(Failure, Failure)>> {
    let ends = match from.streams {
        1 => pair(),
        streams => super::streams::linked(streams, |_| pair()),
    };
    moved_over(ends, from, to)
}

fn moved_over(
    (near, far): (Box<dyn Transport>, Box<dyn Transport>),
    from: &SourceConfig,
    to: DestinationConfig,
) -> Result<Vec<u16>, Box<(Failure, Failure)>> {
    let model = Model::new(200, false, vec![]);
    let asked = Arc::new(Asked { inner: model.clone(), versions: Mutex::default() });
    let vm = SourceVm { machine: asked.clone(), ..model.vm() };
    let receiver = thread::spawn(move || {
        let mut dest = Dest::default();
        receive(far, &mut dest, &to, &(), &CancelToken::new()).map(|_| dest.memory())
    });
    let report = migrate(&vm, near, from, &(), &CancelToken::new());
    match (report, receiver.join().unwrap()) {
        (Ok(_), Ok(memory)) => {
            model.compare(&memory).unwrap();
            let versions = asked.versions.lock().unwrap();
            Ok(versions.clone())
        }
        (Err(left), Err(arrived)) => Err(Box::new((left, arrived))),
        (left, arrived) => panic!("{:?} {:?}", left.err(), arrived.err()),
    }
}

#[test]
fn guests_move_between_a_release_and_the_next_both_ways() {
    for streams in [1, 2] {
        assert_eq!(moved(VERSIONS, VERSIONS, streams).unwrap(), [NEWEST; 2]);
        assert_eq!(moved(2..=3, 2..=2, streams).unwrap(), [2, 2]);
        assert_eq!(moved(2..=2, 2..=3, streams).unwrap(), [2, 2]);
        assert_eq!(moved(2..=3, 2..=3, streams).unwrap(), [3, 3]);
        assert_eq!(moved(2..=3, 3..=4, streams).unwrap(), [3, 3]);
    }
}

#[test]
fn memory_moves_whichever_side_has_no_use_for_crc32() {
    for (streams, compression) in
        [(1, Compression::None), (1, Compression::Lz4), (2, Compression::None)]
    {
        for (offers, takes) in [(true, true), (true, false), (false, true), (false, false)] {
            let from =
                SourceConfig { crc32: offers, streams, compression, ..config(HintMode::Auto) };
            let to = DestinationConfig { crc32: takes, ..DestinationConfig::default() };
            assert!(moved_by(&from, to).is_ok(), "{offers} {takes} {streams} {compression:?}");
        }
    }
}

/// A connection that finds damage itself or does not, and notes kinds and sums of what it sends.
pub(super) struct Noting {
    pub(super) inner: Box<dyn Transport>,
    pub(super) finds_damage: bool,
    pub(super) sums: Sums,
}

pub(super) type Sums = Arc<Mutex<Vec<(Kind, u32)>>>;

struct NotingHalf(Box<dyn WriteHalf>, Sums);

impl Transport for Noting {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        let (input, output) = self.inner.split()?;
        Ok((input, Box::new(NotingHalf(output, self.sums))))
    }

    fn finds_damage(&self) -> bool {
        self.finds_damage
    }
}

impl Write for NotingHalf {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let header =
            bytes.try_into().ok().and_then(|raw: &[u8; HEADER_LEN]| Header::decode(raw).ok());
        let header = header.and_then(|h| Some((Kind::from_u16(h.kind)?, h.sum)));
        self.1.lock().unwrap().extend(header);
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl WriteHalf for NotingHalf {
    fn shutdown(&self) {
        self.0.shutdown();
    }
}

#[test]
fn memory_goes_without_sums_if_both_ends_know_that_the_connection_finds_damage() {
    for compression in [Compression::None, Compression::Lz4] {
        for (here, there) in [(true, true), (true, false), (false, true), (false, false)] {
            let sums = Sums::default();
            let (near, far) = pair();
            let noting = |inner, finds_damage, sums: &Sums| -> Box<dyn Transport> {
                Box::new(Noting { inner, finds_damage, sums: sums.clone() })
            };
            let ends = (noting(near, here, &sums), noting(far, there, &Sums::default()));
            let from = SourceConfig { compression, ..config(HintMode::Auto) };
            moved_over(ends, &from, DestinationConfig::default()).unwrap();
            let is_memory = |kind: Kind| matches!(kind, Kind::Pages | Kind::PagesLz4);
            let (memory, rest): (Vec<_>, Vec<_>) =
                sums.lock().unwrap().iter().copied().partition(|&(kind, _)| is_memory(kind));
            assert!(!memory.is_empty() && rest.len() >= 3);
            assert!(memory.iter().all(|&(_, sum)| (sum == 0) == (here && there)), "{memory:?}");
            assert!(rest.iter().all(|&(_, sum)| sum != 0), "{rest:?}");
        }
    }
}

#[test]
fn two_releases_too_far_apart_name_each_other_and_the_guest_stays() {
    for (from, to) in [(4..=5, 2..=3), (2..=3, 4..=5)] {
        let (left, arrived) = *moved(from.clone(), to.clone(), 1).unwrap_err();
        for failure in [left, arrived] {
            assert_eq!(failure.ownership, Ownership::SourceRuns);
            let why = failure.cause.to_string();
            for side in [&from, &to] {
                let named = format!("versions {} to {} (wherry ", side.start(), side.end());
                assert!(why.contains(&named), "{why}");
            }
        }
    }
}

#[test]
fn what_a_later_version_adds_to_an_abort_does_not_hide_why() {
    let mut abort = payload(Kind::Abort);
    abort.extend([7; 5]);
    let mut bytes = stream(&[hello(0), machine(100)]);
    bytes.extend(frame_of(NEWEST + 1, Kind::Abort as u16, 2, &abort));
    let cause = feed(bytes).0.unwrap_err().cause;
    assert!(matches!(&cause, Error::PeerAbort(reason) if reason == "why"), "{cause:?}");
}
