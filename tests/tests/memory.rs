//! Where memory is: the host's share before use, in use, freed, in the balloon; and the guest's own
//! after every kind of end of a migration. Printed as the tables of docs/soak.md.

use std::time::Duration;

use wherry_tests::{
    BOOT, Env, Guest, GuestOptions, MigrateError, Result, SOON, Scratch, eventually, migrate, note,
};

const USED_MIB: u64 = 250;
const BALLOON_MIB: u64 = 200;
/// Noise: what a guest's kernel takes and gives by itself.
const NOISE_MIB: u64 = 32;
/// Hinted memory from which it shows that it had to come back.
const TAKEN_MIB: u64 = 50;

fn boot(env: &Env, name: &str, features: &str) -> Result<Guest> {
    let options = GuestOptions {
        memory: "512MiB".into(),
        append: "wherry.check=24 wherry.check_rate=500".into(),
        args: vec!["--balloon-features".into(), features.into()],
        ..GuestOptions::default()
    };
    let mut guest = Guest::run(env, name, &options)?;
    guest.wait_for("work done", BOOT)?;
    Ok(guest)
}

fn free_mib(guest: &mut Guest) -> Result<u64> {
    Ok(guest.ask("status", SOON)?.num("memfree_kb")? / 1024)
}

/// A row of the first table. Returns the VMM's resident guest RAM in MiB.
fn row(guest: &mut Guest, what: &str) -> Result<u64> {
    let (rss, balloon) = (guest.rss_mib()?, guest.balloon()?);
    note(&format!(
        "| {what} | {rss} | {} | {} | {} |",
        balloon.resident_mib(),
        free_mib(guest)?,
        balloon.pages()? / 256
    ));
    Ok(rss)
}

/// Waits until the host has no more than `mib` of the guest's memory.
fn shrinks_to(guest: &Guest, mib: u64) -> Result<Duration> {
    let ((), took) = eventually(SOON, || {
        let rss = guest.rss_mib()?;
        Ok(if rss <= mib { Ok(()) } else { Err(format!("{rss} MiB resident, not {mib}")) })
    })?;
    Ok(took)
}

fn host_memory(env: &Env, reporting: bool) -> Result<()> {
    let features = if reporting { "all" } else { "hinting,stats,deflate-on-oom" };
    let mut guest = boot(env, if reporting { "reports" } else { "silent" }, features)?;
    note(&format!("{} reporting", if reporting { "with" } else { "without" }));
    note(
        "| | RssShmem of the VMM, MiB | populated guest RAM, MiB | guest's MemFree, MiB | in the \
         balloon, MiB |",
    );
    note("|---|---|---|---|---|");
    if reporting {
        // What booting has used and freed is reported, too.
        std::thread::sleep(Duration::from_secs(6));
    }
    let before = row(&mut guest, "before use")?;
    guest.ask(&format!("fill {USED_MIB}"), SOON)?;
    let used = row(&mut guest, &format!("{USED_MIB} MiB in use"))?;
    assert!(used + NOISE_MIB > before + USED_MIB, "{before} MiB before, {used} in use");
    guest.ask(&format!("free {USED_MIB}"), SOON)?;
    let freed = if reporting {
        let took = shrinks_to(&guest, before + NOISE_MIB)?;
        row(&mut guest, &format!("freed and reported, {:.1} s later", took.as_secs_f64()))?
    } else {
        std::thread::sleep(Duration::from_secs(6));
        let rss = row(&mut guest, "freed, 6 s later")?;
        assert!(rss + NOISE_MIB > used, "{used} MiB in use, {rss} when freed: who gave it back?");
        rss
    };
    let took = guest.inflate_to(BALLOON_MIB, SOON)?;
    let inflated =
        row(&mut guest, &format!("{BALLOON_MIB} MiB inflated, {:.1} s later", took.as_secs_f64()))?;
    // What is reported is the host's already.
    let (least, most) =
        if reporting { (0, freed + NOISE_MIB) } else { (0, freed + NOISE_MIB - BALLOON_MIB) };
    assert!((least..=most).contains(&inflated), "{freed} MiB before inflating, {inflated} after");
    let took = guest.inflate_to(0, SOON)?;
    row(&mut guest, &format!("deflated, {:.1} s later", took.as_secs_f64()))?;
    Ok(())
}

/// How a migration ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Refused,
    Cancelled,
    ReceiverKilled,
    Success,
}

/// Migrates so, while hints are out, and returns the guest where it is then: its free memory
/// before, while hints were out, and after.
fn end(env: &Env, mut guest: Guest, how: End) -> Result<(Guest, [u64; 3])> {
    let name = ["refused", "cancelled", "killed", "success"][how as usize];
    let before = free_mib(&mut guest)?;
    let uri = env.unix_uri(name);
    let mut destination =
        (how != End::Refused).then(|| Guest::receive(env, name, &uri)).transpose()?;
    let slow = if how == End::Success { "200Mbit" } else { "20Mbit" };
    let migration = std::thread::spawn({
        let (env, uri, from) = (env.clone(), uri.clone(), guest.name.clone());
        move || migrate(&env, &from, &uri, &["--hints", "on", "--bandwidth", slow])
    });
    let mut least = before;
    // However long it takes: what an earlier migration hinted comes back first.
    let _ = eventually(SOON, || {
        // A guest that has moved does not answer here any more.
        least = least.min(free_mib(&mut guest).unwrap_or(least));
        let enough = how == End::Refused || migration.is_finished() || before - least > TAKEN_MIB;
        Ok(if enough { Ok(()) } else { Err(format!("{before} MiB free before, now {least}")) })
    });
    match (how, &mut destination) {
        (End::Cancelled, _) => {
            let cancelled = env.command(&["cancel", &guest.name]).output()?;
            if !cancelled.status.success() {
                let why = String::from_utf8_lossy(&cancelled.stderr);
                panic!("{why}: {:?}", migration.join());
            }
        }
        (End::ReceiverKilled, Some(receiver)) => receiver.kill(),
        _ => {}
    }
    let outcome = migration.join().expect("migrating thread");
    assert_eq!(outcome.is_ok(), how == End::Success, "{outcome:?}");
    match outcome {
        Ok(_) => {
            assert!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
            guest = destination.take().unwrap_or(guest);
        }
        Err(e) => {
            let code = e.downcast::<MigrateError>()?.code;
            assert_eq!(code, 5, "the guest is at the source");
        }
    }
    // In emulation the guest takes its time.
    let (after, _) = eventually(SOON, || {
        let free = free_mib(&mut guest)?;
        Ok(if free + NOISE_MIB > before {
            Ok(free)
        } else {
            Err(format!("{before} MiB free before, now {free}"))
        })
    })?;
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    assert_eq!(guest.info()?["state"], "running");
    Ok((guest, [before, least, after]))
}

fn guest_memory(env: &Env) -> Result<()> {
    // No reporting: it has 128 MiB at a time, which then are missing from what was free before.
    let mut guest = boot(env, "ends", "hinting,stats,deflate-on-oom")?;
    guest.ask(&format!("fill {USED_MIB}"), SOON)?;
    guest.ask(&format!("free {USED_MIB}"), SOON)?;
    note(
        "| the migration was | MemFree before, MiB | least while hints were out, MiB | after, MiB \
         |",
    );
    note("|---|---|---|---|");
    for (how, what) in [
        (End::Refused, "refused: nobody listens"),
        (End::Cancelled, "cancelled in round one"),
        (End::ReceiverKilled, "broken: receiver killed in round one"),
        (End::Success, "a success"),
    ] {
        let (now, [before, least, after]) = end(env, guest, how)?;
        guest = now;
        note(&format!("| {what} | {before} | {least} | {after} |"));
        // Else nothing had to come back. In round one 16 blocks that clear nothing, 64 MiB, end the
        // asking.
        let taken = before.saturating_sub(least);
        assert!(
            how == End::Refused || how == End::Success || taken > TAKEN_MIB,
            "only {taken} MiB were hinted"
        );
    }
    Ok(())
}

fn tables(kernel: &str) -> Result<()> {
    let scratch = Scratch::new("memory")?;
    let env = scratch.env(kernel)?;
    host_memory(&env, true)?;
    // For the table: that the balloon gives memory back is shown in balloon.rs, too.
    if std::env::var_os("WHERRY_SOAK").is_some() {
        host_memory(&env, false)?;
    }
    guest_memory(&env)
}

#[test]
fn memory_of_host_and_guest_on_cloud_6_1() -> Result<()> {
    tables("CLOUD_6_1")
}

#[test]
#[ignore = "the longer of the two: --soak"]
fn memory_of_host_and_guest_on_cloud_6_12() -> Result<()> {
    tables("CLOUD_6_12")
}
