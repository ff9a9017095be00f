//! The balloon with stock Linux: every figure is taken from outside (the VMM's resident memory, its
//! counters) and from inside.

use std::time::{Duration, Instant};

use serde_json::Value;
use wherry_tests::{
    BOOT, Env, Fields, Guest, GuestOptions, Result, SOON, Scratch, eventually, migrate, note,
};

const PAGES_PER_MIB: u64 = 256;

/// Tags that Linux 6.1 sends; later ones send more.
const TAGS: [&str; 10] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
];
/// Tags that Linux 6.12 sends, too.
const TAGS_6_12: [&str; 6] = [
    "oom_kills",
    "alloc_stalls",
    "async_scans",
    "direct_scans",
    "async_reclaims",
    "direct_reclaims",
];

fn boot(env: &Env, append: &str, features: &str) -> Result<Guest> {
    let options = GuestOptions {
        cpus: 1,
        memory: "512MiB".into(),
        append: format!("wherry.check=48 wherry.check_rate=500 {append}"),
        args: vec!["--balloon-features".into(), features.into()],
    };
    let mut guest = Guest::run(env, "guest", &options)?;
    guest.wait_for("work done", BOOT)?;
    Ok(guest)
}

/// All figures of a guest at one time, for people.
fn measured(guest: &mut Guest, what: &str) -> Result<Fields> {
    let (balloon, status) = (guest.balloon()?, guest.ask("status", SOON)?);
    note(&format!(
        "{what}: RssShmem {} MiB, resident {} MiB; guest has {} MiB free; balloon {} pages, {} \
         moved",
        guest.rss_mib()?,
        balloon.resident_mib(),
        status.num("memfree_kb")? / 1024,
        balloon.pages()?,
        status.num("balloon_migrate")?,
    ));
    assert_eq!(status.num("bad")?, 0);
    Ok(status)
}

fn statistics(guest: &mut Guest, tags: &[&str]) -> Result<()> {
    let (balloon, status) = (guest.balloon()?, guest.ask("status", SOON)?);
    for tag in tags {
        assert!(balloon.statistic(tag).is_some(), "the guest sends no {tag}: {}", balloon.0);
    }
    let sent = balloon.0["counters"]["guest"].as_object().map_or(0, |all| all.len());
    assert_eq!(sent, tags.len(), "{}", balloon.0);
    assert_eq!(balloon.statistic("total_memory"), Some(status.num("memtotal_kb")? * 1024));
    // A guest that is busy may answer too late for one call; then the next call has it.
    eventually(SOON, || {
        let free = guest.balloon()?.statistic("free_memory").unwrap_or(0) / 1024;
        let said = guest.ask("status", SOON)?.num("memfree_kb")?;
        let near = free.abs_diff(said) < 4096;
        Ok(if near {
            Ok(())
        } else {
            Err(format!("{free} KiB by statistics, {said} by the guest"))
        })
    })?;
    let before = balloon.counter("stats_updates")?;
    eventually(SOON, || {
        let sent = guest.balloon()?.counter("stats_updates")?;
        Ok(if sent > before { Ok(()) } else { Err(format!("{sent} times")) })
    })?;
    note(&format!("statistics: {sent} tags"));
    Ok(())
}

/// Waits until the VMM's memory has shrunk to `mib`.
fn shrinks_to(guest: &Guest, mib: u64) -> Result<Duration> {
    let ((), took) = eventually(SOON, || {
        let rss = guest.rss_mib()?;
        Ok(if rss <= mib { Ok(()) } else { Err(format!("{rss} MiB resident, not {mib}")) })
    })?;
    Ok(took)
}

/// Waits until the guest has had nothing to report for 3 seconds, which is longer than Linux waits.
fn nothing_to_report(guest: &Guest) -> Result<()> {
    let mut last = guest.balloon()?.counter("reports")?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_secs(3));
        let now = guest.balloon()?.counter("reports")?;
        if now == last {
            return Ok(());
        }
        last = now;
    }
    panic!("the guest reports without end");
}

fn reporting(guest: &mut Guest) -> Result<()> {
    nothing_to_report(guest)?;
    measured(guest, "idle")?;
    let idle = guest.rss_mib()?;
    guest.ask("fill 200", SOON)?;
    measured(guest, "200 MiB in use")?;
    let used = guest.rss_mib()?;
    assert!(used > idle + 180, "{idle} MiB idle, {used} MiB with 200 in use");
    guest.ask("free 200", SOON)?;
    let took = shrinks_to(guest, idle + 20)?;
    measured(guest, &format!("freed, {:.1} s later", took.as_secs_f64()))?;
    Ok(())
}

const REPORTING_ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";

/// Free blocks of 1 MiB stay the guest's at the default order, which is 9 (2 MiB), and are reported
/// at order 8.
fn reporting_order(guest: &mut Guest) -> Result<()> {
    nothing_to_report(guest)?;
    let freed = guest.ask("scatter 128 8", SOON)?.num("mib")?;
    assert!(freed > 48, "only {freed} MiB were given back");
    let (before, rss) = (guest.balloon()?.counter("reported_bytes")?, guest.rss_mib()?);
    std::thread::sleep(Duration::from_secs(6));
    let reported = (guest.balloon()?.counter("reported_bytes")? - before) >> 20;
    measured(guest, &format!("{freed} MiB free in blocks of 1 MiB, {reported} MiB reported"))?;
    assert!(
        reported <= 12 && guest.rss_mib()? + 12 > rss,
        "{reported} MiB reported below the order"
    );
    guest.ask(&format!("write {REPORTING_ORDER} 8"), SOON)?;
    // Linux looks at its free lists again when such a block is freed; the first few stay in lists
    // of the CPU.
    guest.ask("fill 40", SOON)?;
    guest.ask("free 40", SOON)?;
    let took = shrinks_to(guest, rss - freed * 3 / 4)?;
    measured(guest, &format!("order 8 allowed, {:.1} s later", took.as_secs_f64()))?;
    guest.ask(&format!("write {REPORTING_ORDER} 9"), SOON)?;
    guest.ask("scatter 0", SOON)?;
    Ok(())
}

/// Inflates by `mib` into single free pages: memory that the host has and that nobody reports.
fn inflate_into_fragments(guest: &mut Guest, mib: u64) -> Result<()> {
    let freed = guest.ask(&format!("scatter {} 0", 2 * mib), SOON)?.num("mib")?;
    assert!(freed > mib * 3 / 4, "only {freed} MiB were given back");
    measured(guest, "fragmented")?;
    let (rss, status) = (guest.rss_mib()?, guest.ask("vmstat balloon_inflate", SOON)?);
    let took = guest.inflate_to(mib, SOON)?;
    let inflated = guest.ask("vmstat balloon_inflate", SOON)?.num("balloon_inflate")?;
    assert_eq!(inflated - status.num("balloon_inflate")?, mib * PAGES_PER_MIB);
    measured(guest, &format!("{mib} MiB inflated in {:.1} s", took.as_secs_f64()))?;
    assert!(guest.rss_mib()? + mib * 3 / 4 < rss, "{rss} MiB before, {} after", guest.rss_mib()?);
    guest.ask("scatter 0", SOON)?;
    Ok(())
}

/// MiB in free blocks of 2 MiB and more.
fn huge_free_mib(guest: &mut Guest) -> Result<u64> {
    let blocks = guest.ask("buddyinfo", SOON)?;
    Ok(2 * blocks.num("order9")? + 4 * blocks.num("order10")?)
}

/// Free memory of a guest, in MiB: in blocks of 2 MiB and more, and loose, in smaller ones.
fn huge_and_loose_mib(guest: &mut Guest) -> Result<(u64, u64)> {
    let (free, huge) = (guest.ask("status", SOON)?.num("memfree_kb")? >> 10, huge_free_mib(guest)?);
    Ok((huge, free.saturating_sub(huge)))
}

/// What lies loose in a guest whose free memory is as compact as Linux makes it: the reserve of
/// each zone, lists of the CPU.
const COMPACT_MIB: u64 = 30;

/// Waits until the host's set and the guest's word agree: while a page moves, the new one is in the
/// set and the old one still is, too.
fn settled(guest: &Guest) -> Result<u64> {
    let (pages, _) = eventually(SOON, || {
        let balloon = guest.balloon()?;
        let (actual, pages) = (balloon.actual(), balloon.pages()?);
        Ok(if actual == pages {
            Ok(pages)
        } else {
            Err(format!("{pages} pages in the set, the guest says {actual}"))
        })
    })?;
    Ok(pages)
}

/// Compacts the guest's memory around a balloon that lies in single pages, again and again and with
/// pressure in between: one run of the kernel's ends where its two scanners meet, or where one of
/// them finds nothing at once.
fn compaction(guest: &mut Guest) -> Result<()> {
    let before = measured(guest, "before compaction")?.num("balloon_migrate")?;
    let pages = settled(guest)?;
    let (huge_before, loose_before) = huge_and_loose_mib(guest)?;
    let (start, mut runs) = (Instant::now(), 0);
    let (moved, huge, loose) = loop {
        guest.ask("compact", SOON)?;
        runs += 1;
        let moved = guest.ask("vmstat balloon_migrate", SOON)?.num("balloon_migrate")? - before;
        let (huge, loose) = huge_and_loose_mib(guest)?;
        let compact = loose < COMPACT_MIB || huge > huge_before + 16;
        if (moved > 1000 && compact) || start.elapsed() > Duration::from_secs(40) {
            break (moved, huge, loose);
        }
        guest.ask("fill 40", SOON)?;
        guest.ask("free 40", SOON)?;
    };
    measured(guest, &format!("compacted {runs} times in {:.1} s", start.elapsed().as_secs_f64()))?;
    note(&format!(
        "{moved} pages moved; free in blocks of 2 MiB and more: {huge_before} MiB before, {huge} \
         MiB after; \
         in smaller ones: {loose_before} MiB before, {loose} MiB after"
    ));
    assert!(moved > 200, "only {moved} ballooned pages moved");
    // Where pages were freed in one piece there may be nothing to win.
    assert!(
        loose < COMPACT_MIB || huge > huge_before + 4,
        "{huge_before} MiB before, {huge} MiB after, {loose} MiB loose"
    );
    assert_eq!(settled(guest)?, pages);
    assert_eq!(guest.balloon()?.counter("malformed_requests")?, 0);
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}

/// What compaction has won is of use: a program gets its memory in huge pages. The kernel may take
/// pages from the balloon for it (DEFLATE_ON_OOM), and the host's set follows.
fn huge_pages_under_pressure(guest: &mut Guest) -> Result<()> {
    // Linux turns huge pages off in guests as small as this one.
    for switch in ["enabled", "defrag"] {
        guest.ask(&format!("write /sys/kernel/mm/transparent_hugepage/{switch} madvise"), SOON)?;
    }
    let (pages, free) = (settled(guest)?, huge_free_mib(guest)?);
    let wanted = free.saturating_sub(16);
    let got = guest.ask(&format!("huge {wanted}"), SOON)?;
    let status = measured(guest, "after pressure")?;
    note(&format!(
        "{} of {wanted} MiB in huge pages, {free} were free, after {} ms; {} pages moved in all",
        got.num("huge_mib")?,
        got.num("ms")?,
        status.num("balloon_migrate")?
    ));
    assert!(got.num("huge_mib")? * 4 > free * 3, "{got:?}");
    assert!(settled(guest)? <= pages);
    Ok(())
}

fn moved(env: &Env, mut guest: Guest, args: &[&str]) -> Result<(Guest, Value)> {
    let uri = env.unix_uri("there");
    let mut there = Guest::receive(env, "there", &uri)?;
    let report = migrate(env, &guest.name, &uri, args)?;
    assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
    assert_eq!(report["verify"]["wrong"], 0, "{report:#}");
    assert_eq!(there.ask("verify", SOON)?.num("bad")?, 0);
    Ok((there, report))
}

/// Reported and ballooned memory is not sent, without any hint: round one is no larger than what
/// the guest uses, and what it has free in blocks too small to be reported.
fn migrates_without_hints(env: &Env, mut guest: Guest) -> Result<Guest> {
    nothing_to_report(&guest)?;
    let free = measured(&mut guest, "before migration")?.num("memfree_kb")? >> 10;
    let large = huge_free_mib(&mut guest)?;
    let (pages, resident) = (settled(&guest)?, guest.balloon()?.resident_mib());
    let (mut there, report) = moved(env, guest, &["--hints", "off", "--verify"])?;
    let first = &report["rounds"][0];
    let bytes = first["bytes"].as_u64().unwrap_or(u64::MAX);
    let allowed = 512 - pages / PAGES_PER_MIB - large;
    note(&format!(
        "migrated without hints: round one {} MiB of {allowed}; {free} MiB free, {large} in large \
         blocks, {resident} resident; {first}",
        bytes >> 20
    ));
    assert_eq!(first["ballooned"].as_u64(), Some(pages));
    assert_eq!(first["hinted"], 0);
    assert!(bytes < (allowed + 8) << 20, "{report:#}");
    assert!(bytes < (resident + 8) << 20, "{report:#}");
    measured(&mut there, "there")?;
    assert_eq!(settled(&there)?, pages);
    Ok(there)
}

fn deflates(guest: &mut Guest) -> Result<()> {
    let pages = settled(guest)?;
    let before = guest.ask("vmstat balloon_deflate", SOON)?.num("balloon_deflate")?;
    let took = guest.inflate_to(0, SOON)?;
    let status = measured(guest, &format!("deflated in {:.1} s", took.as_secs_f64()))?;
    assert_eq!(status.num("balloon_deflate")? - before, pages);
    let rss = guest.rss_mib()?;
    guest.ask("fill 200", SOON)?;
    measured(guest, "200 MiB in use")?;
    assert!(
        guest.rss_mib()? > rss + 150,
        "{rss} MiB before, {} with 200 MiB in use",
        guest.rss_mib()?
    );
    guest.ask("free 200", SOON)?;
    Ok(())
}

/// A process wants more than the balloon has left. Returns the answer of `eat`, with the pages in
/// the balloon before and after.
fn memory_hog(guest: &mut Guest) -> Result<(bool, u64, u64)> {
    let took = guest.inflate_to(240, SOON)?;
    let status =
        measured(guest, &format!("240 MiB in the balloon after {:.1} s", took.as_secs_f64()))?;
    let wanted = status.num("memavailable_kb")? / 1024 + 40;
    let before = guest.balloon()?.pages()?;
    let oom = status.num("oom_kill")?;
    guest.console()?.send(&format!("eat {wanted}"))?;
    let eaten = guest.wait_for("eat", SOON)?;
    let killed = eaten.num("signal")? != 0;
    let status = measured(
        guest,
        &format!(
            "a process wanted {wanted} MiB, got {} in {} ms",
            eaten.num("mib")?,
            eaten.num("ms")?
        ),
    )?;
    assert_eq!(status.num("oom_kill")? - oom, u64::from(killed));
    assert_eq!(eaten.num("mib")? == wanted, !killed);
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    Ok((killed, before, settled(guest)?))
}

/// Each mechanism, also after a migration.
fn all_mechanisms(kernel: &str, tags: &[&str]) -> Result<()> {
    let scratch = Scratch::new("balloon")?;
    let env = scratch.env(kernel)?;
    let mut guest = boot(&env, "", "all")?;
    statistics(&mut guest, tags)?;
    reporting(&mut guest)?;
    reporting_order(&mut guest)?;
    inflate_into_fragments(&mut guest, 100)?;
    compaction(&mut guest)?;
    huge_pages_under_pressure(&mut guest)?;
    let mut guest = migrates_without_hints(&env, guest)?;
    // The buffer that the source held came along.
    statistics(&mut guest, tags)?;
    deflates(&mut guest)?;
    inflate_into_fragments(&mut guest, 80)?;
    compaction(&mut guest)?;
    let (killed, before, after) = memory_hog(&mut guest)?;
    assert!(!killed, "killed in spite of DEFLATE_ON_OOM");
    assert!(after < before, "the balloon did not shrink");
    Ok(())
}

#[test]
#[ignore = "the other kernel's is always run: --soak"]
fn balloon_on_cloud_6_1() -> Result<()> {
    all_mechanisms("CLOUD_6_1", &TAGS)
}

#[test]
fn balloon_on_cloud_6_12() -> Result<()> {
    all_mechanisms("CLOUD_6_12", &[&TAGS[..], &TAGS_6_12].concat())
}

/// Free memory of such a guest holds a value that a discarded page would not read as. It is
/// migrated once on the way.
fn poisoned_memory_stays(guest: &mut Guest) -> Result<()> {
    nothing_to_report(guest)?;
    guest.ask("fill 100", SOON)?;
    let (used, before) = (guest.rss_mib()?, guest.balloon()?.counter("reported_bytes")?);
    guest.ask("free 100", SOON)?;
    let (balloon, took) = eventually(SOON, || {
        let balloon = guest.balloon()?;
        let reported = balloon.counter("reported_bytes")? - before;
        Ok(if reported >= 80 << 20 {
            Ok(balloon)
        } else {
            Err(format!("{reported} bytes reported"))
        })
    })?;
    measured(guest, &format!("100 MiB freed and reported in {:.1} s", took.as_secs_f64()))?;
    assert_eq!(balloon.counter("withheld_bytes")?, balloon.counter("reported_bytes")?);
    assert!(
        guest.rss_mib()? + 8 > used,
        "{used} MiB in use, {} after the report",
        guest.rss_mib()?
    );
    Ok(())
}

fn poisoned_and_not_deflating(kernel: &str) -> Result<()> {
    let scratch = Scratch::new("balloon")?;
    let env = scratch.env(kernel)?;
    let mut guest = boot(&env, "page_poison=1", "hinting,reporting,stats,page-poison")?;
    let features = guest.balloon()?.0["features"].to_string();
    assert!(features.contains("page_poison") && features.contains("page_reporting"), "{features}");
    assert!(!features.contains("deflate_on_oom"), "{features}");
    poisoned_memory_stays(&mut guest)?;
    assert_eq!(guest.balloon()?.counter("discarded_bytes")?, 0);

    let (mut guest, _) = moved(&env, guest, &["--hints", "on", "--verify"])?;
    poisoned_memory_stays(&mut guest)?;
    assert_eq!(guest.balloon()?.counter("discarded_bytes")?, 0);

    // The balloon may be given to the host all the same: the guest poisons its pages anew when they
    // come back.
    inflate_into_fragments(&mut guest, 60)?;
    // The control of DEFLATE_ON_OOM, which this guest was not offered.
    let (killed, before, after) = memory_hog(&mut guest)?;
    assert!(
        killed && before == after,
        "killed: {killed}; {before} pages in the balloon, then {after}"
    );
    guest.inflate_to(0, SOON)?;
    // Everything that was reported is used again; Linux looks at the poison of each page.
    guest.ask("fill 250", SOON)?;
    guest.ask("free 250", SOON)?;
    assert_eq!(guest.ask("dmesg Linux version", SOON)?.num("lines")?, 1);
    let complaints = guest.ask("dmesg pagealloc:", SOON)?;
    assert_eq!(complaints.num("lines")?, 0, "{complaints:?}");
    measured(&mut guest, "in the end")?;
    Ok(())
}

#[test]
#[ignore = "the other kernel's is always run: --soak"]
fn balloon_poisoned_on_generic_6_1() -> Result<()> {
    poisoned_and_not_deflating("GENERIC_6_1")
}

#[test]
fn balloon_poisoned_on_generic_6_12() -> Result<()> {
    poisoned_and_not_deflating("GENERIC_6_12")
}

/// A guest that zeroes what it frees says that its poison is zero, as which discarded pages read.
/// And what this kernel, older than the other, sends of statistics.
#[test]
fn balloon_zeroed_on_cloud_6_1() -> Result<()> {
    let scratch = Scratch::new("balloon")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest = boot(&env, "init_on_free=1", "all")?;
    let features = guest.balloon()?.0["features"].to_string();
    assert!(features.contains("page_poison"), "{features}");
    statistics(&mut guest, &TAGS)?;
    reporting(&mut guest)?;
    let balloon = guest.balloon()?;
    assert_eq!(balloon.counter("withheld_bytes")?, 0);
    assert_eq!(balloon.counter("discarded_bytes")?, balloon.counter("reported_bytes")?);
    Ok(())
}
