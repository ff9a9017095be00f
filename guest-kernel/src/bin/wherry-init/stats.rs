//! Figures for the `ready` and `status` lines, from `/proc` and `/sys`.

use std::fmt::Write;
use std::fs;

use crate::procfs::{lookup, read};
use crate::{check, heartbeat, periodic, sys, work};

/// The feature bits that the balloon driver negotiated, as a number; `None` when no balloon is
/// bound.
fn balloon_features() -> Option<u64> {
    let bound = fs::read_dir("/sys/bus/virtio/drivers/virtio_balloon").ok()?;
    let device =
        bound.filter_map(|e| Some(e.ok()?.path())).find(|p| p.join("features").exists())?;
    let bits = fs::read_to_string(device.join("features")).ok()?;
    Some(
        bits.trim()
            .bytes()
            .take(64)
            .enumerate()
            .fold(0, |n, (bit, c)| n | u64::from(c == b'1') << bit),
    )
}

/// `kernel=… cpus=… memtotal_kb=… memfree_kb=… …`
pub fn ready_line() -> String {
    let mem = read("/proc/meminfo");
    let cpus = read("/proc/cpuinfo").lines().filter(|l| l.starts_with("processor")).count();
    let balloon = balloon_features().map_or_else(|| "none".into(), |bits| format!("{bits:#x}"));
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    format!(
        "kernel={} cpus={cpus} memtotal_kb={} memfree_kb={} memavailable_kb={} clocksource={} \
         balloon={balloon} \
         uptime_ms={}",
        sys::kernel_release(),
        lookup(&mem, "MemTotal").unwrap_or(0),
        lookup(&mem, "MemFree").unwrap_or(0),
        lookup(&mem, "MemAvailable").unwrap_or(0),
        clock.trim(),
        sys::monotonic_ns() / 1_000_000,
    )
}

/// `uptime_ms=… beats=… longest_gap_ms=… checked=… bad=… …`
pub fn status_line() -> String {
    let (mem, vm) = (read("/proc/meminfo"), read("/proc/vmstat"));
    let (beats, gap, gap_at) = heartbeat::read();
    let (checked, bad) = check::counts();
    let mut line = format!(
        "uptime_ms={} beats={beats} longest_gap_ms={gap:.1} longest_gap_at_ms={gap_at} \
         checked={checked} bad={bad} \
         memtotal_kb={} memfree_kb={} memavailable_kb={}",
        sys::monotonic_ns() / 1_000_000,
        lookup(&mem, "MemTotal").unwrap_or(0),
        lookup(&mem, "MemFree").unwrap_or(0),
        lookup(&mem, "MemAvailable").unwrap_or(0),
    );
    for key in ["balloon_inflate", "balloon_deflate", "balloon_migrate", "oom_kill"] {
        let _ = write!(line, " {key}={}", lookup(&vm, key).unwrap_or(0));
    }
    let _ = write!(line, " {} {}", work::status(), periodic::status());
    line
}

/// ` KEY=N` for each key that `/proc/vmstat` has.
pub fn vmstat(keys: &[&str]) -> String {
    let text = read("/proc/vmstat");
    keys.iter().filter_map(|key| Some(format!(" {key}={}", lookup(&text, key)?))).collect()
}

/// ` order0=N order1=N …`: free blocks of each order, all zones together.
pub fn buddyinfo() -> String {
    let blocks = free_blocks(&read("/proc/buddyinfo"));
    (0..).zip(blocks).map(|(order, nr): (u32, u64)| format!(" order{order}={nr}")).collect()
}

/// From lines like `Node 0, zone    DMA32    10    4 …`.
fn free_blocks(text: &str) -> Vec<u64> {
    let mut sum = Vec::new();
    for line in text.lines() {
        let numbers = line.split_whitespace().skip(4).map(|word| word.parse().unwrap_or(0));
        for (order, nr) in numbers.enumerate() {
            match sum.get_mut(order) {
                Some(all) => *all += nr,
                None => sum.push(nr),
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_summed() {
        let text = "Node 0, zone      DMA      1      0      2 \nNode 0, zone    DMA32    300      \
                    1      0 \n";
        assert_eq!(free_blocks(text), [301, 1, 2]);
    }
}
