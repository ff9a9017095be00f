//! A network that has no room for now, and one that is gone.

use super::announce::rarp;
use super::*;

/// A driver with frames out for a network that has room for so many.
fn sending(room: usize, frames: u8) -> (Guest, Vec<u32>) {
    let mut guest = Guest::up();
    guest.wire.seen().room = Some(room);
    let mut heads = Vec::new();
    for nth in 0..frames {
        let at = FROM + u64::from(nth) * 0x1000;
        guest.put(at, &frame(60, nth));
        heads.push(guest.add(TX, &[out(at, 72)]));
    }
    (guest, heads)
}

/// There is so much room, and the driver is not the one who says so.
fn more_room(guest: &mut Guest, room: usize) {
    guest.wire.seen().room = Some(room);
    guest.wire.tell();
    guest.bench.run();
}

fn link_is_up(guest: &Guest) -> bool {
    guest.status() & S_LINK_UP != 0
}

fn config_interrupt(guest: &Guest) -> bool {
    let cause = guest.bench.read(offset::INTERRUPT_STATUS, 4);
    guest.bench.write(offset::INTERRUPT_ACK, &(cause as u32).to_le_bytes());
    cause & 2 != 0
}

#[test]
fn without_room_frames_wait_with_the_driver_and_go_on_in_order() {
    let (mut guest, heads) = sending(1, 4);
    assert_eq!(guest.used(), [(TX, heads[0], 0)]);
    assert!(!guest.bench.turn(), "nobody looks for room");
    more_room(&mut guest, 2);
    assert_eq!(guest.used(), [(TX, heads[1], 0), (TX, heads[2], 0)]);
    more_room(&mut guest, 2);
    assert_eq!(guest.used(), [(TX, heads[3], 0)]);
    assert_eq!(guest.wire.take(), [0, 1, 2, 3].map(|nth| frame(60, nth)));
    // Frames to the guest do not wait for those from it.
    let (mut guest, _) = sending(0, 2);
    let head = guest.add(RX, &[inb(FROM + 0x8000, 100)]);
    guest.wire.send(frame(60, 9));
    guest.bench.run();
    assert_eq!(guest.used(), [(RX, head, 72)]);
}

#[test]
fn frames_that_wait_move_along_and_what_room_there_is_meanwhile_is_found_on_resume() {
    let (mut guest, heads) = sending(0, 2);
    guest.pause();
    more_room(&mut guest, 9);
    assert!(guest.used().is_empty() && guest.wire.take().is_empty(), "paused");
    let mut moved = guest.moved_to(Wire::new());
    moved.resume();
    assert_eq!(moved.used(), [(TX, heads[0], 0), (TX, heads[1], 0)]);
    assert_eq!(moved.wire.take(), [rarp(), frame(60, 0), frame(60, 1)]);
    // It did not move after all.
    guest.resume();
    assert_eq!(guest.used().len(), 2);
    assert_eq!(guest.wire.take(), [frame(60, 0), frame(60, 1)]);
}

#[test]
fn a_reset_forgets_frames_that_wait() {
    let (mut guest, _) = sending(0, 2);
    guest.probe_for(u64::MAX);
    more_room(&mut guest, 9);
    assert!(guest.used().is_empty() && guest.wire.take().is_empty());
    guest.transmit(&frame(60, 7));
}

#[test]
fn a_network_that_is_gone_takes_all_frames_and_its_link_is_down_until_another_is_there() {
    let (mut guest, heads) = sending(0, 2);
    assert!(link_is_up(&guest) && guest.used().is_empty());
    config_interrupt(&guest);
    guest.wire.seen().down = true;
    guest.wire.tell();
    guest.bench.run();
    assert!(!link_is_up(&guest) && config_interrupt(&guest));
    assert_eq!(guest.used(), [(TX, heads[0], 0), (TX, heads[1], 0)], "a driver does not wait");
    guest.transmit(&frame(60, 5));
    config_interrupt(&guest);
    guest.wire.tell();
    guest.bench.run();
    assert!(!config_interrupt(&guest), "said once");
    (guest.wire.seen().down, guest.wire.seen().room) = (false, None);
    guest.wire.tell();
    guest.bench.run();
    assert!(link_is_up(&guest) && config_interrupt(&guest));
    // The new one is told of the guest, and lacks what the other one lost.
    assert_eq!(guest.wire.take(), [rarp()]);
    guest.transmit(&frame(60, 6));
    assert_eq!(guest.wire.take(), [frame(60, 6)]);
}

#[test]
fn a_link_that_went_while_paused_is_seen_on_resume_and_one_elsewhere_on_arrival() {
    let mut guest = Guest::up();
    guest.pause();
    guest.wire.seen().down = true;
    guest.wire.tell();
    guest.bench.run();
    assert!(link_is_up(&guest), "config space is as it was saved");
    let mut moved = guest.moved_to(Wire::new());
    guest.resume();
    assert!(!link_is_up(&guest) && config_interrupt(&guest));
    moved.resume();
    moved.bench.devices.announce();
    assert!(link_is_up(&moved) && config_interrupt(&moved), "it may know of none");
}
