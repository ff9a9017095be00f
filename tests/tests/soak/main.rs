//! Migrations there and back with everything on at once: hints, reporting, a balloon whose target
//! goes up and down, compaction, a writer and a memory hog. No page may be wrong, by the guest's
//! own checks and by `--verify`.
//!
//! Everywhere: a few migrations. With `--soak`: `--migrations`, at most `--minutes`, from `--seed`.
//! A failure names the seed, the leg and the migration, and leaves the VMs' logs and what the
//! guests said last where it says.

mod plan;
mod tally;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use wherry_tests::{
    BOOT, Env, Fields, Guest, GuestOptions, MigrateError, Result, SOON, Scratch, eventually,
    migrate, note,
};

use plan::{Dice, Hop, Kind, LEG};
use tally::Tally;

const MEMORY: &str = "256MiB";
const CHECK_MIB: u64 = 24;
const PAGES_PER_MIB: u64 = 256;
/// Migrations between two looks at the balloon at rest.
const REST_EVERY: u64 = 8;
/// What the guest may have less in the end than at first: caches of its kernel that have grown.
/// KiB.
const FREE_TOLERANCE_KIB: u64 = 20 * 1024;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A guest under load, in the VMM where it is now.
struct Leg<'a> {
    env: &'a Env,
    guest: Guest,
    /// What receives it; kept for what it has to say.
    destination: Option<Guest>,
    kind: Kind,
    dice: Dice,
    hops: u64,
    tally: Tally,
    /// At first, before any load.
    before: Fields,
    started: Instant,
}

impl<'a> Leg<'a> {
    fn start(env: &'a Env, kind: Kind, seed: u64, leg: u64) -> Result<Self> {
        let options = GuestOptions {
            cpus: kind.cpus,
            memory: MEMORY.into(),
            append: format!("wherry.check={CHECK_MIB} wherry.check_rate=600 {}", kind.append),
            args: vec![],
        };
        let started = Instant::now();
        let mut guest = Guest::run(env, &format!("leg{leg}-0"), &options)?;
        guest.wait_for("work done", BOOT)?;
        guest.ask("drop", SOON)?;
        let before = guest.ask("status", SOON)?;
        let (dice, tally) = (Dice::new(seed, leg), Tally::default());
        Ok(Self { env, guest, destination: None, kind, dice, hops: 0, tally, before, started })
    }

    fn load(&mut self) -> Result<()> {
        for command in ["writer 12 3", "compaction 800", "surge 40 200"] {
            self.guest.ask(command, SOON)?;
        }
        Ok(())
    }

    /// Without hog and compaction the balloon reaches its target, and the host's set is what the
    /// guest says in three ways.
    fn rest(&mut self, target_mib: u64) -> Result<()> {
        self.guest.ask("surge 0", SOON)?;
        self.guest.ask("compaction 0", SOON)?;
        self.guest.inflate_to(target_mib, SOON)?;
        let status = self.guest.ask("status", SOON)?;
        let held = status.num("balloon_inflate")? - status.num("balloon_deflate")?;
        let pages = self.guest.balloon()?.pages()?;
        ensure!(
            held == pages && pages == target_mib * PAGES_PER_MIB,
            "{pages} pages in the host's set, the guest's kernel counts {held}, the target is \
             {target_mib} MiB"
        );
        self.tally.count(tally::RESTS);
        Ok(())
    }

    /// One migration, and what must hold after it.
    fn hop(&mut self) -> Result<()> {
        let hop = Hop::draw(&mut self.dice, self.hops);
        let started = Instant::now();
        if self.hops.is_multiple_of(REST_EVERY) {
            self.rest(hop.target_mib)?;
            self.load()?;
        } else if hop.moving {
            self.guest.set_target(hop.target_mib)?;
        } else {
            self.guest.set_target(hop.target_mib)?;
            // Under the hog it may never get there.
            let (guest, wanted) = (&self.guest, hop.target_mib * PAGES_PER_MIB);
            let _ = eventually(Duration::from_secs(2), || {
                Ok(if guest.balloon()?.actual() == wanted { Ok(()) } else { Err(String::new()) })
            });
        }
        self.hops += 1;
        let outcome = self.migrate(&hop).with_context(|| format!("{hop:?}"))?;
        self.check()?;
        note(&format!(
            "{}, {}: {outcome}, {:.1} s in all",
            self.kind.name,
            self.hops,
            started.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    fn migrate(&mut self, hop: &Hop) -> Result<String> {
        let balloon = self.guest.balloon()?;
        let name = format!("{}-{}", self.guest.name.split('-').next().unwrap_or("leg"), self.hops);
        let uri = self.env.unix_uri(&name);
        let destination = self.destination.insert(Guest::receive(self.env, &name, &uri)?);
        let outcome = run(self.env, &self.guest.name, &uri, hop)?;
        let Some(report) = outcome else {
            left_alone(destination, &uri)?;
            destination.kill();
            self.destination = None;
            self.tally.count(tally::CANCELLED);
            return Ok(format!("cancelled after {} ms", hop.cancel_ms.unwrap_or_default()));
        };
        check_report(&report)?;
        ensure!(self.guest.wait_exit(SOON)?.success(), "the source's VMM did not end well");
        self.tally.migrated(&report);
        self.tally.leaves(&balloon)?;
        if let Some(arrived) = self.destination.take() {
            self.guest = arrived;
        }
        Ok(format!(
            "hints {}, {} rounds, {} MiB in {} ms, downtime {} ms",
            hop.hints,
            report["rounds"].as_array().map_or(0, Vec::len),
            report["total_bytes"].as_u64().unwrap_or(0) >> 20,
            report["total_ms"],
            report["downtime"]["total_us"].as_u64().unwrap_or(0) / 1000
        ))
    }

    /// The guest runs, and all of its memory is right.
    fn check(&mut self) -> Result<()> {
        ensure!(
            self.guest.info()?["state"] == "running",
            "the guest does not run: {}",
            self.guest.info()?
        );
        let verdict = self.guest.ask("verify", SOON)?;
        ensure!(
            verdict.num("bad")? == 0 && verdict.num("pages")? == CHECK_MIB * PAGES_PER_MIB,
            "{verdict:?}"
        );
        let status = self.guest.ask("status", SOON)?;
        for key in ["bad", "surge_bad", "oom_kill"] {
            ensure!(status.num(key)? == 0, "{key}={}", status.num(key)?);
        }
        let balloon = self.guest.balloon()?;
        for counter in
            ["malformed_requests", "malformed_reports", "hints_malformed", "discard_errors"]
        {
            ensure!(balloon.counter(counter)? == 0, "{counter}={}", balloon.counter(counter)?);
        }
        Ok(())
    }

    /// Without load and balloon the guest has its memory back.
    fn end(&mut self) -> Result<()> {
        self.rest(48)?;
        self.rest(0)?;
        self.guest.ask("writer 0", SOON)?;
        let wanted = self.before.num("memfree_kb")?;
        eventually(SOON, || {
            self.guest.ask("drop", SOON)?;
            let free = self.guest.ask("status", SOON)?.num("memfree_kb")?;
            let back = free + FREE_TOLERANCE_KIB >= wanted;
            Ok(if back {
                Ok(())
            } else {
                Err(format!("{wanted} KiB were free at first, now {free}"))
            })
        })?;
        self.check()?;
        let now = self.guest.ask("status", SOON)?;
        note(&format!(
            "{}: MemFree {} KiB at first, {} in the end",
            self.kind.name,
            wanted,
            now.num("memfree_kb")?
        ));
        self.tally.leaves(&self.guest.balloon()?)?;
        self.tally.guest(&self.before, &now, self.started.elapsed().as_secs())
    }

    fn run(&mut self, hops: u64, until: Option<Instant>) -> Result<()> {
        for _ in 0..hops {
            if until.is_some_and(|until| Instant::now() > until) {
                break;
            }
            self.hop()?;
        }
        self.end()
    }

    /// Writes the VMMs' logs and what is known of the guests to a folder that stays; returns its
    /// path.
    fn keep(&mut self) -> PathBuf {
        let base = std::env::var_os("WHERRY_KEEP").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = base.join(format!("soak-{}", std::process::id()));
        let _ = std::fs::create_dir_all(&folder);
        for vm in [Some(&mut self.guest), self.destination.as_mut()].into_iter().flatten() {
            let threads = threads(vm.pid());
            let words = format!("{}\nthreads:\n{threads}", vm.last_words());
            let _ = std::fs::write(folder.join(format!("{}.txt", vm.name)), words);
        }
        folder
    }
}

/// Where the threads of a process are in the host's kernel.
fn threads(pid: u32) -> String {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| read(task.path().join("comm")) + &read(task.path().join("stack"))).collect()
}

/// Waits until a receiver whose source was cancelled has ended without a guest or, where that was
/// before it was told of one, turns away whoever comes and waits on.
fn left_alone(receiver: &mut Guest, uri: &str) -> Result<()> {
    // A stranger, should the source not have come at all. Where nobody listens it is about to end.
    drop(UnixStream::connect(uri.trim_start_matches("unix:")));
    eventually(SOON, || {
        if let Some(end) = receiver.ended()? {
            ensure!(!end.success(), "a receiver without a guest must not succeed");
            return Ok(Ok(()));
        }
        let log = receiver.log();
        let last = log.lines().last().unwrap_or_default();
        let waits = last.ends_with("still waiting for the source");
        Ok(if waits { Ok(()) } else { Err(format!("it neither ends nor waits: {log}")) })
    })?;
    Ok(())
}

/// The report; none if it was cancelled in time.
fn run(env: &Env, name: &str, uri: &str, hop: &Hop) -> Result<Option<Value>> {
    let outcome = std::thread::scope(|scope| {
        let migration = scope.spawn(|| migrate(env, name, uri, &hop.args()));
        if let Some(ms) = hop.cancel_ms {
            std::thread::sleep(Duration::from_millis(ms));
            // It may be too late, or too early: then the migration goes on.
            let _ = env.command(&["cancel", name]).output();
        }
        migration.join().expect("migrating thread")
    });
    let failed = match outcome {
        Ok(report) => return Ok(Some(report)),
        Err(e) => e.downcast::<MigrateError>()?,
    };
    if hop.cancel_ms.is_none() || failed.code != 5 || failed.error["error"]["code"] != "cancelled" {
        bail!("{failed}");
    }
    Ok(None)
}

fn check_report(report: &Value) -> Result<()> {
    let pages = report["nr_pages"].as_u64().unwrap_or(0);
    let sum = |of: &Value, classes: &[&str]| {
        classes.iter().filter_map(|class| of[*class].as_u64()).sum::<u64>()
    };
    ensure!(report["verify"]["wrong"] == 0, "wrong pages: {report:#}");
    ensure!(sum(&report["verify"], &["equal", "free", "wrong"]) == pages, "{report:#}");
    for round in report["rounds"].as_array().into_iter().flatten() {
        let classes = ["sent", "zero", "hole", "hinted", "ballooned", "clean"];
        ensure!(sum(round, &classes) == pages, "{round}");
    }
    Ok(())
}

#[test]
fn soak_there_and_back_with_everything_on() -> Result<()> {
    let long = std::env::var_os("WHERRY_SOAK").is_some();
    let wanted = if long { number("WHERRY_SOAK_MIGRATIONS").unwrap_or(200) } else { 3 };
    let until = number("WHERRY_SOAK_MINUTES").map(|m| Instant::now() + Duration::from_secs(m * 60));
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs());
    let seed = number("WHERRY_SOAK_SEED").unwrap_or(if long { clock } else { 0 });
    note(&format!("seed {seed}"));

    let (mut legs, mut done) = (Vec::new(), 0);
    for nr in 0.. {
        if done >= wanted || until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        let kind = plan::kind(seed, nr);
        // One each: the kernels' files have the same names.
        let scratch = Scratch::new(&format!("soak{nr}"))?;
        let env = scratch.env(kind.kernel)?;
        let mut leg = Leg::start(&env, kind, seed, nr)?;
        let outcome = leg.run(LEG.min(wanted - done), until);
        done += leg.hops;
        legs.push((kind.name, leg.tally.clone()));
        if let Err(e) = outcome {
            tally::print(&legs);
            let (hop, logs) = (leg.hops, leg.keep());
            bail!(
                "seed {seed}, leg {} ({}), migration {hop}: {e:#}; logs in {}",
                nr + 1,
                kind.name,
                logs.display()
            );
        }
    }
    tally::print(&legs);
    let mut all = Tally::default();
    legs.iter().for_each(|(_, leg)| all.add(leg));
    ensure!(all.get(tally::MOVED) > 0 && all.get(tally::WRONG) == 0 && all.get(tally::RESTS) > 1);
    ensure!(all.get(tally::BALLOON_MOVES) > 0, "compaction moved no ballooned page");
    ensure!(!long || done < 20 || all.get(tally::CANCELLED) > 0, "no migration was cancelled");
    Ok(())
}
