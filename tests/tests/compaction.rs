//! What the host's set of ballooned pages is in the middle of a compaction.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use wherry_tests::{Guest, GuestOptions, Result, Scratch, eventually, note};

const SOON: Duration = Duration::from_secs(60);

/// Linux moves a ballooned page by inflating the new one, then deflating the old one, one page at a time: between the two the host's set has
/// one page more than the guest says, and never another difference. The guest is paused for each look, so that both figures are of
/// one moment.
#[test]
fn the_set_is_at_most_one_page_ahead_while_ballooned_pages_move() -> Result<()> {
    let scratch = Scratch::new("compaction")?;
    let env = scratch.env("CLOUD_6_1")?;
    let options = GuestOptions {
        memory: "256MiB".into(),
        append: "wherry.check=16 wherry.check_rate=200".into(),
        ..GuestOptions::default()
    };
    let mut guest = Guest::run(&env, "moves", &options)?;
    guest.wait_for("work done", Duration::from_secs(180))?;
    // Into single pages, with what is between them free afterwards.
    guest.ask("scatter 100", SOON)?;
    guest.inflate_to(40, SOON)?;
    guest.ask("scatter 0", SOON)?;
    let before = guest.ask("vmstat balloon_migrate", SOON)?.num("balloon_migrate")?;
    let (mut seen, start) = (BTreeMap::new(), Instant::now());
    while start.elapsed() < Duration::from_secs(20) {
        // Compaction that has found nothing at once starts at the same place again, unless memory has changed.
        guest.console()?.send("fill 8")?;
        guest.console()?.send("free 8")?;
        guest.console()?.send("compact")?;
        for _ in 0..4 {
            assert!(env.command(&["pause", "moves", "--quiet"]).status()?.success());
            let balloon = guest.balloon()?;
            *seen.entry(balloon.pages()? as i64 - balloon.actual() as i64).or_insert(0) += 1;
            assert!(env.command(&["resume", "moves", "--quiet"]).status()?.success());
        }
    }
    guest.ask("echo done", SOON)?;
    let moved = guest.ask("vmstat balloon_migrate", SOON)?.num("balloon_migrate")? - before;
    note(&format!(
        "{moved} pages moved; pages in the set more than the guest says: {seen:?} (difference: times)"
    ));
    assert!(moved > 100, "only {moved} ballooned pages moved");
    assert!(seen.keys().all(|ahead| (0..=1).contains(ahead)), "{seen:?}");
    eventually(Duration::from_secs(10), || {
        let balloon = guest.balloon()?;
        let (set, actual) = (balloon.pages()?, balloon.actual());
        Ok(if set == actual {
            Ok(())
        } else {
            Err(format!("{set} pages in the set, the guest says {actual}"))
        })
    })?;
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}
