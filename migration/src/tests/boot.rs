//! What a machine boots at a reset: who gets which file, and what becomes of lies.

use std::io::{self, Cursor, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use super::dest::Dest;
use super::hostile::{feed_to, hello, machine, round, stream, welcome};
use super::model::Model;
use super::oracle::{config, pair};
use crate::traits::*;
use crate::wire::boot::{Boot as Said, BootWanted, MAX_DESCRIPTION, MAX_FILE, MAX_FILES, PART};
use crate::wire::version::{Hello, VERSIONS};
use crate::wire::{FEATURE_BOOT, FEATURES, HEADER_LEN, Header, Kind, codec};
use crate::*;

fn id(bytes: &[u8]) -> FileId {
    let mut digest = Digest::default();
    digest.update(bytes);
    FileId { len: bytes.len() as u64, digest: digest.finish() }
}

/// The model, which boots these.
struct Boots {
    model: Arc<Model>,
    files: Vec<Vec<u8>>,
}

impl Machine for Boots {
    fn pause(&self) -> io::Result<()> {
        self.model.pause()
    }
    fn resume(&self) -> io::Result<()> {
        self.model.resume()
    }
    fn hand_over(&self, begun: bool) -> io::Result<()> {
        self.model.hand_over(begun)
    }
    fn describe(&self, version: u16) -> io::Result<Vec<u8>> {
        self.model.describe(version)
    }
    fn save(&self, version: u16) -> io::Result<Vec<u8>> {
        self.model.save(version)
    }
    fn boot(&self) -> io::Result<Option<Boot>> {
        let file = |bytes: &Vec<u8>| BootFile {
            id: id(bytes),
            content: Box::new(Cursor::new(bytes.clone())),
        };
        let files = self.files.iter().map(file).collect();
        Ok(Some(Boot { description: b"boots".to_vec(), files }))
    }
}

/// A file as it comes.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A destination that wants some of them.
#[derive(Default)]
struct Takes {
    dest: Dest,
    /// Those it has.
    has: Vec<FileId>,
    got: Vec<Option<Shared>>,
    told: Option<Vec<u8>>,
}

impl DestinationVm for Takes {
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        self.dest.prepare(description, nr_pages)
    }
    fn boot(&mut self, description: &[u8], files: &[FileId]) -> io::Result<Vec<Sink>> {
        assert!(self.dest.ram.is_some() && self.told.is_none(), "out of order");
        self.told = Some(description.to_vec());
        let got = files.iter().map(|id| (!self.has.contains(id)).then(Shared::default));
        self.got = got.collect();
        let sink = |file: &Option<Shared>| file.clone().map(|file| Box::new(file) as _);
        Ok(self.got.iter().map(sink).collect())
    }
    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        self.dest.load(state)
    }
    fn run(&mut self) -> io::Result<()> {
        self.dest.run()
    }
}

fn files() -> Vec<Vec<u8>> {
    let long = (0..2 * PART + 3).map(|at| (at % 251) as u8).collect();
    vec![long, b"initrd".to_vec(), vec![]]
}

fn moved(streams: u32, has: Vec<FileId>) -> (Report, Takes) {
    let model = Model::new(200, false, vec![]);
    let boots = Boots { model: model.clone(), files: files() };
    let vm = SourceVm { machine: Arc::new(boots), ..model.vm() };
    let cfg = SourceConfig { streams, ..config(HintMode::Auto) };
    let (near, far) = match streams {
        1 => pair(),
        _ => super::streams::linked(streams, |_| pair()),
    };
    let receiver = thread::spawn(move || {
        let mut takes = Takes { has, ..Takes::default() };
        let cfg = DestinationConfig::default();
        (receive(far, &mut takes, &cfg, &(), &CancelToken::new()).unwrap(), takes)
    });
    let report = migrate(&vm, near, &cfg, &(), &CancelToken::new()).unwrap();
    let (received, takes) = receiver.join().unwrap();
    model.compare(&takes.dest.memory()).unwrap();
    assert_eq!(received.bytes, report.total_bytes);
    (report, takes)
}

#[test]
fn what_a_destination_lacks_is_sent_once_and_nothing_else() {
    for streams in [1, 2] {
        let (report, takes) = moved(streams, vec![]);
        assert_eq!(takes.told.as_deref(), Some(&b"boots"[..]));
        for (got, file) in takes.got.into_iter().zip(files()) {
            assert!(*got.unwrap().0.lock().unwrap() == file);
        }
        let content: usize = files().iter().map(Vec::len).sum();
        assert_eq!(report.boot_file_bytes, (content + 4 * HEADER_LEN) as u64);
        assert!(report.boot_told && report.total_bytes > report.boot_file_bytes);
        let (less, takes) = moved(streams, vec![id(&files()[0]), id(&files()[2])]);
        assert_eq!(less.boot_file_bytes, 6 + HEADER_LEN as u64);
        assert!(*takes.got[1].as_ref().unwrap().0.lock().unwrap() == files()[1]);
        let (none, _) = moved(streams, files().iter().map(|file| id(file)).collect());
        assert_eq!((none.boot_file_bytes, none.boot_told), (0, true));
    }
}

/// The kinds of frames in a stream.
fn kinds(mut bytes: &[u8]) -> Vec<Kind> {
    let mut kinds = vec![];
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
        let header = Header::decode(header).unwrap();
        kinds.push(Kind::from_u16(header.kind).unwrap());
        bytes = &rest[header.len as usize..];
    }
    kinds
}

/// What a source sends to a destination that answers so, and what it says.
fn against(answers: &[(Kind, Vec<u8>)]) -> (Result<Report, Failure>, Vec<Kind>) {
    let model = Model::new(200, false, vec![]);
    let boots = Boots { model: model.clone(), files: files() };
    let vm = SourceVm { machine: Arc::new(boots), ..model.vm() };
    let (near, far) = UnixStream::pair().unwrap();
    let mut reader = far.try_clone().unwrap();
    let drain = thread::spawn(move || {
        let mut sent = Vec::new();
        let _ = reader.read_to_end(&mut sent);
        sent
    });
    (&far).write_all(&stream(answers)).unwrap();
    let cfg = config(HintMode::Auto);
    let result = migrate(&vm, Box::new(near), &cfg, &(), &CancelToken::new());
    drop(far);
    (result, kinds(&drain.join().unwrap()))
}

#[test]
fn an_older_destination_is_told_nothing_and_gets_the_guest() {
    let rest = [(Kind::Loaded, vec![]), (Kind::Running, vec![])];
    let (report, sent) = against(&[welcome(0), rest.to_vec()].concat());
    let report = report.unwrap();
    assert_eq!((report.boot_told, report.boot_file_bytes), (false, 0));
    assert!(sent.contains(&Kind::HandOff), "{sent:?}");
    assert!(!sent.contains(&Kind::Boot) && !sent.contains(&Kind::BootPart), "{sent:?}");
}

#[test]
fn an_older_source_says_nothing_and_none_is_waited_for() {
    let (result, takes) = {
        let mut takes = Takes::default();
        (feed_to(stream(&super::hostile::valid()), &mut takes), takes)
    };
    assert!(result.is_ok() && takes.told.is_none() && takes.dest.runs == 1);
}

#[test]
fn an_answer_for_other_files_is_an_error() {
    let answer = |files: Vec<bool>| codec::encode(&BootWanted { files }, Kind::BootWanted).unwrap();
    for (features, answer) in [
        (FEATURE_BOOT, (Kind::BootWanted, answer(vec![true; 2]))),
        (FEATURE_BOOT, (Kind::BootWanted, answer(vec![true; 4]))),
        (FEATURE_BOOT, (Kind::BootWanted, b"?".to_vec())),
        (FEATURE_BOOT, (Kind::Loaded, vec![])),
        (FEATURES, (Kind::BootWanted, answer(vec![true; 3]))),
        (0, (Kind::BootWanted, answer(vec![true; 3]))),
    ] {
        let (result, sent) = against(&[welcome(features), vec![answer.clone()]].concat());
        let failure = result.expect_err(&format!("{features:#x} {answer:?}"));
        assert_eq!(failure.ownership, Ownership::SourceRuns);
        assert!(!sent.contains(&Kind::BootPart), "{sent:?}");
    }
}

fn offering() -> (Kind, Vec<u8>) {
    let hello = Hello { offered: FEATURE_BOOT, ..Hello::new(&VERSIONS, 0) };
    (Kind::Hello, codec::encode(&hello, Kind::Hello).unwrap())
}

fn said(description: usize, files: &[FileId]) -> (Kind, Vec<u8>) {
    let said = Said { description: vec![b'x'; description], files: files.to_vec() };
    (Kind::Boot, wherry_codec::encode(&said).unwrap())
}

/// As a source that offers, with these frames behind the machine.
fn offered(frames: &[(Kind, Vec<u8>)]) -> (Result<Received, Failure>, Takes) {
    let mut all = super::hostile::valid();
    all.splice(0..2, [&[offering(), machine(100)], frames].concat());
    let mut takes = Takes::default();
    (feed_to(stream(&all), &mut takes), takes)
}

fn part(bytes: &[u8]) -> (Kind, Vec<u8>) {
    (Kind::BootPart, bytes.to_vec())
}

type Frames = Vec<(Kind, Vec<u8>)>;

#[test]
fn files_that_lie_are_refused() {
    let (a, b) = (id(b"abcd"), id(b"ef"));
    let idle = (Kind::Idle, vec![]);
    let (result, takes) = offered(&[
        idle.clone(),
        said(3, &[a, b]),
        part(b"abc"),
        idle.clone(),
        part(b"d"),
        part(b"ef"),
    ]);
    result.unwrap();
    assert_eq!(*takes.got[1].as_ref().unwrap().0.lock().unwrap(), b"ef");
    let both = || said(3, &[a, b]);
    let long = FileId { len: MAX_FILE + 1, digest: 0 };
    let cases: Vec<(&str, Frames)> = vec![
        ("nothing is said", vec![]),
        ("twice", vec![said(3, &[]), said(3, &[])]),
        ("no description that fits", vec![said(MAX_DESCRIPTION + 1, &[])]),
        ("too many files", vec![said(3, &[a; MAX_FILES + 1])]),
        ("a file without end", vec![said(3, &[long])]),
        ("a part that nobody wants", vec![said(3, &[]), part(b"x")]),
        ("content before it is announced", vec![part(b"abcd"), both(), part(b"ef")]),
        ("corrupted", vec![both(), part(b"abcd"), part(b"eg")]),
        ("in the wrong order", vec![both(), part(b"ef"), part(b"abcd")]),
        ("longer than announced", vec![both(), part(b"abcde"), part(b"f")]),
        ("shorter than announced", vec![both(), part(b"abc"), part(b"ef")]),
        ("one is missing", vec![both(), part(b"abcd")]),
        ("an empty part", vec![both(), part(b""), part(b"abcd"), part(b"ef")]),
        ("a round in between", vec![both(), part(b"ab"), (Kind::Round, round(1)), part(b"cd")]),
    ];
    for (name, frames) in cases {
        let (result, takes) = offered(&frames);
        let failure = result.expect_err(name);
        assert_eq!((failure.ownership, takes.dest.runs), (Ownership::SourceRuns, 0), "{name}");
        // Beyond what was announced nothing is kept.
        let kept = takes.got.iter().flatten().map(|file| file.0.lock().unwrap().len());
        assert!(kept.zip([4, 2]).all(|(kept, most)| kept <= most), "{name}");
    }
    // What was not offered may not be said.
    let mut all = super::hostile::valid();
    all.splice(0..2, [hello(0), machine(100), both()]);
    feed_to(stream(&all), &mut Takes::default()).unwrap_err();
}
