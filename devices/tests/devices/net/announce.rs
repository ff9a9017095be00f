//! After a move: the network, and the driver, are told.

use super::*;
use crate::wire::MAC;

/// A RARP request in the guest's name.
pub fn rarp() -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(MAC);
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame.extend(MAC);
    frame.extend([0; 4]);
    frame.extend(MAC);
    frame.resize(HEADER + 60, 0);
    frame
}

/// A guest that has been moved and runs.
fn arrived(features: u64) -> Guest {
    let guest = Guest::up_on(Wire::new(), features);
    assert_eq!(guest.wire.take(), [] as [Vec<u8>; 0], "not where it begins");
    let mut moved = guest.moved_to(Wire::new());
    moved.resume();
    moved
}

fn asked(guest: &Guest) -> bool {
    guest.status() & S_ANNOUNCE != 0
}

fn config_interrupt(guest: &Guest) -> bool {
    let high = guest.bench.line.high();
    let cause = guest.bench.read(offset::INTERRUPT_STATUS, 4);
    guest.bench.write(offset::INTERRUPT_ACK, &(cause as u32).to_le_bytes());
    high && cause & 2 != 0
}

fn sent(guest: &Guest, nr: usize) -> bool {
    guest.wire.seen().sent.len() >= nr
}

#[test]
fn the_network_is_told_as_soon_as_it_runs_and_again_and_the_driver_is_asked() {
    let mut guest = arrived(u64::MAX);
    assert_eq!(guest.wire.take(), [rarp()]);
    assert!(!asked(&guest) && !config_interrupt(&guest));
    guest.bench.devices.announce();
    assert!(asked(&guest) && config_interrupt(&guest));
    assert!(!config_interrupt(&guest), "acknowledged");
    assert_eq!(guest.command(&CTRL_ANNOUNCE_ACK), CTRL_OK);
    assert!(!asked(&guest));
    config_interrupt(&guest);
    guest.run_until("it is asked again", asked);
    assert!(config_interrupt(&guest));
    // The network is told whether the driver answers or not.
    guest.run_until("five rounds", |guest| sent(guest, 5));
    assert_eq!(guest.wire.take(), vec![rarp(); 5]);
    assert_eq!(guest.command(&CTRL_ANNOUNCE_ACK), CTRL_OK);
    // The alarm is set no more: nothing will come of it, however long one waits.
    let (saved, _) = guest.bench.save();
    guest.resume();
    guest.bench.run();
    assert!(guest.bench.save().0 == saved && guest.wire.take().is_empty() && !asked(&guest));
}

#[test]
fn a_driver_that_cannot_is_not_asked_and_the_network_is_told() {
    let mut guest = arrived(!feature::GUEST_ANNOUNCE);
    guest.bench.devices.announce();
    guest.run_until("five rounds", |guest| sent(guest, 6));
    assert_eq!(guest.wire.take(), vec![rarp(); 6]);
    assert!(!asked(&guest) && config_interrupt(&guest), "but it looks for a link");
    assert_eq!(guest.command(&CTRL_ANNOUNCE_ACK), CTRL_ERR);
}

#[test]
fn a_pause_is_quiet_and_what_is_left_is_announced_after_it() {
    let mut guest = arrived(u64::MAX);
    guest.bench.devices.announce();
    guest.wire.take();
    guest.pause();
    // A round would have come by now; nothing depends on that it would.
    std::thread::sleep(Duration::from_millis(60));
    guest.bench.run();
    assert_eq!(guest.wire.take(), [] as [Vec<u8>; 0]);
    guest.resume();
    guest.run_until("the other four rounds", |guest| sent(guest, 4));
    assert_eq!(guest.wire.take(), vec![rarp(); 4]);
    // Put off, if it does not run.
    guest.pause();
    guest.bench.devices.announce();
    assert_eq!(guest.wire.take(), [] as [Vec<u8>; 0]);
    guest.resume();
    assert_eq!(guest.wire.take(), [rarp()]);
}

#[test]
fn a_reset_ends_it_and_a_guest_without_a_driver_is_not_announced() {
    let mut guest = arrived(u64::MAX);
    guest.bench.devices.announce();
    guest.wire.take();
    guest.bench.write(offset::STATUS, &[0; 4]);
    assert!(!asked(&guest));
    // What an alarm that was not taken back would do, it does when all is looked at again.
    guest.pause();
    guest.resume();
    guest.bench.devices.announce();
    let mut moved = guest.moved_to(Wire::new());
    moved.resume();
    moved.bench.devices.announce();
    assert!(guest.wire.take().is_empty() && moved.wire.take().is_empty());
}

#[test]
fn a_question_that_was_not_answered_moves_along() {
    let guest = arrived(u64::MAX);
    guest.bench.devices.announce();
    let mut moved = guest.moved_to(Wire::new());
    moved.resume();
    assert!(asked(&moved));
    assert_eq!(moved.command(&CTRL_ANNOUNCE_ACK), CTRL_OK);
    assert!(!asked(&moved));
}
