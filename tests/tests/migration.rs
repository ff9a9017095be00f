//! Live migration of stock Linux: there and back, with hints and without, and what happens when it
//! breaks.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use wherry_tests::{
    BOOT, Env, Guest, GuestOptions, MigrateError, Result, SOON, Scratch, eventually, migrate, note,
};

/// Migrates `guest` to a new VMM called `name` and lets the guest check all of its memory there.
fn hop(env: &Env, guest: &mut Guest, name: &str, args: &[&str]) -> Result<(Guest, Value)> {
    let uri = env.unix_uri(name);
    let mut destination = Guest::receive(env, name, &uri)?;
    let report = migrate(env, &guest.name, &uri, args)
        .with_context(|| format!("{}\n{}", guest.last_words(), destination.last_words()))?;
    check_accounting(&report);
    assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
    let verdict = destination.ask("verify", SOON)?;
    assert_eq!(verdict.num("bad")?, 0);
    assert_eq!(destination.ask("status", SOON)?.num("bad")?, 0);
    Ok((destination, report))
}

fn check_accounting(report: &Value) {
    let pages = report["nr_pages"].as_u64();
    if let Some(verify) = report["verify"].as_object() {
        let sum =
            ["equal", "free", "wrong"].iter().filter_map(|class| verify[*class].as_u64()).sum();
        assert_eq!(Some(sum), pages, "{verify:?}");
    }
    for round in report["rounds"].as_array().into_iter().flatten() {
        let sum = ["sent", "zero", "hole", "hinted", "ballooned", "clean"]
            .iter()
            .map(|class| round[*class].as_u64().unwrap_or_else(|| panic!("no {class} in {round}")))
            .sum();
        assert_eq!(Some(sum), pages, "{round}");
    }
}

fn total(report: &Value, class: &str) -> u64 {
    report["rounds"].as_array().into_iter().flatten().filter_map(|r| r[class].as_u64()).sum()
}

fn start(env: &Env, cpus: u32, memory: &str, work: &str) -> Result<Guest> {
    start_with(env, cpus, memory, work, &[])
}

/// Reporting takes what was freed away before anybody can hint it: on a busy machine half of it.
fn start_without_reporting(env: &Env, memory: &str, work: &str) -> Result<Guest> {
    start_with(env, 1, memory, work, &["--balloon-features", "hinting,stats"])
}

fn start_with(env: &Env, cpus: u32, memory: &str, work: &str, args: &[&str]) -> Result<Guest> {
    let options = GuestOptions {
        cpus,
        memory: memory.into(),
        append: format!("wherry.check=64 wherry.check_rate=2000 {work}"),
        args: args.iter().map(|&arg| arg.into()).collect(),
    };
    let mut guest = Guest::run(env, "start", &options)?;
    guest.wait_for("work done", BOOT)?;
    Ok(guest)
}

/// Every combination of what is taken by turns, or as often as a soak may take.
#[test]
fn there_and_back_under_a_writer() -> Result<()> {
    let turns = if std::env::var_os("WHERRY_SOAK").is_some() { 200 } else { 8 };
    there_and_back("pingpong", "384MiB", "wherry.work=fill:80,free:80+writer:16,8", turns)
}

/// For hosts that are too slow for more: one of those is in the soak's list.
#[test]
#[ignore = "others take more turns"]
fn twice_there_and_back_with_little_memory() -> Result<()> {
    there_and_back("little", "256MiB", "wherry.work=fill:40,free:40+writer:4,1", 4)
}

/// Moves a guest with two vCPUs so often, with everything on by turns.
fn there_and_back(name: &str, memory: &str, work: &str, turns: usize) -> Result<()> {
    let scratch = Scratch::new(name)?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest = start(&env, 2, memory, work)?;
    for turn in 0..turns {
        let hints = ["on", "off", "auto"][turn % 3];
        // Two opinions: the guest's own check at every turn, and both sides' digests at every
        // other.
        let verify = turn.is_multiple_of(2);
        let compression = if turn % 4 < 2 { "lz4" } else { "none" };
        let streams = if turn % 8 < 4 { "1" } else { "3" };
        let mut args = vec!["--hints", hints, "--compression", compression, "--streams", streams];
        args.extend(verify.then_some("--verify"));
        let (next, report) = hop(&env, &mut guest, &format!("hop{turn}"), &args)?;
        assert_eq!(report["verify"]["wrong"].as_u64(), verify.then_some(0), "{report:#}");
        let bytes: u64 = report["rounds"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r["bytes"].as_u64())
            .sum();
        let memory = total(&report, "sent") * 4096;
        assert_eq!(bytes < memory, compression == "lz4", "{memory} bytes of memory: {report:#}");
        guest = next;
        if turns != 20 {
            // A long run says how far it is.
            note(&format!(
                "hop {turn}: {} ms, hints {hints}: {} pages hinted, verify {}",
                report["total_ms"],
                total(&report, "hinted"),
                report["verify"]
            ));
        }
    }
    Ok(())
}

/// The lab has AVX with QEMU 10 (docs/lab.md), a real host nearly always.
#[test]
fn values_in_avx_registers_live_through_ten_moves() -> Result<()> {
    let scratch = Scratch::new("avx")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest = start(&env, 1, "256MiB", "")?;
    if guest.ask("avx", SOON)?.num("has")? == 0 {
        note("not run: this host has no AVX for guests");
        return Ok(());
    }
    let compared = |guest: &mut Guest| {
        let said = guest.ask("avx", SOON)?;
        assert_eq!(said.num("bad")?, 0, "{said:?}");
        said.num("rounds")
    };
    for turn in 0..10 {
        let before = compared(&mut guest)?;
        let more = || {
            let now = compared(&mut guest)?;
            Ok(if now > before + 1 { Ok(()) } else { Err(format!("{now} rounds")) })
        };
        eventually(SOON, more)?;
        guest = hop(&env, &mut guest, &format!("hop{turn}"), &[])?.0;
    }
    let before = compared(&mut guest)?;
    note(&format!("{before} times compared"));
    Ok(())
}

#[test]
fn hints_skip_what_was_freed_and_memfree_comes_back() -> Result<()> {
    let scratch = Scratch::new("hints")?;
    let env = scratch.env("CLOUD_6_1")?;
    let work = "init_on_alloc=0 wherry.work=fill:600,free:600";
    let mut guest = start_without_reporting(&env, "1GiB", work)?;
    let free = guest.ask("status", SOON)?.num("memfree_kb")?;
    let (mut guest, report) =
        hop(&env, &mut guest, "there", &["--hints", "on", "--bandwidth", "1Gbit"])?;
    assert!(
        total(&report, "hinted") > 100_000,
        "only {} pages were skipped: {report:#}",
        total(&report, "hinted")
    );
    assert!(report["total_bytes"].as_u64() < Some(300 << 20), "{report:#}");
    memfree_returns(&mut guest, free)
}

/// A page cache is in use, however easily the kernel could do without it: it is sent, and arrives
/// whole. Once dropped it is free like any other memory.
#[test]
fn a_page_cache_is_moved_and_what_was_dropped_is_skipped() -> Result<()> {
    const CACHED: u64 = (200 << 20) / 4096;
    let scratch = Scratch::new("cache")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest = start(&env, 1, "512MiB", "init_on_alloc=0 wherry.work=cache:200")?;
    let (mut guest, report) = hop(&env, &mut guest, "full", &["--hints", "on"])?;
    let sent = total(&report, "sent");
    // Looks what became of it, and fills it again.
    let found = guest.ask("cache 200", SOON)?;
    let [intact, dropped, wrong] = ["intact", "dropped", "wrong"].map(|key| found.num(key));
    // While its hints are out a guest has no free memory, and may drop some of its cache for what
    // it needs just then.
    let (intact, dropped) = (intact?, dropped?);
    assert_eq!((intact + dropped, wrong?), (CACHED, 0));
    assert!(intact > CACHED * 9 / 10, "{dropped} pages were dropped: {report:#}");
    assert!(sent > intact, "{intact} pages are there and {sent} were sent: {report:#}");
    guest.ask("drop", SOON)?;
    let (_, report) = hop(&env, &mut guest, "empty", &["--hints", "on"])?;
    let less = sent.saturating_sub(total(&report, "sent"));
    assert!(less > CACHED * 9 / 10, "only {less} pages less: {report:#}");
    Ok(())
}

#[test]
fn five_gib_on_two_cpus() -> Result<()> {
    let scratch = Scratch::new("large")?;
    let env = scratch.env("CLOUD_6_12")?;
    let mut guest = start(&env, 2, "5GiB", "wherry.work=fill:200,free:100")?;
    let (mut guest, report) = hop(&env, &mut guest, "there", &["--hints", "auto"])?;
    assert!(report["total_bytes"].as_u64() < Some(600 << 20), "holes were sent: {report:#}");
    hop(&env, &mut guest, "back", &["--hints", "off"])?;
    Ok(())
}

fn memfree_returns(guest: &mut Guest, before_kb: u64) -> Result<()> {
    let mut now = 0;
    for _ in 0..50 {
        now = guest.ask("status", SOON)?.num("memfree_kb")?;
        if now + 16 * 1024 > before_kb {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!(
        "the guest had {before_kb} KiB free and has {now} KiB: it did not get its hinted memory \
         back"
    );
}

#[test]
fn after_failure_and_cancel_the_guest_goes_on_and_the_next_attempt_works() -> Result<()> {
    let scratch = Scratch::new("retry")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest = start(&env, 1, "1GiB", "wherry.work=fill:400,free:300")?;
    let free = guest.ask("status", SOON)?.num("memfree_kb")?;

    // Cancelled in round one, while hints are out.
    let uri = env.unix_uri("cancelled");
    let mut lost = Guest::receive(&env, "cancelled", &uri)?;
    let migration = std::thread::spawn({
        let (env, uri) = (env.clone(), uri.clone());
        move || migrate(&env, "start", &uri, &["--hints", "on", "--bandwidth", "20Mbit"])
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(env.command(&["cancel", "start"]).status()?.success());
    let error = migration.join().expect("migrate thread").expect_err("cancelled");
    assert_eq!(error.downcast_ref::<MigrateError>().map(|e| e.code), Some(5), "{error:#}");
    assert!(!lost.wait_exit(SOON)?.success(), "a receiver without a guest must not succeed");
    assert_eq!(guest.info()?["state"], "running");
    memfree_returns(&mut guest, free)?;

    // The receiver dies in round one.
    let uri = env.unix_uri("killed");
    let mut lost = Guest::receive(&env, "killed", &uri)?;
    let migration = std::thread::spawn({
        let (env, uri) = (env.clone(), uri.clone());
        move || migrate(&env, "start", &uri, &["--hints", "on", "--bandwidth", "20Mbit"])
    });
    std::thread::sleep(Duration::from_secs(2));
    lost.kill();
    let error = migration.join().expect("migrate thread").expect_err("receiver killed");
    assert_eq!(error.downcast_ref::<MigrateError>().map(|e| e.code), Some(5), "{error:#}");
    memfree_returns(&mut guest, free)?;

    let (mut guest, _) = hop(&env, &mut guest, "there", &["--hints", "on"])?;
    memfree_returns(&mut guest, free)
}

#[test]
fn a_paused_guest_arrives_paused() -> Result<()> {
    let scratch = Scratch::new("paused")?;
    let env = scratch.env("CLOUD_6_1")?;
    let guest = start(&env, 1, "512MiB", "")?;
    assert!(env.command(&["pause", "start"]).status()?.success());
    let uri = env.unix_uri("there");
    let mut destination = Guest::receive(&env, "there", &uri)?;
    migrate(&env, "start", &uri, &[])?;
    drop(guest);
    assert_eq!(destination.info()?["state"], "paused");
    assert!(env.command(&["resume", "there"]).status()?.success());
    assert_eq!(destination.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}

#[test]
fn memory_beside_guest_ram_stays_small() -> Result<()> {
    let scratch = Scratch::new("rss")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest = start(&env, 1, "5GiB", "wherry.work=fill:200,free:200")?;
    let beside = |g: &Guest| -> Result<u64> { Ok(g.proc_kib("RssAnon")? + g.proc_kib("RssFile")?) };
    let before = beside(&guest)?;
    let uri = env.unix_uri("there");
    let destination = Guest::receive(&env, "there", &uri)?;
    let migration = std::thread::spawn({
        let (env, uri) = (env.clone(), uri.clone());
        move || migrate(&env, "start", &uri, &["--hints", "on", "--bandwidth", "100Mbit"])
    });
    let mut during = 0;
    while !migration.is_finished() {
        during = during.max(beside(&guest).unwrap_or(0)).max(beside(&destination)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    if let Err(e) = migration.join().expect("migrate thread") {
        let said = guest.ask("status", SOON);
        panic!("{e}; {:?}; {}; {said:?}", guest.info(), guest.log());
    }
    guest.wait_exit(SOON)?;
    println!("beside guest RAM: {before} KiB before, at most {during} KiB during migration");
    assert!(before.max(during) <= 16 * 1024, "{before} KiB before, {during} KiB during migration");
    Ok(())
}
