//! `--hints auto` on stock Linux: which guest is asked, which is not, and when asking ends early.
//! Counts and decisions, never times.

use anyhow::Context;
use serde_json::Value;
use wherry_tests::{BOOT, Env, Guest, GuestOptions, Result, SOON, Scratch, migrate};

/// Pages of a block that Linux hints.
const BLOCK: u64 = 1024;
/// Hints in a row that clear nothing before the engine asks no more.
const IDLE_HINTS: u64 = 16;

/// Boots a guest, lets it work, migrates it with `--hints auto` and lets it check its memory.
/// Slowly, so that hints are in time even on a slow machine. Returns the report, and the pages that
/// the guest had free before.
fn auto(env: &Env, memory: &str, append: &str, bandwidth: &str) -> Result<(Value, u64)> {
    let append = format!("wherry.check=16 {append}");
    // No reporting: it takes what was freed away before anybody can hint it, sometimes.
    let args = vec!["--balloon-features".into(), "hinting,stats".into()];
    let options = GuestOptions { memory: memory.into(), append, args, ..GuestOptions::default() };
    let mut guest = Guest::run(env, "start", &options)?;
    guest.wait_for("work done", BOOT)?;
    let free = guest.ask("status", SOON)?.num("memfree_kb")? / 4;
    let uri = env.unix_uri("there");
    let mut destination = Guest::receive(env, "there", &uri)?;
    let report = migrate(env, "start", &uri, &["--hints", "auto", "--bandwidth", bandwidth])
        .with_context(|| format!("{}\n{}", guest.last_words(), destination.last_words()))?;
    assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
    assert_eq!(destination.ask("verify", SOON)?.num("bad")?, 0);
    check(&report);
    Ok((report, free))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// What must hold of the figures of every migration.
fn check(report: &Value) {
    let hinting = &report["hinting"];
    let rounds = report["rounds"].as_array().expect("rounds");
    for key in
        ["hint_bytes", "hinted", "hinted_too_late", "sent_then_hinted", "overridden", "saved_bytes"]
    {
        let sum: u64 = rounds.iter().map(|round| number(round, key)).sum();
        assert_eq!(number(hinting, key), sum, "{key}: {report:#}");
    }
    for round in rounds {
        assert_eq!(
            number(round, "hint_bytes") % (BLOCK * 4096),
            0,
            "Linux hints whole blocks: {round}"
        );
        let skipped = number(round, "hinted") - number(round, "overridden");
        assert_eq!(number(round, "saved_bytes"), skipped * 4096, "{round}");
        let late = number(round, "hinted_too_late");
        assert!(late >= number(round, "sent_then_hinted"), "{round}");
        let asked = !round["hint_mode"].is_null();
        assert!(asked || number(round, "hint_bytes") == 0, "{round}");
        assert_eq!(
            number(round, "hint_bytes") > 0,
            !round["time_to_first_hint_ms"].is_null(),
            "{round}"
        );
    }
}

#[test]
fn auto_does_not_ask_an_idle_guest() -> Result<()> {
    let scratch = Scratch::new("auto-idle")?;
    let (report, _) = auto(&scratch.env("CLOUD_6_1")?, "2GiB", "", "300Mbit")?;
    assert_eq!(report["hints"], "off: little populated memory is free", "{report:#}");
    let hinting = &report["hinting"];
    for key in ["hint_bytes", "hinted", "hinted_too_late", "overridden", "saved_bytes"] {
        assert_eq!(number(hinting, key), 0, "{report:#}");
    }
    Ok(())
}

/// 300 MiB written and freed: nearly all of it, less what lies on the CPUs' own lists, is not sent,
/// and hardly any of it was sent before its hint.
fn asks(kernel: &str, name: &str, append: &str, mode: &str) -> Result<()> {
    const FREED: u64 = (300 << 20) / 4096;
    let scratch = Scratch::new(name)?;
    let work = format!("{append} wherry.work=tmpfs:300,free:300");
    let (report, _) = auto(&scratch.env(kernel)?, "512MiB", &work, "300Mbit")?;
    assert_eq!(report["rounds"][0]["hint_mode"], mode, "{report:#}");
    assert!(report["hints"].as_str().is_some_and(|why| why.starts_with("on")), "{report:#}");
    // What a zeroing guest has zeroed and not hinted yet may be read as zero: not sent either.
    let first = &report["rounds"][0];
    let skipped = number(first, "hinted") + number(first, "zero");
    assert!(skipped > FREED * 9 / 10, "{skipped} of {FREED} pages: {report:#}");
    assert!(number(first, "hinted") > FREED / 2, "{report:#}");
    for round in report["rounds"].as_array().into_iter().flatten() {
        let sent = number(round, "sent_then_hinted");
        assert!(
            sent * 50 < number(&report, "nr_pages"),
            "{sent} pages were sent and then hinted: {report:#}"
        );
    }
    Ok(())
}

#[test]
fn auto_asks_a_guest_that_zeroes_and_has_freed_much() -> Result<()> {
    asks("CLOUD_6_1", "auto-zeroing", "", "checked_zero")
}

#[test]
fn auto_asks_a_guest_that_does_not_zero_and_has_freed_much() -> Result<()> {
    asks("CLOUD_6_12", "auto-plain", "init_on_alloc=0", "protected")
}

/// 100 MiB of 4 GiB were written and freed: worth asking for, but nearly all that the guest then
/// names was never touched. It must not be made to populate all of it. Sent so slowly that a guest
/// which zeroes 10 MB a second gets to what was never touched before the round is over.
#[test]
fn auto_stops_asking_when_what_arrives_is_holes() -> Result<()> {
    let scratch = Scratch::new("auto-stop")?;
    let env = scratch.env("CLOUD_6_1")?;
    let (report, free) = auto(&env, "4GiB", "wherry.work=tmpfs:100,free:100", "60Mbit")?;
    assert_eq!(
        report["hints"], "on, until only memory that needs no sending was hinted",
        "{report:#}"
    );
    let named = number(&report["hinting"], "hint_bytes") / 4096;
    assert!(named >= IDLE_HINTS * BLOCK, "{named} pages were enough to judge by: {report:#}");
    assert!(
        named < free / 2,
        "{named} of {free} free pages were named before it stopped: {report:#}"
    );
    Ok(())
}
