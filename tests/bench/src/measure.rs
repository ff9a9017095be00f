//! One run: boot, work, count the floor, migrate, ask the guest how it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use wherry_tests::{Console, Fields, SETTLE};

use crate::case::{Case, Hints, size_bytes};
use crate::entry::Entry;
use crate::link::{self, Link};
use crate::process;
use crate::vmm::{Files, Migration, Vmm};

/// Big guests under software emulation take their time.
const BOOT: Duration = Duration::from_secs(120);
const WORK: Duration = Duration::from_secs(400);
const ANSWER: Duration = Duration::from_secs(30);
const COUNT: Duration = Duration::from_secs(180);
/// Time over which the guest's heart is watched before the migration.
const BEFORE: Duration = Duration::from_secs(1);
/// MemFree must fall by this part of itself to be a sign of hinting.
const FELL: f64 = 0.1;
/// How often processes and the guest are looked at. The guest's answer costs it a little.
const SAMPLE: Duration = Duration::from_millis(100);
const PROBE: Duration = Duration::from_millis(300);

/// Does one run and fills in the entry. `tail` gets the console's last lines, and `stage` is told
/// what comes next.
pub fn run(
    vmm: &dyn Vmm,
    case: &Case,
    files: &Files,
    link: Link,
    entry: &mut Entry,
    tail: &mut Vec<String>,
    stage: &dyn Fn(&str),
) -> Result<()> {
    stage("starting the guest");
    let mut append = format!("console=ttyS0 quiet wherry.check={}", case.check_mib);
    if !case.work.is_empty() {
        append.push_str(&format!(" wherry.work={}", case.work));
    }
    if !case.init_on_alloc {
        append.push_str(" init_on_alloc=0");
    }
    let mut source = vmm.run(files, case, &append)?;
    let mut console = source.console()?;
    let prepared = prepare(&mut console, case, entry, stage, &mut |taken| {
        source.balloon(taken, case.memory_bytes().unwrap_or(0))
    });
    tail.extend_from_slice(console.tail());
    let before = prepared?;

    let rate = case.link_rate()?;
    let mut shaped = link.shape(rate);
    let cap = case.cap_rate()?;
    if cap.is_some() {
        shaped = Some("vmm");
    }
    entry.link_shaped_by = shaped.map(str::to_owned);
    let port = link::free_port()?;
    stage("starting the destination");
    let mut destination = vmm.receive(files, case, port)?;
    let migration = Migration {
        port,
        bandwidth: cap.or(rate.filter(|_| shaped == Some("vmm"))),
        case,
        timeout: Duration::from_secs(case.timeout_s),
    };
    stage("migrating");
    let (from, to) = (source.pid(), destination.pid());
    let cpu_before = process::cpu(from).unwrap_or_default();
    let rss_before = process::memory(from, "VmRSS");
    // Peaks from here on; where that is not allowed, since the start.
    let _ = process::reset_peak(from);
    let done = AtomicBool::new(false);
    let (result, free, memory) = thread::scope(|scope| {
        let free = scope.spawn(|| lowest_free(&mut console, &done));
        let memory = scope.spawn(|| peaks(from, &done));
        let start = Instant::now();
        let idle_before = process::idle_ms();
        let result = source.migrate(migration);
        let wall = start.elapsed();
        let idle = process::idle_ms().zip(idle_before).map(|(a, b)| a.saturating_sub(b));
        // The source may be a zombie by now, whose times can still be read.
        let cpu = process::cpu(from);
        let guest = cpu.map(|cpu| cpu.guest_ms.saturating_sub(cpu_before.guest_ms));
        let cpu = cpu.map(|cpu| cpu.own_since(cpu_before));
        let cpu_to = process::cpu(to).map(|cpu| cpu.own_since(process::Cpu::default()));
        done.store(true, Ordering::Relaxed);
        (
            result.map(|figures| (figures, wall, (cpu, cpu_to, guest, idle))),
            free.join(),
            memory.join(),
        )
    });
    let floor = std::mem::take(&mut entry.figures);
    let (mut figures, wall, (cpu, cpu_to, guest, idle)) = match result {
        Ok(figures) => figures,
        Err(error) => {
            entry.figures = floor;
            return Err(error);
        }
    };
    figures.wall_ms = u64::try_from(wall.as_millis()).ok();
    (figures.source_cpu_ms, figures.destination_cpu_ms) = (cpu, cpu_to);
    (figures.guest_cpu_ms, figures.idle_ms) = (guest, idle);
    (figures.source_rss_bytes, figures.source_beside_ram_bytes) = memory.unwrap_or_default();
    figures.source_rss_before_bytes = rss_before;
    figures.destination_rss_bytes = process::memory(to, "VmRSS");
    figures.floor_bytes = floor.floor_bytes;
    figures.scattered_bytes = floor.scattered_bytes;
    figures.guest_free_before_bytes = floor.guest_free_before_bytes;
    figures.beats_per_s_before = floor.beats_per_s_before;
    figures.guest_free_min_bytes = free.unwrap_or_default();
    let per_floor =
        |bytes: Option<u64>| Some(bytes? as f64 / floor.floor_bytes.filter(|&f| f > 0)? as f64);
    figures.round_one_per_floor = per_floor(figures.round_one_bytes);
    figures.total_per_floor = per_floor(figures.total_bytes);
    if case.hints != Hints::Off && figures.hinting_seen.is_none() {
        let fell = |from: u64, to: u64| (to as f64) < from as f64 * (1.0 - FELL);
        figures.hinting_seen = figures
            .guest_free_before_bytes
            .zip(figures.guest_free_min_bytes)
            .map(|(a, b)| fell(a, b));
    }
    entry.figures = figures;

    stage("asking the guest at the destination");
    let mut console = destination.console()?;
    let after = after(&mut console, entry, &before);
    tail.extend_from_slice(console.tail());
    after
}

/// Waits for the guest to be where it should be, and measures it. Returns its last status.
fn prepare(
    console: &mut Console,
    case: &Case,
    entry: &mut Entry,
    stage: &dyn Fn(&str),
    balloon: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Fields> {
    let ready = console.wait_for("ready", BOOT).context("the guest did not boot")?;
    let features = ready.0.get("balloon").map_or("none", String::as_str);
    ensure!(features != "none", "the guest found no balloon: hinting would be silently absent");
    stage("waiting for the guest's work");
    console.wait_for("work done", WORK).context("the guest did not do its work")?;
    if let Some(size) = &case.balloon {
        balloon(size_bytes(size)?)?;
    }
    stage("measuring the guest");
    thread::sleep(Duration::from_millis(case.settle_ms));
    let first = console.ask("status", ANSWER)?;
    thread::sleep(BEFORE);
    let second = console.ask("status", ANSWER)?;
    entry.figures.beats_per_s_before = beats(&first, &second);
    let count = console.ask("floor", COUNT).context("the guest cannot count its memory")?;
    entry.figures.floor_bytes = Some(count.num("pages")? * 4096);
    entry.figures.scattered_bytes = Some(count.num("scattered")? * 4096);
    console.ask("resetgap", ANSWER)?;
    let status = console.ask("status", ANSWER)?;
    entry.figures.guest_free_before_bytes = Some(status.num("memfree_kb")? * 1024);
    Ok(status)
}

/// Asks the guest at the destination.
fn after(console: &mut Console, entry: &mut Entry, before: &Fields) -> Result<()> {
    thread::sleep(SETTLE);
    // Ends a command that was cut in two by the migration; what is answered before the echo is
    // about old questions.
    console.send("")?;
    console.ask("echo arrived", ANSWER).context("the guest does not answer at the destination")?;
    let status = console.ask("status", ANSWER)?;
    entry.figures.longest_gap_ms = Some(status.float("longest_gap_ms")?);
    entry.figures.beats_per_s_during = beats(before, &status);
    let verified = console.ask("verify", COUNT)?;
    let last = console.ask("status", ANSWER)?;
    ensure!(
        verified.num("bad")? == 0 && last.num("bad")? == 0,
        "the guest found {} wrong pages",
        last.num("bad")?
    );
    entry.guest_ok = true;
    Ok(())
}

/// Heartbeats a second of the guest's own clock.
fn beats(from: &Fields, to: &Fields) -> Option<f64> {
    let passed = |key: &str| Some(to.num(key).ok()?.saturating_sub(from.num(key).ok()?) as f64);
    let seconds = passed("uptime_ms").filter(|&ms| ms > 0.0)? / 1000.0;
    Some(passed("beats")? / seconds)
}

/// Asks the guest for its MemFree until the migration is done or the guest has left.
fn lowest_free(console: &mut Console, done: &AtomicBool) -> Option<u64> {
    let mut lowest = None;
    while !done.load(Ordering::Relaxed) {
        let Ok(status) = console.ask("status", Duration::from_secs(3)) else { break };
        if let Ok(kib) = status.num("memfree_kb") {
            lowest = Some(lowest.unwrap_or(u64::MAX).min(kib * 1024));
        }
        thread::sleep(PROBE);
    }
    lowest
}

/// Peak resident memory of a process, and the peak of the part that is not shared memory, if guest
/// RAM is.
fn peaks(pid: u32, done: &AtomicBool) -> (Option<u64>, Option<u64>) {
    let (mut resident, mut beside) = (None, None);
    while !done.load(Ordering::Relaxed) {
        resident = resident.max(process::memory(pid, "VmHWM"));
        let parts =
            ["RssAnon", "RssFile", "RssShmem"].map(|part| process::memory(pid, part).unwrap_or(0));
        if parts[2] > parts[0] {
            beside = beside.max(Some(parts[0] + parts[1]));
        }
        thread::sleep(SAMPLE);
    }
    (resident, beside)
}
