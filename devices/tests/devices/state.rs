//! Saved state: the same test for every device, and hostile states.

use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use wherry_devices::BusDevice;
use wherry_devices::power::{Power, PowerStateV1};
use wherry_devices::serial::{Serial, SerialStateV1};
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::balloon::{
    BalloonConfig, BalloonDeviceState, BalloonStateError, SavedPages,
};
use wherry_devices::virtio::mmio::MmioError;
use wherry_devices::virtio::mmio::regs::{INT_CONFIG, offset};

use crate::driver::*;
use crate::ports::Ends;

/// What every device can do.
trait Saved: Sized {
    type State: PartialEq + Debug + Serialize + DeserializeOwned;
    fn fresh() -> Self;
    /// Changes one thing after another; each must show in the state.
    fn changes() -> Vec<fn(&mut Self)>;
    fn save(&self) -> Self::State;
    fn restore(&self, state: &Self::State) -> Self;
}

fn save_change_restore_compare<D: Saved>() {
    let mut device = D::fresh();
    let first = device.save();
    assert_eq!(device.restore(&first).save(), first, "a fresh device");
    let mut last = first;
    for (nth, change) in D::changes().into_iter().enumerate() {
        change(&mut device);
        let state = device.save();
        assert_ne!(state, last, "change {nth} does not show");
        let text = serde_json::to_string(&state).unwrap();
        let travelled: D::State = serde_json::from_str(&text).unwrap();
        assert_eq!(travelled, state);
        assert_eq!(device.restore(&travelled).save(), state, "after change {nth}");
        last = state;
    }
}

impl Saved for Serial {
    type State = SerialStateV1;
    fn fresh() -> Self {
        Serial::new(Arc::<Line>::default(), Box::new(std::io::sink()))
    }
    fn changes() -> Vec<fn(&mut Self)> {
        vec![
            |s| s.write(1, &[3]),
            |s| s.write(7, &[0x55]),
            |s| assert_eq!(s.enqueue(b"hello"), 5),
            |s| assert_eq!(s.enqueue(&[1; 500]), 500),
            |s| s.read(0, &mut [0]),
            |s| {
                s.write(3, &[0x83]);
                s.write(0, &[1]);
            },
        ]
    }
    fn save(&self) -> SerialStateV1 {
        self.state()
    }
    fn restore(&self, state: &SerialStateV1) -> Self {
        Serial::restore(state, Arc::<Line>::default(), Box::new(std::io::sink())).unwrap()
    }
}

impl Saved for Power {
    type State = PowerStateV1;
    fn fresh() -> Self {
        Power::new(Arc::<Line>::default(), Arc::<Ends>::default())
    }
    fn changes() -> Vec<fn(&mut Self)> {
        vec![|p| p.press_power_button().unwrap(), |p| p.write(0, &[4])]
    }
    fn save(&self) -> PowerStateV1 {
        self.state()
    }
    fn restore(&self, state: &PowerStateV1) -> Self {
        Power::restore(state.clone(), Arc::<Line>::default(), Arc::<Ends>::default())
    }
}

impl Saved for Rig {
    type State = BalloonDeviceState;
    fn fresh() -> Self {
        Rig::cold(BalloonConfig::default())
    }
    fn changes() -> Vec<fn(&mut Self)> {
        vec![
            |r| r.w32(offset::STATUS, 1),
            |r| r.w32(offset::DEVICE_FEATURES_SEL, 1),
            |r| assert!(r.negotiate(u64::MAX)),
            |r| r.w32(offset::CONFIG + CONFIG_POISON, 5),
            |r| r.probe_rest(),
            |r| assert!(r.balloon.set_target(5)),
            |r| r.w32(offset::CONFIG + CONFIG_ACTUAL, 3),
            |r| r.inflate(&[pfn(FREE), pfn(HIGH)]),
            |r| r.w32(offset::INTERRUPT_ACK, 3),
            |r| {
                let at = r.buffer(&stats_bytes(&[(4, 7)]));
                r.add(Rig::STATS, &[out(at, 10)]);
                r.kick(Rig::STATS);
                r.run();
            },
            |r| {
                r.start_hinting();
                r.balloon.hint_done();
            },
            |r| r.send(Rig::DEFLATE, &[out(FREE, 3)]),
            |r| r.w32(offset::STATUS, 0),
        ]
    }
    fn save(&self) -> BalloonDeviceState {
        self.balloon.set_paused(true);
        let state = self.balloon.state();
        self.balloon.set_paused(false);
        state
    }
    fn restore(&self, state: &BalloonDeviceState) -> Self {
        self.move_to(state).unwrap()
    }
}

#[test]
fn serial_save_change_restore_compare() {
    save_change_restore_compare::<Serial>();
}

#[test]
fn power_save_change_restore_compare() {
    save_change_restore_compare::<Power>();
}

#[test]
fn balloon_save_change_restore_compare() {
    save_change_restore_compare::<Rig>();
}

#[test]
fn a_guest_goes_on_with_its_rings_after_a_move() {
    let mut rig = Rig::default_up();
    for n in 0..300 {
        rig.inflate(&[pfn(FREE) + n]);
    }
    rig.balloon.set_paused(true);
    // Made available while paused: the kick happens at the source and is lost with it.
    let at = rig.buffer(&words(&[pfn(HIGH)]));
    rig.add(Rig::INFLATE, &[out(at, 4)]);
    let mut there = rig.move_to(&rig.balloon.state()).unwrap();
    there.run();
    assert!(there.used(Rig::INFLATE).is_empty(), "it comes paused");
    there.balloon.set_paused(false);
    there.run();
    assert_eq!(there.used(Rig::INFLATE).len(), 1);
    assert_eq!(there.balloon.ballooned(), vec![(FREE, 300 * PAGE), (HIGH, PAGE)]);
    there.deflate(&[pfn(HIGH)]);
}

type Spoil = fn(&mut BalloonDeviceState);

/// A live balloon with everything in use.
fn busy() -> (Rig, BalloonDeviceState) {
    let mut rig = Rig::default_up();
    rig.inflate(&[pfn(FREE)]);
    let at = rig.buffer(&stats_bytes(&[(4, 7)]));
    rig.add(Rig::STATS, &[out(at, 10)]);
    rig.kick(Rig::STATS);
    rig.run();
    rig.start_hinting();
    rig.balloon.set_paused(true);
    let state = rig.balloon.state();
    (rig, state)
}

#[test]
fn hostile_transport_state_is_an_error() {
    let spoils: Vec<Spoil> = vec![
        |s| s.mmio.device_type = 2,
        |s| s.mmio.device_features ^= 1 << 3,
        |s| s.mmio.device_features ^= 1 << 40,
        |s| s.mmio.driver_features |= 1 << 40,
        |s| s.mmio.driver_features &= !(1 << 32),
        |s| s.mmio.driver_features ^= 1 << 29,
        |s| s.mmio.status = 4,
        |s| s.mmio.status = 15 & !2,
        |s| s.mmio.status |= 1 << 8,
        |s| s.mmio.interrupt_status = 4,
        |s| s.mmio.queues.truncate(4),
        |s| s.mmio.queues.push(s.mmio.queues[0].clone()),
        |s| s.mmio.queues.clear(),
        |s| s.mmio.queues[1].max_size = 64,
        |s| s.mmio.queues[1].size = 0,
        |s| s.mmio.queues[1].size = 3,
        |s| s.mmio.queues[1].size = 256,
        |s| s.mmio.queues[1].desc_table = u64::MAX,
        |s| s.mmio.queues[1].desc_table = !15,
        |s| s.mmio.queues[1].avail_ring = RAM - 2,
        |s| s.mmio.queues[1].used_ring = RAM,
        |s| s.mmio.queues[1].event_idx = false,
    ];
    let (rig, good) = busy();
    assert!(rig.move_to(&good).is_ok());
    for (nth, spoil) in spoils.into_iter().enumerate() {
        let mut state = good.clone();
        spoil(&mut state);
        assert!(rig.move_to(&state).is_err(), "{nth}");
    }
}

#[test]
fn hostile_balloon_state_is_an_error() {
    use BalloonStateError as E;
    let spoils: Vec<(E, Spoil)> = vec![
        (E::RamPages { saved: 5, own: 8192 }, |s| s.device.ram_pages = 5),
        (E::PageSet, |s| s.device.ballooned = SavedPages::Bits(vec![0; 127])),
        (E::PageSet, |s| s.device.ballooned = SavedPages::Words(vec![(128, 1)])),
        (E::PageSet, |s| s.device.ballooned = SavedPages::Runs(vec![(8192, 1)])),
        (E::PageSet, |s| s.device.ballooned = SavedPages::Runs(vec![(1, u64::MAX)])),
        (E::HeldStats, |s| s.device.held_stats = Some(128)),
        (E::HeldStats, |s| s.device.held_stats = Some(u16::MAX)),
        (E::HeldStats, |s| s.mmio.queues[2].ready = false),
        (E::Hinting, |s| s.device.hinting.field = 77),
        (E::Hinting, |s| s.device.hinting.last_id = 1),
        (E::Hinting, |s| s.device.hinting.last_id = 0),
        (E::Hinting, |s| s.device.hinting.issued = false),
        (E::Hinting, |s| s.mmio.driver_features &= !F_FREE_PAGE_HINT),
        (E::Poison, |s| {
            s.device.poison_val = 1;
            s.mmio.driver_features &= !F_PAGE_POISON;
        }),
        (E::PageSet, |s| s.mmio.status = 11),
    ];
    let (rig, good) = busy();
    for (nth, (expected, spoil)) in spoils.into_iter().enumerate() {
        let mut state = good.clone();
        spoil(&mut state);
        let Some(MmioError::Device(error)) = rig.move_to(&state).err() else {
            panic!("{nth} was taken")
        };
        assert_eq!(*error.downcast::<BalloonStateError>().unwrap(), expected, "{nth}");
    }
}

#[test]
fn a_queue_that_the_driver_stops_takes_what_the_device_held_of_it() {
    for queue in [Rig::STATS, Rig::DEFLATE, Rig::INFLATE, Rig::HINT, Rig::REPORT] {
        let (mut rig, state) = busy();
        assert!(state.device.held_stats.is_some());
        rig.balloon.set_paused(false);
        rig.w32(offset::QUEUE_SEL, queue as u32);
        rig.w32(offset::QUEUE_READY, 0);
        assert_eq!(rig.balloon.state().device.held_stats.is_some(), queue != Rig::STATS);
        // A driver that cannot deflate cannot say which pages it uses again.
        assert_eq!(rig.balloon.ballooned().is_empty(), queue == Rig::DEFLATE);
        rig.balloon.set_paused(true);
        let mut there = rig.move_to(&rig.balloon.state()).unwrap();
        there.balloon.set_paused(false);
        there.run();
        assert_eq!(there.balloon.request_stats(), queue != Rig::STATS);
        assert!(!there.needs_reset());
        rig.balloon.set_paused(false);
        rig.probe(u64::MAX);
        rig.inflate(&[pfn(FREE)]);
        assert_eq!(rig.balloon.ballooned(), vec![(FREE, PAGE)]);
    }
}

#[test]
fn a_balloon_that_offers_other_features_refuses_the_state() {
    let (mut rig, state) = busy();
    rig.cfg.reporting = false;
    let error = rig.move_to(&state).err();
    assert!(matches!(error, Some(MmioError::Features { .. })), "{error:?}");
}

#[test]
fn h14_done_is_forced_on_restore() {
    for stop_first in [false, true] {
        let mut rig = Rig::default_up();
        let (id, sink) = rig.start_hinting();
        if stop_first {
            rig.balloon.hint_stop();
        }
        // The guest has taken every interrupt: the one for DONE must be new.
        rig.w32(offset::INTERRUPT_ACK, u32::MAX);
        let generation = rig.r32(offset::CONFIG_GENERATION);
        rig.balloon.set_paused(true);
        let state = rig.balloon.state();
        let mut there = rig.move_to(&state).unwrap();
        assert_eq!(there.interrupts(), 0, "no interrupt before the machine is resumed");
        there.balloon.set_paused(false);
        assert_eq!(there.interrupts(), 0, "nor before the guest is told");
        there.balloon.device().urgent().announce();
        assert_eq!(there.config(CONFIG_CMD_ID), CMD_DONE);
        assert_eq!(there.r32(offset::INTERRUPT_STATUS) & INT_CONFIG, INT_CONFIG);
        assert!(there.interrupts() > 0);
        assert_ne!(there.r32(offset::CONFIG_GENERATION), generation);
        there.run();
        there.command(id);
        there.hint(FREE, 4 << 20);
        assert!(sink.take().is_empty());
        // It moved on before its driver was told, or had time to listen.
        there.balloon.set_paused(true);
        let state = there.balloon.state();
        let mut there = there.move_to(&state).unwrap();
        there.balloon.set_paused(false);
        let edges = there.interrupts();
        there.balloon.device().urgent().announce();
        assert_eq!((there.interrupts(), there.config(CONFIG_CMD_ID)), (edges + 1, CMD_DONE));
        let started = there.start_hinting().0;
        assert_eq!(started, id + 1, "ids go on");
        let edges = there.interrupts();
        there.balloon.device().urgent().announce();
        assert_eq!(
            (there.interrupts(), there.config(CONFIG_CMD_ID)),
            (edges, started),
            "hinting again"
        );
    }
}
