//! A device whose requests end in another thread, and one that waits for a descriptor of the host:
//! as disks and networks do.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wherry_devices::device::{Cause, Kind};
use wherry_devices::virtio::mmio::regs::{self, offset, status};
use wherry_devices::virtio::mmio::{Completer, MmioDevice, MmioStateV1, Ticket};
use wherry_devices::virtio::{Chain, Completion, HostFd, News, VirtioDevice};

use super::{Bench, Rng, virtio};

const KIND: Kind = Kind {
    name: "slow",
    id: "slow",
    options: 1,
    states: &[(2, 1)],
    virtio: true,
    build: |build| {
        let (to, work) = channel();
        std::thread::spawn(move || work.into_iter().for_each(|ticket: Ticket| ticket.complete(0)));
        MmioDevice::build(&build, Slow::new(to))
    },
};

thread_local! {
    /// The device that this thread last built as [`HELD`].
    static LAST: RefCell<Option<(Receiver<Ticket>, Arc<EventFd>)>> = const { RefCell::new(None) };
}

/// The same, but the test answers; its second queue waits for news of the host.
static HELD: Kind = Kind {
    build: |build| {
        let (to, work) = channel();
        // Each read takes one.
        let tap = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_SEMAPHORE).unwrap());
        LAST.set(Some((work, tap.clone())));
        MmioDevice::build(&build, Slow { tap: Some(tap), ..Slow::new(to) })
    },
    name: "held",
    ..KIND
};
const EFD_SEMAPHORE: i32 = 1;

pub static SLOW: Kind = KIND;

/// Every request is passed on.
pub struct Slow {
    to: Sender<Ticket>,
    completer: Option<Completer>,
    answered: u64,
    tap: Option<Arc<EventFd>>,
}

impl Slow {
    fn new(to: Sender<Ticket>) -> Self {
        Self { to, completer: None, answered: 0, tap: None }
    }
}

impl VirtioDevice for Slow {
    type State = u64;
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        regs::F_VERSION_1 | regs::F_EVENT_IDX
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![64, 64]
    }
    fn read_config(&mut self, _: u64, data: &mut [u8]) {
        data.fill(self.answered as u8);
    }
    fn reset(&mut self) {
        self.answered = 0;
    }
    fn batch(&self, _: usize) -> usize {
        3
    }
    fn handle(&mut self, queue: usize, chain: Chain<'_>) -> Completion {
        if let (1, Some(tap)) = (queue, &self.tap) {
            return if tap.read().is_ok() { Completion::Used(0) } else { Completion::Wait };
        }
        self.answered += 1;
        let ticket = self.completer.as_ref().unwrap().take(queue, chain.head_index());
        self.to.send(ticket).unwrap();
        Completion::Held
    }
    fn state(&self, _: u32) -> u64 {
        self.answered
    }
    fn load(&mut self, _: &MmioStateV1, state: &u64) -> Result<bool, Cause> {
        self.answered = *state;
        Ok(false)
    }
    fn connect(&mut self, completer: Completer) {
        self.completer = Some(completer);
    }
    fn host_fds(&self) -> Vec<HostFd> {
        self.tap.iter().map(|tap| Arc::clone(tap) as HostFd).collect()
    }
    fn host_ready(&mut self, nth: usize) -> News {
        assert_eq!(nth, 0);
        News::Queue(1)
    }
}

/// A driver that is up, the requests that reach the device, and the host's news.
fn held() -> (Bench, virtio::Driver, Receiver<Ticket>, Arc<EventFd>) {
    let (mut bench, mut driver) = (Bench::new(&HELD), virtio::Driver::default());
    driver.probe(&bench);
    while bench.turn() {}
    let (work, tap) = LAST.take().unwrap();
    (bench, driver, work, tap)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn a_pause_waits_for_what_is_in_flight_and_gives_it_back() {
    let (mut bench, mut driver, work, _) = held();
    let rng = &mut Rng(1);
    let head = driver.send(&bench, 0, rng).unwrap();
    while bench.turn() {}
    let busy = bench.devices.pause(Instant::now()).unwrap_err();
    assert_eq!(busy, "device `slow`: 1 requests are still in flight");
    // It goes on as before.
    let second = driver.send(&bench, 0, rng).unwrap();
    while bench.turn() {}
    let tickets: Vec<Ticket> = work.try_iter().collect();
    assert_eq!(tickets.len(), 2);
    std::thread::scope(|scope| {
        scope.spawn(|| tickets.into_iter().for_each(|ticket| ticket.complete(0)));
        bench.devices.pause(soon()).unwrap();
    });
    assert_eq!(driver.take_used(&bench), [(0, head, 0), (0, second, 0)], "before the event loop");
    driver.send(&bench, 0, rng).unwrap();
    while bench.turn() {}
    assert_eq!(work.try_iter().count(), 0, "nothing begins while it is paused");
}

#[test]
fn a_request_that_nobody_will_answer_needs_a_reset() {
    let (mut bench, mut driver, work, _) = held();
    driver.send(&bench, 0, &mut Rng(1)).unwrap();
    while bench.turn() {}
    drop(work.try_recv().unwrap());
    while bench.turn() {}
    assert!(driver.take_used(&bench).is_empty());
    assert_ne!(bench.read(offset::STATUS, 4) as u32 & status::NEEDS_RESET, 0);
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_forgets_it() {
    let (mut bench, mut driver, work, _) = held();
    driver.send(&bench, 0, &mut Rng(1)).unwrap();
    while bench.turn() {}
    let ticket = work.try_recv().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| ticket.complete(0));
        driver.probe(&bench);
    });
    while bench.turn() {}
    assert!(driver.take_used(&bench).is_empty(), "a request of the driver before");
}

/// A device with a request in flight. Returns its head, too.
fn in_flight() -> (Bench, virtio::Driver, Receiver<Ticket>, u32) {
    let (mut bench, mut driver, work, _) = held();
    let head = driver.send(&bench, 0, &mut Rng(1)).unwrap();
    while bench.turn() {}
    (bench, driver, work, head)
}

#[test]
fn only_the_vcpu_that_resets_waits_for_what_is_in_flight() {
    let (mut bench, mut driver, work, head) = in_flight();
    let up = bench.read(offset::STATUS, 4);
    let waits = |at, value: u32| bench.bus.lock().unwrap().may_last(at, &value.to_le_bytes());
    assert!(waits(offset::STATUS, 0) && waits(offset::QUEUE_READY, 0));
    assert!(!waits(offset::INTERRUPT_ACK, 0) && !waits(offset::STATUS, 1), "others do not");
    bench.write(offset::STATUS, &[0; 4]);
    assert_eq!(bench.read(offset::STATUS, 4), up, "a driver that looks sees that it is not over");
    driver.send(&bench, 0, &mut Rng(2)).unwrap();
    while bench.turn() {}
    assert!(!bench.settled());
    let mut tickets = work.try_iter();
    let ticket = tickets.next().unwrap();
    assert!(tickets.next().is_none(), "nothing begins");
    // A pause waits for the request, as ever, and the reset is not lost if it gives up.
    bench.devices.pause(Instant::now()).unwrap_err();
    assert!(!bench.settled());
    ticket.complete(0);
    assert!(bench.settled(), "whatever the event loop does");
    assert_eq!(driver.take_used(&bench), [(0, head, 0)]);
    assert_eq!(bench.read(offset::STATUS, 4), 0);
    driver.probe(&bench);
    while bench.turn() {}
    assert!(driver.take_used(&bench).is_empty() && work.try_recv().is_err());
}

#[test]
fn a_paused_device_has_been_reset_if_the_driver_asked() {
    let (bench, _, work, _) = in_flight();
    bench.write(offset::STATUS, &[0; 4]);
    let ticket = work.try_recv().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| ticket.complete(0));
        bench.devices.pause(soon()).unwrap();
    });
    assert_eq!(bench.read(offset::STATUS, 4), 0);
    assert!(bench.settled());
}

#[test]
fn a_vcpu_that_stops_a_queue_waits_for_its_requests_and_the_other_queue_goes_on() {
    let (mut bench, mut driver, work, tap) = held();
    driver.send(&bench, 0, &mut Rng(1)).unwrap();
    while bench.turn() {}
    bench.write(offset::QUEUE_SEL, &[0; 4]);
    bench.write(offset::QUEUE_READY, &[0; 4]);
    let head = driver.send(&bench, 1, &mut Rng(2)).unwrap();
    tap.write(1).unwrap();
    while bench.turn() {}
    assert!(!bench.settled());
    work.try_recv().unwrap().complete(0);
    while bench.turn() {}
    assert!(bench.settled());
    assert_eq!(driver.take_used(&bench), [(1, head, 0)], "and nothing of the queue that stopped");
}

#[test]
fn news_of_the_host_end_a_wait() {
    let (mut bench, mut driver, _, tap) = held();
    let rng = &mut Rng(1);
    let heads = [(); 2].map(|()| driver.send(&bench, 1, rng).unwrap());
    while bench.turn() {}
    assert!(driver.take_used(&bench).is_empty());
    tap.write(1).unwrap();
    while bench.turn() {}
    assert_eq!(driver.take_used(&bench), [(1, heads[0], 0)]);
    // News that come while it is paused are found on resume.
    bench.devices.pause(soon()).unwrap();
    tap.write(1).unwrap();
    while bench.turn() {}
    assert!(driver.take_used(&bench).is_empty());
    bench.devices.resume();
    while bench.turn() {}
    assert_eq!(driver.take_used(&bench), [(1, heads[1], 0)]);
}
