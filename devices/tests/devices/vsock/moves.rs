//! Pauses and moves: no connection moves, and the guest is told before anything else.

use wherry_devices::virtio::mmio::regs::offset;

use super::*;

#[test]
fn a_guest_that_stays_goes_on_with_its_connections() {
    let mut guest = Guest::up();
    let (end, header) = guest.client(22);
    guest.pause();
    end.send(b"meanwhile");
    guest.send(header, b"kicked");
    assert_eq!((end.take().len(), end.unread()), (0, 9), "a paused device touches nothing");
    guest.bench.save();
    guest.resume();
    assert_eq!(end.take(), b"kicked");
    assert_eq!(guest.packet().1, b"meanwhile");
    assert!(!end.closed());
}

#[test]
fn a_guest_that_arrives_is_told_and_nothing_else_comes_before_it_has_looked() {
    let mut guest = Guest::up();
    let (end, old) = guest.client(22);
    end.send(b"not read");
    let mut moved = guest.moved();
    let client = moved.peers.client(23);
    moved.resume();
    assert_eq!(end.unread(), 8, "the source's connections are as they were");
    // Of what it had, the guest may speak until it knows.
    moved.send(old, b"stale");
    // The device has a buffer, and fills it; the guest has not looked yet.
    let used = moved.driver.take_used(&moved.bench);
    let events: Vec<_> = used.iter().filter(|(queue, ..)| *queue == EVENT).collect();
    assert_eq!(events.len(), 1);
    assert!(used.iter().all(|(queue, ..)| *queue != RX), "{used:?}");
    assert!(moved.bench.line.high(), "the guest is interrupted");
    moved.give_event_buffer();
    let (asked, _) = moved.packet();
    assert_eq!((asked.op, asked.dst_port), (op::REQUEST, 23));
    // Nothing stale comes after it, and no port is used again.
    assert_eq!(asked.src_port, old.dst_port + 1);
    moved.send(Header { op: op::RESPONSE, ..answer(&asked) }, &[]);
    assert_eq!(client.accepted(), Some(asked.src_port));
    moved.send(old, b"stale");
    assert_eq!(moved.ops(), [op::RST], "now it should know");
}

#[test]
fn a_guest_without_a_buffer_for_events_is_told_when_there_is_one() {
    let mut guest = Guest::cold();
    guest.driver.probe(&guest.bench);
    (0..4).for_each(|_| guest.give_room());
    guest.bench.run();
    let mut moved = guest.moved();
    moved.peers.client(22);
    moved.resume();
    assert_eq!(moved.take(), (vec![], 0));
    moved.give_event_buffer();
    moved.bench.run();
    let used = moved.driver.take_used(&moved.bench);
    assert!(used.iter().all(|(queue, ..)| *queue == EVENT) && used.len() == 1, "{used:?}");
    moved.give_event_buffer();
    assert_eq!(moved.packet().0.op, op::REQUEST);
}

#[test]
fn a_guest_that_moves_again_before_it_looked_answers_both() {
    let guest = Guest::up();
    let mut moved = guest.moved();
    moved.resume();
    let mut again = moved.moved();
    again.peers.client(22);
    again.resume();
    let used = again.driver.take_used(&again.bench);
    assert_eq!(used.iter().filter(|(queue, ..)| *queue == EVENT).count(), 2, "{used:?}");
    again.give_event_buffer();
    again.bench.run();
    assert_eq!(again.driver.take_used(&again.bench), [], "one is not answered");
    again.give_event_buffer();
    assert_eq!(again.packet().0.op, op::REQUEST);
}

#[test]
fn what_the_guest_begins_before_it_has_looked_is_answered_after_it() {
    let guest = Guest::up();
    let mut moved = guest.moved();
    moved.peers.listen(7);
    moved.resume();
    moved.send(Header { op: op::REQUEST, ..header(5000, 7) }, &[]);
    moved.send(Header { op: op::REQUEST, ..header(5001, 8) }, &[]);
    let used = moved.driver.take_used(&moved.bench);
    assert!(used.iter().all(|(queue, ..)| *queue != RX), "{used:?}");
    moved.give_event_buffer();
    assert_eq!(moved.ops(), [op::RST, op::RESPONSE]);
}

#[test]
fn a_guest_without_a_driver_is_not_told_and_a_reset_opens_the_gate() {
    let guest = Guest::cold();
    let mut moved = guest.moved();
    moved.resume();
    moved.driver.probe(&moved.bench);
    (0..4).for_each(|_| moved.give_room());
    moved.give_event_buffer();
    assert_eq!(moved.take(), (vec![], 0));
    moved.client(22);
    let mut moved = moved.moved();
    moved.resume();
    moved.bench.write(offset::STATUS, &[0; 4]);
    moved.driver.probe(&moved.bench);
    (0..4).for_each(|_| moved.give_room());
    moved.client(22);
}

#[test]
fn packets_that_wait_for_room_for_refusals_are_kicked_after_a_move() {
    // The driver's last kick was before the pause, and it waits for no other.
    let mut guest = Guest::up();
    guest.peers.listen(7);
    guest.pause();
    guest.send(Header { op: op::REQUEST, ..header(5000, 7) }, &[]);
    let mut moved = guest.moved();
    moved.peers.listen(7);
    moved.resume();
    let (packets, events) = moved.take();
    assert_eq!((packets.len(), events), (0, 1));
    assert_eq!(moved.ops(), [op::RESPONSE]);
    assert!(moved.driver.is_awaited(&moved.bench, TX), "the next kick is wanted");
    assert!(moved.driver.is_awaited(&moved.bench, EVENT), "and one for an event's buffer");
}
