//! What every device has to keep, whatever it is. A device gets these tests by being in
//! [`KINDS`]: one in a virtio-mmio slot needs nothing else, another a [`Side`] of its own.

mod growth;
mod slow;
pub mod virtio;

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};
use wherry_codec::encode;
use wherry_devices::device::{
    Build, BuildError, Built, Device, Devices, Kind, Saved, Spec, Subscriber,
};
use wherry_devices::host::{BalloonBackend, DiskFull, Frames, Host, PowerSink, Sockets};
use wherry_devices::kinds::KINDS;
use wherry_devices::power::{self, Power};
use wherry_devices::serial::{self, Serial};
use wherry_devices::sync::TwoLane;
use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_devices::virtio::blk::{self, Blk, Disk, DiskOptions};
use wherry_devices::virtio::mmio::MmioDevice;
use wherry_devices::virtio::net;
use wherry_devices::virtio::vsock::{self, VsockOptions};
use wherry_devices::{BusDevice, GuestMemory};

use crate::blk::disks::{MemDisk, Notes, options};
use crate::driver::{Host as NoDiscards, Line};
use crate::peers::Peers;
use crate::wire::Wire;

pub const RAM: usize = 1 << 20;
/// Different courses of each test.
const SEEDS: u64 = 12;

/// Every kind, and one whose requests end in another thread.
fn kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().copied().chain([&slow::SLOW])
}

/// A small generator of numbers; the same for the same seed.
#[derive(Clone)]
pub struct Rng(pub u64);
impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }
}

/// The host: where output goes, and how often the guest ended itself.
#[derive(Clone, Default)]
struct Out {
    text: Arc<Mutex<Vec<u8>>>,
    ends: Arc<AtomicU64>,
}
impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
impl PowerSink for Out {
    fn power_off(&self) {
        self.ends.fetch_add(1, Ordering::SeqCst);
    }
    fn reset(&self) {
        self.ends.fetch_add(1 << 32, Ordering::SeqCst);
    }
}

/// Random bytes that are always the same.
pub const ENTROPY: u8 = 0x5a;

struct TestHost(Arc<GuestMemory>, Out, Arc<dyn Disk>, Arc<Notes>, Wire, Peers);
impl Host for TestHost {
    fn memory(&self) -> Arc<GuestMemory> {
        self.0.clone()
    }
    fn console(&self) -> Box<dyn Write + Send> {
        Box::new(self.1.clone())
    }
    fn power(&self) -> Arc<dyn PowerSink> {
        Arc::new(self.1.clone())
    }
    fn balloon(&self) -> Arc<dyn BalloonBackend> {
        Arc::<NoDiscards>::default()
    }
    fn entropy(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::repeat(ENTROPY)))
    }
    fn disk(&self, _: &str) -> io::Result<Arc<dyn Disk>> {
        Ok(self.2.clone())
    }
    fn disk_full(&self) -> Arc<dyn DiskFull> {
        self.3.clone()
    }
    fn net(&self, _: &str) -> io::Result<Box<dyn Frames>> {
        Ok(Box::new(self.4.clone()))
    }
    fn vsock(&self, _: &str) -> io::Result<Box<dyn Sockets>> {
        Ok(Box::new(self.5.clone()))
    }
}

/// A machine with one device.
pub struct Bench {
    kind: &'static Kind,
    pub mem: Arc<GuestMemory>,
    out: Out,
    /// What is on its disk, if it is one, and who is told that there is no room for it.
    pub disk: Arc<MemDisk>,
    pub notes: Arc<Notes>,
    pub line: Arc<Line>,
    pub devices: Devices,
    bus: Arc<Mutex<dyn BusDevice>>,
    events: EventManager<Subscriber>,
}

impl Bench {
    pub fn new(kind: &'static Kind) -> Self {
        let bench = Self::build(kind, &[0; RAM], None);
        bench.devices.resume();
        bench
    }

    /// A machine with this disk, in something around it, which has not begun to run.
    pub fn with_disk(
        options: &DiskOptions,
        around: Arc<dyn Disk>,
        disk: Arc<MemDisk>,
        ram: &[u8],
        saved: Option<&Saved>,
    ) -> Result<Self, BuildError> {
        let spec = Spec::new(&blk::KIND, options).unwrap();
        let ends = (Wire::endless(), Peers::new());
        Self::around(spec, around, disk, ends, ram, saved)
    }

    /// A machine on this network, which has not begun to run.
    pub fn with_net(wire: Wire, ram: &[u8], saved: Option<&Saved>) -> Result<Self, BuildError> {
        let spec = Spec::new(&net::KIND, &wire.options()).unwrap();
        let disk = MemDisk::shared(Vec::new());
        Self::around(spec, disk.clone(), disk, (wire, Peers::new()), ram, saved)
    }

    /// A machine whose sockets end there, which has not begun to run.
    pub fn with_vsock(
        options: &VsockOptions,
        peers: Peers,
        ram: &[u8],
        saved: Option<&Saved>,
    ) -> Result<Self, BuildError> {
        let spec = Spec::new(&vsock::KIND, options).unwrap();
        let disk = MemDisk::shared(Vec::new());
        Self::around(spec, disk.clone(), disk, (Wire::endless(), peers), ram, saved)
    }

    /// What is behind RAM is on the disk.
    fn build(kind: &'static Kind, ram: &[u8], saved: Option<&Saved>) -> Self {
        let (ram, on_disk) = ram.split_at(RAM);
        let disk = MemDisk::shared(on_disk.to_vec());
        let wire = Wire::endless();
        let options = match kind.name {
            "virtio-balloon" => encode(&BalloonConfig::default()).unwrap(),
            "virtio-blk" => encode(&options()).unwrap(),
            "virtio-net" => encode(&wire.options()).unwrap(),
            "virtio-vsock" => encode(&VsockOptions { cid: 3 }).unwrap(),
            _ => Vec::new(),
        };
        let spec = Spec { id: kind.id.into(), kind, slot: None, options };
        Self::around(spec, disk.clone(), disk, (wire, Peers::crowd()), ram, saved).unwrap()
    }

    fn around(
        spec: Spec,
        around: Arc<dyn Disk>,
        disk: Arc<MemDisk>,
        (wire, peers): (Wire, Peers),
        ram: &[u8],
        saved: Option<&Saved>,
    ) -> Result<Self, BuildError> {
        let kind = spec.kind;
        let mem = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        mem.write_slice(ram, GuestAddress(0)).unwrap();
        let (out, line, notes) = (Out::default(), Arc::<Line>::default(), Arc::<Notes>::default());
        let host = TestHost(mem.clone(), out.clone(), around, notes.clone(), wire, peers);
        let build = Build { spec: &spec, saved, irq: line.clone(), host: &host };
        let Built { device, bus, subscriber, .. } = (kind.build)(build)?;
        let mut devices = Devices::default();
        devices.push(spec, device);
        let mut events = EventManager::new().unwrap();
        if let Some(subscriber) = subscriber {
            events.add_subscriber(subscriber);
        }
        Ok(Self { kind, mem, out, disk, notes, line, devices, bus, events })
    }

    /// Its device, which is one of this type.
    fn device<D: Device>(&self) -> Arc<D> {
        self.devices.find().unwrap()
    }

    /// RAM, and what is on the disk.
    pub fn ram(&self) -> Vec<u8> {
        let mut ram = vec![0; RAM];
        self.mem.read_slice(&mut ram, GuestAddress(0)).unwrap();
        ram.extend(self.disk.bytes());
        ram
    }

    /// Pauses, and saves what a migration would take.
    pub fn save(&self) -> (Saved, Vec<u8>) {
        self.devices.pause(Instant::now() + Duration::from_secs(60)).unwrap();
        (self.devices.save(u16::MAX).unwrap().remove(0), self.ram())
    }

    /// A machine elsewhere that goes on from there.
    fn arrive(kind: &'static Kind, (saved, ram): &(Saved, Vec<u8>)) -> Self {
        let there = Self::build(kind, ram, Some(saved));
        there.devices.after_restore().unwrap();
        there.devices.resume();
        there
    }

    pub fn read(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.bus.lock().unwrap().read(at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.bus.lock().unwrap().write(at, bytes);
    }

    /// Whether the vCPU that wrote last may go on.
    pub fn settled(&self) -> bool {
        self.bus.lock().unwrap().settled()
    }

    /// One turn of the event loop, or all that there are. Whether there was anything to do.
    pub fn turn(&mut self) -> bool {
        self.events.run_with_timeout(0).unwrap() > 0
    }

    /// Whether no request is on its way in another thread.
    fn idle(&self) -> bool {
        let slow = self.devices.find::<TwoLane<MmioDevice<slow::Slow>>>();
        let disk = self.devices.find::<TwoLane<MmioDevice<Blk>>>();
        slow.is_none_or(|slow| slow.urgent().idle()) && disk.is_none_or(|disk| disk.urgent().idle())
    }

    pub fn run(&mut self) {
        loop {
            // Looked at first: what ends after it is seen by the turn.
            let idle = self.idle();
            if !self.turn() && idle {
                break;
            }
        }
    }
}

/// The guest's driver, and what people do to the device from outside.
pub trait Side {
    /// The driver comes up.
    fn up(&mut self, _bench: &mut Bench) {}
    /// Anything. Returns what was seen of it.
    fn step(&mut self, bench: &mut Bench, rng: &mut Rng) -> Vec<u64>;
    /// Begins a piece of work, and does not wait for it. False if that cannot be now.
    fn begin(&mut self, bench: &mut Bench, piece: u32, rng: &mut Rng) -> bool;
    /// What is done, as far as the interrupt line says that there is something.
    fn collect(&mut self, bench: &mut Bench) -> Vec<u32>;
    /// No more work comes: what the device keeps for good is asked back.
    fn finish(&mut self, _bench: &mut Bench) {}
    /// The same guest in another place.
    fn copy(&self) -> Box<dyn Side>;
}

fn side(kind: &Kind) -> Box<dyn Side> {
    match kind.name {
        _ if kind.virtio => Box::new(virtio::Driver::default()),
        "serial" => Box::new(Typing),
        "power" => Box::new(Button { pressed: None }),
        name => panic!("{name} needs a side of its own"),
    }
}

/// Bytes that are typed.
struct Typing;
impl Typing {
    const DATA: u64 = 0;
    const IER: u64 = 1;
    const LSR: u64 = 5;

    fn enter(bench: &Bench, bytes: &[u8]) -> usize {
        bench.device::<Mutex<Serial>>().lock().unwrap().enqueue(bytes)
    }
}
impl Side for Typing {
    fn up(&mut self, bench: &mut Bench) {
        bench.write(Self::IER, &[1]);
    }

    fn step(&mut self, bench: &mut Bench, rng: &mut Rng) -> Vec<u64> {
        let port = rng.below(serial::SERIAL_PORTS);
        match rng.below(4) {
            0 => {
                let text = vec![rng.below(256) as u8; rng.below(200) as usize];
                vec![Self::enter(bench, &text) as u64]
            }
            1 => {
                bench.write(port, &[rng.below(256) as u8]);
                vec![]
            }
            _ => vec![bench.read(port, 1)],
        }
    }

    fn begin(&mut self, bench: &mut Bench, piece: u32, _: &mut Rng) -> bool {
        Self::enter(bench, &[piece as u8]) == 1
    }

    fn collect(&mut self, bench: &mut Bench) -> Vec<u32> {
        let mut got = Vec::new();
        while bench.line.high() && bench.read(Self::LSR, 1) & 1 != 0 {
            got.push(bench.read(Self::DATA, 1) as u32);
        }
        got
    }

    fn copy(&self) -> Box<dyn Side> {
        Box::new(Self)
    }
}

/// Somebody at the power button: presses that the guest has not taken are one.
#[derive(Clone)]
struct Button {
    pressed: Option<u32>,
}
impl Button {
    fn press(bench: &Bench) {
        bench.device::<Mutex<Power>>().lock().unwrap().press_power_button().unwrap();
    }
}
impl Side for Button {
    fn step(&mut self, bench: &mut Bench, rng: &mut Rng) -> Vec<u64> {
        let (port, len) = (rng.below(power::POWER_PORTS - 4), [1, 2, 4][rng.below(3) as usize]);
        match rng.below(3) {
            0 => {
                Self::press(bench);
                vec![]
            }
            1 => {
                bench.write(port, &[rng.below(256) as u8]);
                vec![]
            }
            _ => vec![bench.read(port, len)],
        }
    }

    fn begin(&mut self, bench: &mut Bench, piece: u32, _: &mut Rng) -> bool {
        if self.pressed.is_some() {
            return false;
        }
        self.pressed = Some(piece);
        Self::press(bench);
        true
    }

    fn collect(&mut self, bench: &mut Bench) -> Vec<u32> {
        let mut got = Vec::new();
        while bench.line.high() {
            assert_eq!(bench.read(power::EVENTS, 4), 1);
            got.push(self.pressed.take().expect("a press that nobody made"));
        }
        got
    }

    fn copy(&self) -> Box<dyn Side> {
        Box::new(self.clone())
    }
}

/// All that can be seen of a device.
fn steps(bench: &mut Bench, side: &mut dyn Side, mut rng: Rng, nr: usize) -> Vec<Vec<u64>> {
    let mut seen: Vec<_> = (0..nr)
        .map(|_| {
            let mut seen = side.step(bench, &mut rng);
            bench.run();
            seen.push(u64::from(bench.line.high()));
            seen
        })
        .collect();
    seen.push(bench.out.text.lock().unwrap().iter().map(|b| u64::from(*b)).collect());
    seen.push(vec![bench.out.ends.load(Ordering::SeqCst)]);
    seen
}

/// Saved, used on here, restored there, used in the same way: it is the same.
#[test]
fn save_use_on_restore_compare() {
    for kind in kinds() {
        for seed in 0..SEEDS {
            let (mut here, mut guest) = (Bench::new(kind), side(kind));
            guest.up(&mut here);
            steps(&mut here, &mut *guest, Rng(seed), 60);
            let state = here.save();
            // Connections do not move: who arrives is not as who stays, but as all who arrive.
            if kind == &vsock::KIND {
                here = Bench::arrive(kind, &state);
            }
            here.devices.resume();
            *here.out.text.lock().unwrap() = Vec::new();
            here.out.ends.store(0, Ordering::SeqCst);
            let mut arrived = guest.copy();
            let more = Rng(seed + 1000);
            let seen = steps(&mut here, &mut *guest, more.clone(), 60);
            let mut there = Bench::arrive(kind, &state);
            assert!(there.save() == state, "{}, seed {seed}: on arrival", kind.name);
            there.devices.resume();
            let seen_there = steps(&mut there, &mut *arrived, more, 60);
            for (nr, (a, b)) in seen.iter().zip(&seen_there).enumerate() {
                assert_eq!(a, b, "{}, seed {seed}, step {nr} after the restore", here.kind.name);
            }
            assert!(here.save() == there.save(), "{}, seed {seed}: at the end", kind.name);
        }
    }
}

/// Moved again and again with work in flight: each piece is done once.
#[test]
fn pause_with_work_in_flight_move_nothing_lost_or_doubled() {
    for kind in kinds() {
        for seed in 0..SEEDS {
            let (mut bench, mut guest, mut rng) = (Bench::new(kind), side(kind), Rng(seed));
            guest.up(&mut bench);
            let (mut begun, mut done, mut moves) = (0, Vec::new(), 0);
            // Work that is lost may keep more from beginning.
            for _ in 0..2000 {
                if begun == 60 && moves >= 5 {
                    break;
                }
                match rng.below(8) {
                    0..=3 if begun < 60 => {
                        begun += u32::from(guest.begin(&mut bench, begun, &mut rng));
                    }
                    4 => drop(bench.turn()),
                    5 | 6 => done.extend(guest.collect(&mut bench)),
                    _ => {
                        let state = bench.save();
                        while bench.turn() {}
                        assert!(bench.save() == state, "{} works while paused", kind.name);
                        bench = Bench::arrive(kind, &state);
                        moves += 1;
                    }
                }
            }
            guest.finish(&mut bench);
            for _ in 0..2 {
                bench.run();
                done.extend(guest.collect(&mut bench));
                guest.finish(&mut bench);
            }
            done.sort_unstable();
            assert_eq!(done, (0..60).collect::<Vec<_>>(), "{}, seed {seed}", kind.name);
        }
    }
}
