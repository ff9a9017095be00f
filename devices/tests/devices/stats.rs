//! S: statistics.

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::mmio::regs::offset;

use crate::driver::*;

/// The driver hands over its buffer. Returns the head of the chain.
fn give(rig: &mut Rig, bytes: &[u8]) -> u16 {
    let at = rig.buffer(bytes);
    let head = rig.add(Rig::STATS, &[out(at, bytes.len() as u32)]);
    rig.kick(Rig::STATS);
    rig.run();
    head
}

#[test]
fn s1_the_buffer_is_held_and_returned_to_ask_for_more() {
    let mut rig = Rig::default_up();
    assert!(!rig.balloon.request_stats(), "there is no buffer yet");
    let head = give(&mut rig, &stats_bytes(&[(STAT_FREE_MEMORY, 1)]));
    assert!(rig.used(Rig::STATS).is_empty());
    let edges = rig.interrupts();
    assert!(rig.balloon.request_stats());
    assert!(!rig.balloon.request_stats(), "one request at a time");
    assert_eq!(rig.interrupts(), edges + 1);
    assert_eq!(rig.used(Rig::STATS), vec![(u32::from(head), 0)]);
    give(&mut rig, &stats_bytes(&[(STAT_FREE_MEMORY, 2)]));
    assert_eq!(rig.balloon.guest_free_bytes(), Some(2));
    assert!(rig.balloon.stats().updated.is_some());
    assert!(rig.balloon.request_stats());
}

#[test]
fn s1_a_second_buffer_goes_back_unread() {
    let mut rig = Rig::default_up();
    give(&mut rig, &stats_bytes(&[(STAT_FREE_MEMORY, 1)]));
    let second = give(&mut rig, &stats_bytes(&[(STAT_FREE_MEMORY, 2)]));
    assert_eq!(rig.used(Rig::STATS), vec![(u32::from(second), 0)]);
    assert_eq!(rig.balloon.guest_free_bytes(), Some(1));
    assert!(rig.balloon.request_stats());
}

#[test]
fn s2_any_order_and_unknown_tags() {
    let mut rig = Rig::default_up();
    let entries = [(9, 90), (0xffff, 1), (0, 10), (16, 2), (5, 50), (0x0500, 3)];
    give(&mut rig, &stats_bytes(&entries));
    assert_eq!(rig.balloon.stats().values, vec![(0, 10), (5, 50), (9, 90)]);
}

#[test]
fn s2_entries_may_straddle_descriptors() {
    let mut rig = Rig::default_up();
    let bytes = stats_bytes(&[(3, 33), (4, u64::MAX)]);
    let at = rig.buffer(&bytes);
    rig.add(Rig::STATS, &[out(at, 7), out(at + 7, 13)]);
    rig.kick(Rig::STATS);
    rig.run();
    assert_eq!(rig.balloon.stats().values, vec![(3, 33), (4, u64::MAX)]);
    assert_eq!(rig.balloon.telemetry().stats_malformed, 0);
}

#[test]
fn s3_the_16_tags_of_linux_6_12_have_names() {
    let mut rig = Rig::default_up();
    let entries: Vec<(u16, u64)> = (0..16).map(|tag| (tag, 1000 + u64::from(tag))).collect();
    give(&mut rig, &stats_bytes(&entries));
    let stats = rig.balloon.stats();
    assert_eq!(stats.values, entries);
    assert_eq!(stats.get(STAT_TOTAL_MEMORY), Some(1005));
    assert_eq!(STAT_NAMES[usize::from(STAT_AVAILABLE_MEMORY)], "available_memory");
    assert_eq!(STAT_NAMES.len(), 16);
}

#[test]
fn s5_length_is_bounded_and_odd_lengths_are_counted() {
    let mut rig = Rig::default_up();
    give(&mut rig, &stats_bytes(&[(4, 7)])[..9]);
    assert_eq!((rig.balloon.stats().values.len(), rig.balloon.telemetry().stats_malformed), (0, 1));
    assert!(rig.balloon.request_stats(), "the buffer is held all the same");
    rig.used(Rig::STATS);
    // A buffer that claims all of RAM: its first 256 entries are looked at.
    let at = rig.buffer(&stats_bytes(&[(4, 7)]));
    rig.add(Rig::STATS, &[out(at, u32::MAX)]);
    rig.kick(Rig::STATS);
    rig.run();
    assert_eq!(
        (rig.balloon.guest_free_bytes(), rig.balloon.telemetry().stats_malformed),
        (Some(7), 2)
    );
    assert!(rig.balloon.request_stats());
    rig.used(Rig::STATS);
    // Nothing readable at all.
    rig.add(Rig::STATS, &[inb(at, 10), out(u64::MAX - 3, 10)]);
    rig.kick(Rig::STATS);
    rig.run();
    assert_eq!(
        (rig.balloon.guest_free_bytes(), rig.balloon.telemetry().stats_malformed),
        (None, 3)
    );
}

#[test]
fn s6_reset_forgets_buffer_and_values() {
    let mut rig = Rig::default_up();
    give(&mut rig, &stats_bytes(&[(4, 7)]));
    rig.w32(offset::STATUS, 0);
    assert!(!rig.balloon.request_stats());
    assert_eq!(rig.balloon.guest_free_bytes(), None);
    rig.probe(u64::MAX);
    assert!(!rig.balloon.request_stats());
}

#[test]
fn s7_a_held_buffer_survives_migration() {
    let mut rig = Rig::default_up();
    let head = give(&mut rig, &stats_bytes(&[(4, 7)]));
    rig.balloon.set_paused(true);
    let mut there = rig.move_to(&rig.balloon.state()).unwrap();
    there.balloon.set_paused(false);
    there.run();
    assert!(there.used(Rig::STATS).is_empty());
    assert!(there.balloon.request_stats());
    assert_eq!(there.used(Rig::STATS), vec![(u32::from(head), 0)]);
    give(&mut there, &stats_bytes(&[(4, 8)]));
    assert_eq!(there.balloon.guest_free_bytes(), Some(8));
}

#[test]
fn s1_the_first_buffer_may_be_empty() {
    // What the specification's initialisation asks for, unlike Linux, which fills it.
    let mut rig = Rig::default_up();
    rig.add(Rig::STATS, &[out(FREE, 0)]);
    rig.kick(Rig::STATS);
    rig.run();
    assert_eq!((rig.balloon.stats().values, rig.balloon.telemetry().stats_malformed), (vec![], 0));
    assert!(rig.balloon.request_stats());
}

#[test]
fn linux_primes_the_queue_before_driver_ok() {
    let mut rig = Rig::cold(Default::default());
    rig.negotiate(u64::MAX);
    for index in 0..5 {
        rig.setup_queue(index);
    }
    give(&mut rig, &stats_bytes(&[(4, 7)]));
    assert_eq!(rig.balloon.guest_free_bytes(), None, "nothing is consumed before DRIVER_OK");
    rig.add_status(4);
    rig.run();
    assert_eq!(rig.balloon.guest_free_bytes(), Some(7));
}

/// Whatever is asked for from outside: memory and what would be saved stay as they are while
/// paused.
#[test]
fn s3_while_paused_nothing_that_is_asked_for_changes_memory_or_state() {
    let mut rig = Rig::default_up();
    give(&mut rig, &stats_bytes(&[(STAT_FREE_MEMORY, 1)]));
    let (_, _sink) = rig.start_hinting();
    rig.balloon.hint_done();
    rig.balloon.set_paused(true);
    let (state, edges) = (rig.balloon.state(), rig.interrupts());
    let memory = contents(&rig);
    assert!(!rig.balloon.request_stats());
    assert!(!rig.balloon.set_target(100));
    rig.balloon.device().urgent().announce();
    rig.balloon.figures();
    rig.balloon.ballooned();
    rig.run();
    assert_eq!(rig.balloon.state(), state);
    assert_eq!(rig.interrupts(), edges);
    assert!(contents(&rig) == memory, "guest memory was written while paused");
    let generation = |rig: &Rig| rig.r32(offset::CONFIG_GENERATION);
    let before = generation(&rig);
    rig.balloon.set_paused(false);
    assert_eq!(generation(&rig), before + 1, "DONE is announced then");
    assert!(rig.balloon.request_stats() && rig.balloon.set_target(100));
}

#[test]
fn s3_statistics_go_on_at_the_destination_after_they_were_asked_for_while_paused() {
    let mut rig = Rig::default_up();
    give(&mut rig, &stats_bytes(&[(STAT_FREE_MEMORY, 1)]));
    rig.balloon.set_paused(true);
    rig.balloon.request_stats();
    let mut there = rig.move_to(&rig.balloon.state()).unwrap();
    there.balloon.set_paused(false);
    assert!(there.balloon.request_stats(), "the buffer is held there");
    give(&mut there, &stats_bytes(&[(STAT_FREE_MEMORY, 2)]));
    assert_eq!(there.balloon.guest_free_bytes(), Some(2));
}

fn contents(rig: &Rig) -> Vec<u8> {
    let mut all = Vec::new();
    for region in rig.mem.iter() {
        let mut bytes = vec![0; region.len() as usize];
        rig.mem.read_slice(&mut bytes, region.start_addr()).unwrap();
        all.append(&mut bytes);
    }
    all
}
