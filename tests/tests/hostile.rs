//! Bare-metal guests whose balloon driver breaks every rule, migrated while they do.
//!
//! The guest (`guest-kernel/src/bin/wherry-hostile`) knows of each of its pages whether it ever
//! gave the host leave to drop it. What is asserted of every attack: the VMM neither dies nor
//! hangs; the migration succeeds, or fails with the guest going on at the source; every honest page
//! is right on arrival, by the guest's own check and by both sides' digests; a well-behaved guest
//! beside it, in its own VMM, notices nothing.
//!
//! They run in the lab, and on a KVM that emulates kernel code in software. `WHERRY_SEEDS` is the
//! number of seeds tried.

#[path = "hostile/confined.rs"]
mod confined;
#[path = "hostile/logs.rs"]
mod logs;
#[path = "hostile/networks.rs"]
mod networks;
#[path = "hostile/over_ssh.rs"]
mod over_ssh;
#[path = "hostile/owner.rs"]
mod owner;
#[path = "hostile/reboots.rs"]
mod reboots;
#[path = "hostile/releases.rs"]
mod releases;
#[path = "hostile/strangers.rs"]
mod strangers;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use wherry_tests::{Env, Guest, GuestOptions, MigrateError, Result, SOON, Scratch, migrate};

/// More than a VMM needs beside guest RAM, whatever the guest sends: KiB.
const MAX_PRIVATE_KIB: u64 = 48 * 1024;
/// Each round lasts long enough for hints to matter, and after some the guest is moved whatever is
/// left.
const THROTTLED: [&str; 7] =
    ["--hints", "on", "--verify", "--bandwidth", "400Mbit", "--max-rounds", "4"];

/// The first seeds, or so many as are asked for.
fn seeds() -> impl Iterator<Item = u64> {
    let nr = std::env::var("WHERRY_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    1..=nr
}

fn start(env: &Env, name: &str, scenario: &str, seed: u64) -> Result<Guest> {
    let options = GuestOptions {
        // So much only for attacks around the hole for devices.
        memory: if scenario == "edges" { "3136MiB" } else { "128MiB" }.into(),
        append: format!("hostile={scenario} seed={seed}"),
        cpus: if ["pair", "rivals"].contains(&scenario) { 2 } else { 1 },
        // A triple fault is a lost page table, not a reboot.
        args: vec!["--no-reboot".into()],
    };
    let mut guest = Guest::run(env, name, &options)?;
    guest.wait_for("ready", SOON)?;
    Ok(guest)
}

/// The migration's outcome; a panic if it has none.
fn migrate_in_time(env: &Env, name: &str, uri: &str, args: &[&str]) -> Result<Value> {
    let (send, outcome) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || send.send(migrate(env, name, uri, args)));
        match outcome.recv_timeout(SOON) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                // Lets the thread end, and the test with it.
                let _ = env.command(&["kill", name]).status();
                panic!("the migration of {name} hangs")
            }
            Err(e) => Err(e.into()),
        }
    })
}

/// Migrates `guest` in the middle of what it does; returns it where it is then, and the report if
/// it was moved.
fn hop(env: &Env, guest: Guest, name: &str, args: &[&str]) -> Result<(Guest, Option<Value>)> {
    hop_between((env, env), guest, name, args)
}

/// The same, from one build of Wherry to another.
fn hop_between(
    (from, to): (&Env, &Env),
    mut guest: Guest,
    name: &str,
    args: &[&str],
) -> Result<(Guest, Option<Value>)> {
    let uri = to.unix_uri(name);
    let mut destination = Guest::receive(to, name, &uri)?;
    let report = match migrate_in_time(from, &guest.name, &uri, args) {
        Ok(report) => Some(report),
        Err(e) => {
            let failed = e.downcast::<MigrateError>()?;
            assert_eq!(failed.code, 5, "{failed}");
            println!("not moved: {failed}");
            None
        }
    };
    match &report {
        Some(report) => {
            check_report(report);
            assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
            guest = destination;
        }
        None => {
            assert!(
                !destination.wait_exit(SOON)?.success(),
                "a receiver without a guest must not succeed"
            )
        }
    }
    intact(&mut guest)?;
    Ok((guest, report))
}

fn check_report(report: &Value) {
    assert_eq!(report["verify"]["wrong"], 0, "{report:#}");
    let sum = |of: &Value, classes: &[&str]| {
        classes.iter().filter_map(|class| of[*class].as_u64()).sum::<u64>()
    };
    let pages = report["nr_pages"].as_u64().unwrap_or_default();
    assert_eq!(sum(&report["verify"], &["equal", "free", "wrong"]), pages, "{report:#}");
    for round in report["rounds"].as_array().into_iter().flatten() {
        let classes = ["sent", "zero", "hole", "hinted", "ballooned", "clean"];
        assert_eq!(sum(round, &classes), pages, "{round}");
    }
}

/// All of the guest's pages are right, it makes progress, and its VMM answers and has not grown.
fn intact(guest: &mut Guest) -> Result<()> {
    let before = guest.ask("status", SOON)?.num("steps")?;
    let verdict = guest.ask("verify", SOON)?;
    assert_eq!(verdict.num("bad")?, 0);
    // Even pages of the mixed zone are always honest.
    assert!(verdict.num("pages")? >= 2048);
    assert!(guest.ask("status", SOON)?.num("steps")? > before, "the guest stands still");
    assert_eq!(guest.info()?["state"], "running");
    let private = guest.proc_kib("RssAnon")?;
    assert!(private < MAX_PRIVATE_KIB, "the VMM of {} takes {private} KiB", guest.name);
    Ok(())
}

/// What hints achieved in all rounds.
fn hinted(report: &Value) -> u64 {
    report["rounds"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|round| round["hinted"].as_u64())
        .sum()
}

/// Migrates a guest with this scenario, beside an honest one. With `effective`, hints must have had
/// an effect, since otherwise nothing was attacked.
fn attack(scenario: &str, effective: bool) -> Result<()> {
    attack_with(scenario, &THROTTLED, effective)
}

fn attack_with(scenario: &str, args: &[&str], effective: bool) -> Result<()> {
    let scratch = Scratch::new(scenario)?;
    let env = scratch.env("HOSTILE")?;
    let mut neighbour = start(&env, "neighbour", "honest", 1)?;
    for seed in seeds() {
        let run = || -> Result<()> {
            let guest = start(&env, "hostile", scenario, seed)?;
            let (mut guest, report) = hop(&env, guest, "arrived", args)?;
            let report = report.context("the guest kept itself from being moved")?;
            let status = guest.ask("status", SOON)?;
            println!("{scenario} seed {seed}: {} pages hinted, {:?}", hinted(&report), status.0);
            if effective {
                assert!(hinted(&report) > 0 && status.num("open_steps")? > 0, "{report:#}");
            }
            Ok(())
        };
        run().with_context(|| format!("{scenario}, seed {seed}"))?;
    }
    intact(&mut neighbour)
}

#[test]
fn a_well_behaved_driver() -> Result<()> {
    attack("honest", true)
}

#[test]
fn hinted_pages_taken_back_and_written_before_the_host_has_seen_the_hint() -> Result<()> {
    attack("takeback", true)
}

#[test]
fn zeroed_pages_hinted_and_written_a_moment_later() -> Result<()> {
    attack("takezeroed", true)
}

#[test]
fn a_driver_that_zeroes_at_first_and_then_does_not() -> Result<()> {
    attack("fickle", true)
}

#[test]
fn hints_of_pages_in_use() -> Result<()> {
    attack("inuse", true)
}

#[test]
fn hints_of_rings_page_tables_and_program() -> Result<()> {
    attack("tables", true)
}

#[test]
fn reports_and_page_numbers_of_pages_in_use() -> Result<()> {
    attack("discards", true)
}

#[test]
fn hints_of_everything_after_stop_and_done() -> Result<()> {
    attack("afterstop", false)
}

#[test]
fn stale_replayed_and_invented_ids() -> Result<()> {
    attack("ids", false)
}

#[test]
fn hints_of_every_shape() -> Result<()> {
    attack("shapes", true)
}

#[test]
fn looped_and_broken_chains() -> Result<()> {
    attack("chains", false)
}

#[test]
fn writes_all_over_config_space() -> Result<()> {
    attack("config", true)
}

#[test]
fn resets_in_the_middle() -> Result<()> {
    attack("reset", false)
}

#[test]
fn garbage_in_every_register() -> Result<()> {
    attack("garbage", false)
}

#[test]
fn hints_reports_and_page_numbers_around_the_hole() -> Result<()> {
    attack("edges", true)
}

#[test]
fn one_vcpu_hints_what_the_other_writes() -> Result<()> {
    attack("pair", true)
}

#[test]
fn one_vcpu_hints_and_replays_while_the_other_resets() -> Result<()> {
    attack("rivals", false)
}

/// As [`THROTTLED`], but whether to ask for hints is found out.
const AUTO: [&str; 7] =
    ["--hints", "auto", "--verify", "--bandwidth", "400Mbit", "--max-rounds", "4"];

#[test]
fn hints_auto_and_a_guest_that_calls_all_memory_free() -> Result<()> {
    attack_with("boast", &AUTO, true)
}

#[test]
fn hints_auto_and_impossible_statistics() -> Result<()> {
    attack_with("stats", &AUTO, false)
}

#[test]
fn hints_auto_in_a_storm() -> Result<()> {
    attack_with("storm", &AUTO, false)
}

#[test]
fn a_storm_of_everything() -> Result<()> {
    attack("storm", false)
}

#[test]
fn three_hops_in_a_storm() -> Result<()> {
    let scratch = Scratch::new("hops")?;
    let env = scratch.env("HOSTILE")?;
    let mut guest = start(&env, "hop", "storm", 1)?;
    for name in ["hop1", "hop2", "hop3"] {
        let (next, report) = hop(&env, guest, name, &THROTTLED)?;
        report.context("the guest kept itself from being moved")?;
        guest = next;
    }
    Ok(())
}

#[test]
fn a_storm_goes_on_at_the_source_after_a_cancel_and_can_then_be_moved() -> Result<()> {
    let scratch = Scratch::new("cancel")?;
    let env = scratch.env("HOSTILE")?;
    let guest = start(&env, "cancelled", "storm", 2)?;
    let cancel = std::thread::spawn({
        let env = env.clone();
        move || -> Result<bool> {
            // In round one: at this speed it takes 15 seconds.
            std::thread::sleep(Duration::from_secs(2));
            Ok(env.command(&["cancel", "cancelled"]).output()?.status.success())
        }
    });
    let (guest, report) = hop(&env, guest, "nowhere", &["--hints", "on", "--bandwidth", "20Mbit"])?;
    assert!(cancel.join().expect("cancelling thread")?);
    assert!(report.is_none(), "it was cancelled");
    let (_guest, report) = hop(&env, guest, "there", &THROTTLED)?;
    report.context("the guest kept itself from being moved")?;
    Ok(())
}

#[test]
fn the_guest_notices_a_page_that_is_wrong() -> Result<()> {
    let scratch = Scratch::new("spoil")?;
    let env = scratch.env("HOSTILE")?;
    let mut guest = start(&env, "spoilt", "honest", 1)?;
    intact(&mut guest)?;
    guest.ask("spoil", SOON)?;
    let noticed = guest.ask("verify", SOON).expect_err("the spoilt page was not noticed");
    assert!(format!("{noticed:#}").contains("wrong page"), "{noticed:#}");
    Ok(())
}
