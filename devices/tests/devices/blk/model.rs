//! The device against a model: what is on the disk, what the driver was told, and what a migration
//! would have taken of RAM, byte for byte; with requests side by side, errors, a full host,
//! resets and moves with requests in flight.
//!
//! A request keeps to a stripe of its own while it is out, so that the order among them does not
//! matter. What failed, or was out at a reset, may have been done or not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, MmapRegion};
use wherry_devices::virtio::blk::DiskError;
use wherry_devices::virtio::blk::request::{kind, status};

use super::disks::{Call, MemDisk, SECTORS, options};
use super::{DATA, NONE, Rig, range};
use crate::conformance::{Bench, RAM};
use crate::driver::{Buf, PAGE, inb, out};

/// Sectors of a stripe.
const STRIPE: u64 = 4;
const STRIPES: u64 = SECTORS / STRIPE;

#[derive(Debug, Clone)]
enum Step {
    /// Stripe, kind, sectors of it (first and number), what its content is, where it is cut.
    Send(u64, u32, (u64, u64), u8, u32),
    Turn,
    Run,
    Harvest,
    Reset,
    Pause,
    Move,
    /// The next call fails, before or after it was done.
    Fail(bool),
    /// The host has no room, or has it again.
    Full(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kinds = [kind::IN, kind::OUT, kind::OUT, kind::FLUSH, kind::DISCARD, kind::WRITE_ZEROES];
    let place = (0..STRIPE).prop_flat_map(|at| (Just(at), 1..=STRIPE - at));
    let send = (0..STRIPES, prop::sample::select(kinds.to_vec()), place, any::<u8>(), 1..1500u32)
        .prop_map(|(stripe, kind, place, fill, cut)| Step::Send(stripe, kind, place, fill, cut));
    let step = prop_oneof![
        24 => send,
        6 => Just(Step::Turn),
        4 => Just(Step::Run),
        4 => Just(Step::Harvest),
        1 => Just(Step::Reset),
        2 => Just(Step::Pause),
        2 => Just(Step::Move),
        2 => any::<bool>().prop_map(Step::Fail),
        2 => any::<bool>().prop_map(Step::Full),
    ];
    prop::collection::vec(step, 1..80)
}

/// A request that is out.
struct Out {
    kind: u32,
    /// Bytes of the disk.
    at: usize,
    len: usize,
    /// What is there when it was done.
    new: Vec<u8>,
    parts: Vec<Buf>,
    answer: u64,
}

#[derive(Default)]
struct Faults {
    fail: Option<bool>,
    full: bool,
}
impl Faults {
    fn failure(&mut self) -> DiskError {
        self.fail = None;
        DiskError::Failed(std::io::ErrorKind::Other.into())
    }
}

struct Model {
    rig: Rig,
    faults: Arc<Mutex<Faults>>,
    /// Content of the disk.
    disk: Vec<u8>,
    /// By stripe.
    out: BTreeMap<u64, Out>,
    /// What a migration has.
    taken: Vec<u8>,
    /// Whether a call may have failed.
    failed: bool,
}

impl Model {
    fn new(align: u64) -> Self {
        let disk: Vec<u8> = (0..SECTORS * 512).map(|n| (n / 512 * 3 + n) as u8).collect();
        let mem = MemDisk { align, ..MemDisk::new(disk.clone()) };
        let faults = Arc::<Mutex<Faults>>::default();
        let mine = faults.clone();
        mem.before(move |call| {
            let mut faults = mine.lock().unwrap();
            match call {
                Call::Write | Call::Zero(_) if faults.full => Err(DiskError::Full),
                _ if faults.fail == Some(false) => Err(faults.failure()),
                _ => Ok(()),
            }
        });
        let mine = faults.clone();
        mem.after(move |_| {
            let mut faults = mine.lock().unwrap();
            if faults.fail == Some(true) { Err(faults.failure()) } else { Ok(()) }
        });
        // In the middle of a sector: part of what is read in the middle is there.
        mem.cached.store(if align == 1 { SECTORS * 512 / 2 + 700 } else { 0 }, Ordering::SeqCst);
        let rig = Rig::new(&options(), Arc::new(mem));
        rig.bench.notes.pauses.store(true, Ordering::SeqCst);
        let taken = vec![0; RAM];
        Self { rig, faults, disk, out: BTreeMap::new(), taken, failed: false }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(stripe, kind, place, fill, cut) => self.send(stripe, kind, place, fill, cut),
            Step::Turn => self.rig.turn(),
            Step::Run => self.run(),
            Step::Harvest => self.harvest(),
            Step::Reset => {
                self.rig.driver.probe(&self.rig.bench);
                std::mem::take(&mut self.out).into_values().for_each(|out| self.either(&out));
            }
            Step::Pause => {
                self.rig.bench.devices.pause(soon()).unwrap();
                self.rig.bench.devices.resume();
            }
            Step::Move => {
                let (saved, ram) = self.rig.bench.save();
                let disk = self.rig.disk.clone();
                let there =
                    Bench::with_disk(&options(), disk.clone(), disk, &ram[..RAM], Some(&saved));
                self.rig.bench = there.unwrap();
                self.rig.bench.notes.pauses.store(true, std::sync::atomic::Ordering::SeqCst);
                self.rig.bench.devices.after_restore().unwrap();
                self.rig.bench.devices.resume();
            }
            Step::Fail(after) => {
                self.faults.lock().unwrap().fail = Some(after);
                self.failed = true;
            }
            Step::Full(on) => self.faults.lock().unwrap().full = on,
        }
    }

    fn send(&mut self, stripe: u64, kind: u32, (first, nr): (u64, u64), fill: u8, cut: u32) {
        if self.out.contains_key(&stripe) {
            return;
        }
        let sector = stripe * STRIPE + first;
        let (at, len) = ((sector * 512) as usize, (nr * 512) as usize);
        let buffer = DATA + stripe * PAGE;
        self.rig.put(buffer, &[NONE; PAGE as usize]);
        let cut = cut.min(len as u32 - 1);
        // Two parts, of which the second begins anywhere.
        let two = |len: u32, write| {
            vec![
                Buf(buffer + 1, cut, write),
                Buf(buffer + 1500 + u64::from(fill), len - cut, write),
            ]
        };
        let (parts, new) = match kind {
            kind::IN => (two(len as u32, true), Vec::new()),
            kind::OUT => {
                let new: Vec<u8> = (0..len).map(|n| (n / 7) as u8 ^ fill).collect();
                let parts = two(len as u32, false);
                self.rig.put(parts[0].0, &new[..cut as usize]);
                self.rig.put(parts[1].0, &new[cut as usize..]);
                (parts, new)
            }
            kind::FLUSH => (Vec::new(), Vec::new()),
            _ => {
                let zero = kind == kind::WRITE_ZEROES;
                let unmap = u32::from(zero && fill.is_multiple_of(2));
                self.rig.put(buffer, &range(sector, nr as u32, unmap));
                (vec![out(buffer, 16)], vec![if zero { 0 } else { 0xff }; len])
            }
        };
        let (header, answer) = (HEADERS + stripe * 64, HEADERS + stripe * 64 + 32);
        self.rig.put(header, &[u64::from(kind), sector].map(u64::to_le_bytes).concat());
        self.rig.put(answer, &[NONE]);
        let bufs = [&[out(header, 16)][..], &parts, &[inb(answer, 1)]].concat();
        let head = self.rig.driver.chain(&self.rig.bench, 0, &bufs).unwrap();
        self.rig.driver.pieces.insert((0, head), 0);
        self.out.insert(stripe, Out { kind, at, len, new, parts, answer });
    }

    /// Each byte of this request on the disk is as before, or as it wants it.
    fn either(&mut self, out: &Out) {
        if out.new.is_empty() {
            return;
        }
        let is = self.rig.disk.bytes();
        let there = out.at..out.at + out.len;
        for ((is, was), new) in is[there.clone()].iter().zip(&mut self.disk[there]).zip(&out.new) {
            assert!(is == was || is == new, "at {}: {is} is neither {was} nor {new}", out.at);
            *was = *is;
        }
    }

    fn run(&mut self) {
        self.rig.bench.run();
        let used = self.rig.driver.take_used(&self.rig.bench);
        self.rig.driver.pieces.retain(|(_, head), _| used.iter().all(|used| used.1 != *head));
        let mut came = used.len();
        for stripe in 0..STRIPES {
            let Some(out) = self.out.remove(&stripe) else { continue };
            match self.rig.status(out.answer) {
                NONE => {
                    // Kept: there was no room.
                    self.out.insert(stripe, out);
                    continue;
                }
                status::OK => self.done(&out),
                status => {
                    assert!(status == status::IOERR && self.failed, "{status}");
                    self.either(&out);
                }
            }
            came -= 1;
        }
        assert_eq!(came, 0, "each request comes back once");
        let is = self.rig.disk.bytes();
        if self.out.is_empty() {
            let at = (0..is.len()).find(|at| is[*at] != self.disk[*at]);
            assert_eq!(at, None, "on the disk");
        }
    }

    fn done(&mut self, out: &Out) {
        let there = &mut self.disk[out.at..out.at + out.len];
        match out.kind {
            kind::IN => {
                let got: Vec<u8> =
                    out.parts.iter().flat_map(|b| self.rig.get(b.0, b.1 as usize)).collect();
                assert!(got == there, "what was read at {}", out.at);
            }
            kind::OUT | kind::WRITE_ZEROES => there.copy_from_slice(&out.new),
            kind::DISCARD => self.either(out),
            _ => {}
        }
    }

    /// What a migration does, also while requests are on their way.
    fn harvest(&mut self) {
        let region = self.rig.bench.mem.find_region(GuestAddress(0)).unwrap();
        MmapRegion::bitmap(region).take(|word, dirty| {
            for page in
                (0..64).filter(|bit| dirty >> bit & 1 == 1).map(|bit| word as u64 * 64 + bit)
            {
                let at = (page * PAGE) as usize;
                let to = &mut self.taken[at..at + PAGE as usize];
                self.rig.bench.mem.read_slice(to, GuestAddress(page * PAGE)).unwrap();
            }
        });
    }

    fn end(mut self) {
        self.faults.lock().unwrap().full = false;
        self.step(Step::Pause);
        self.run();
        assert!(self.out.is_empty(), "a request that never came back");
        self.harvest();
        let ram = self.rig.get(0, RAM);
        let at = (0..RAM).find(|at| ram[*at] != self.taken[*at]);
        assert_eq!(at, None, "the migration has something else");
    }
}

/// Headers and answers, by stripe.
const HEADERS: u64 = 0xC_4000;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_disk_and_ram_are_what_the_model_says(
        align in prop::sample::select(vec![1u64, 512, 4096]),
        steps in steps(),
    ) {
        let mut model = Model::new(align);
        steps.into_iter().for_each(|step| model.step(step));
        model.end();
    }
}
