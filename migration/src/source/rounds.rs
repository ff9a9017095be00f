//! Round one, with its hints, the rounds on the dirty set, and the last one.
//!
//! Order of every round: plan → publish an id → send, hints arriving → epoch closed → sweep
//! what hints put back → check the accounting → harvest. The module docs of [`crate::hinting`] say
//! why each step stands where it does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bitmap::{AtomicBitmap, Bitmap};
use crate::config::{HintMode, OnTimeout};
use crate::error::{Error, Phase};
use crate::hinting::epoch::{Epoch, EpochContext, Step};
use crate::hinting::sink::{protect_words, word_map};
use crate::hinting::worth::{free_and_populated, hint_source};
use crate::observe::Event;
use crate::report::Reason;
use crate::round::{Plan, Round, words_with_a_hole};
use crate::traits::HintSource;
use crate::units::millis;

use super::halfway::Halfway;
use super::migration::Migration;

/// Words protected in one call when a lot is to be protected: 1 GiB.
const PROTECT_WORDS: usize = 4096;
/// A later round asks for hints only if it lasts longer than this. Shorter ones are over before the
/// driver has named all that is free, and then it holds that until it is at the destination.
const ROUND_FOR_HINTS: Duration = Duration::from_secs(1);

/// Sends all memory and then what is dirty, round after round, until the rest is small enough to be
/// sent while the guest is paused. Returns that rest.
pub(super) fn converge(m: &mut Migration<'_>) -> Result<Bitmap, Error> {
    m.enter(Phase::Prepare);
    let mut dirty = first(m)?;
    loop {
        let dirty_pages = dirty.count();
        let predicted = m.predicted_downtime(dirty_pages);
        m.tell(&Event::Predicted(predicted));
        if predicted <= m.cfg.downtime_limit {
            return Ok(dirty);
        }
        let rounds = m.report.rounds.len() as u32;
        if rounds >= m.cfg.max_rounds {
            let predicted_ms = millis(predicted);
            return match m.cfg.on_timeout {
                OnTimeout::Force => Ok(dirty),
                OnTimeout::Fail => Err(Error::NotConverging { rounds, dirty_pages, predicted_ms }),
            };
        }
        dirty = next(m, dirty)?;
    }
}

/// Sends all memory once. Returns what was written meanwhile.
fn first(m: &mut Migration<'_>) -> Result<Bitmap, Error> {
    m.start_log()?;
    let guarded = Arc::new(word_map(m.nr_pages));
    let populated = m.populated()?;
    let rate = m.sender.meter.memory_rate();
    let source = hint_source(m.vm, m.cfg, populated.count(), rate);
    m.report.hints = source.err().unwrap_or(Reason::On).into();
    let source = source.ok();
    // Before the driver takes any of it.
    let free = source.and_then(|s| s.guest_free_bytes());
    let free = free.map_or(0, |free| free_and_populated(populated.count(), m.nr_pages, free));

    // Words with a hole, or all of them for the protected way, are protected before anything is
    // decided about them.
    let todo = match source {
        Some(_) if m.cfg.hint_mode == HintMode::Protected => Bitmap::full(guarded.len()),
        _ => words_with_a_hole(&populated),
    };
    protect(m, &todo, &guarded)?;
    // A hole counts only if it was one after its protection. Of words that had none nothing is to
    // be found out: a page that is a hole by now is sent as the zeros that it is.
    let populated = m.populated_again(&todo, populated)?;
    let plan = Plan::of_all(&populated, ballooned(m), &todo);
    m.give_back(populated);

    m.enter(Phase::Rounds);
    let round = m.begin(&plan);
    let epoch = source.and_then(|source| {
        let rate = m.sender.meter.memory_rate();
        Epoch::first(epoch_context(m, source, &round), &guarded, free).open(rate)
    });
    if source.is_some() && epoch.is_none() {
        m.report.hints = Reason::DriverGone.into();
    }
    let dirty = run(m, &round, epoch, Some(&guarded))?;
    m.end(round, plan);
    if let Some(first) = m.report.rounds.first() {
        m.report.round_one_bytes = first.bytes;
        let seconds = (first.duration_ms.max(1)) as f64 / 1000.0;
        m.report.pages_per_second = m.nr_pages as f64 / seconds;
    }
    Ok(dirty)
}

/// Sends what is dirty. Returns what was written meanwhile.
fn next(m: &mut Migration<'_>, dirty: Bitmap) -> Result<Bitmap, Error> {
    let started = Instant::now();
    let plan = Plan::of_dirty(dirty, ballooned(m));
    let round = m.begin(&plan);
    m.planning = started.elapsed();
    let time = m.sender.meter.time_for(plan.to_send.count());
    let epoch = match &m.vm.hints {
        Some(source) if m.protected_hints && time > ROUND_FOR_HINTS => {
            let rate = m.sender.meter.memory_rate();
            Epoch::later(epoch_context(m, source, &round)).open(rate)
        }
        _ => None,
    };
    let dirty = run(m, &round, epoch, None)?;
    m.end(round, plan);
    if let Some(done) = m.report.rounds.last() {
        m.sender.meter.add_dirty(done.sent, done.bytes);
    }
    Ok(dirty)
}

/// Sends what is dirty with the guest paused: no hints, no harvest. No memory follows.
pub(super) fn last(m: &mut Migration<'_>, dirty: Bitmap) -> Result<(), Error> {
    let plan = Plan::of_dirty(dirty, ballooned(m));
    let round = m.begin(&plan);
    let before = m.bytes();
    m.announce(&round)?;
    m.slice(&round, false);
    sweep(m, &round, None)?;
    m.sync(&round)?;
    m.slice(&round, true);
    m.sender.lanes.close()?;
    let mut done = round.account()?;
    done.bytes = m.bytes() - before;
    m.report.rounds.push(done);
    m.report.downtime.last_round_us = m.paused.lap();
    Ok(())
}

/// Sends a round while its hints arrive, then closes the epoch, sweeps, accounts, harvests. Round
/// one has words that are not yet `guarded`.
fn run(
    m: &mut Migration<'_>,
    round: &Arc<Round>,
    mut epoch: Option<Epoch<'_>>,
    guarded: Option<&AtomicBitmap>,
) -> Result<Bitmap, Error> {
    let before = m.bytes();
    let mut cursor = 0;
    let mut halfway = Halfway::default();
    m.announce(round)?;
    loop {
        m.tick(Some(round))?;
        if round.number == 1 && epoch.as_ref().is_some_and(Epoch::is_over) {
            halfway.begin(round);
            if halfway.is_due(round) {
                halfway.harvest(m, round)?;
            }
        }
        m.tell(&Event::Hints(m.report.hints));
        let rate = m.sender.meter.memory_rate();
        match epoch.as_mut().map_or(Step::Send, |epoch| epoch.step(rate)) {
            Step::Send if !send_slice(m, round, &mut cursor, (guarded, &halfway))? => break,
            Step::Send => {}
            Step::Hold(time) => {
                m.peer.interrupt.cancel.sleep(time);
                m.held += time;
            }
            Step::Protect => {
                if let Some(guarded) = guarded {
                    protect(m, &Bitmap::full(guarded.len()), guarded)?;
                }
                // What was put back may lie behind the cursor.
                cursor = 0;
            }
            // A driver that is through with a later round says nothing of round one.
            Step::Over(Reason::On) if round.number > 1 => {}
            Step::Over(why) => m.report.hints.reason = why,
        }
    }
    if let Some(epoch) = &mut epoch {
        epoch.close();
        m.protected_hints = epoch.may_ask_again();
    }
    sweep(m, round, guarded)?;
    m.sync(round)?;
    if let Some(epoch) = epoch.as_ref().filter(|_| round.number == 1) {
        // What was expected of hints and did not come is not lost silently.
        let (bytes, much) = epoch.unsaved();
        m.report.expected_unsaved_bytes = bytes;
        m.report.hints.unnamed_bytes = much.then_some(bytes);
    }
    let mut done = round.account()?;
    m.slice(round, true);
    let mut dirty = m.harvest()?;
    halfway.add_to(m, &mut dirty);
    done.bytes = m.bytes() - before;
    done.hint_mode = epoch.map(|epoch| epoch.mode());
    done.held_ms = millis(m.held);
    done.hinting.overridden = round.overridden(&dirty);
    done.dirty_at_end = dirty.count();
    done.set_savings(m.sender.meter.memory_rate());
    m.report.hinting.add(&done.hinting);
    m.report.rounds.push(done);
    Ok(dirty)
}

/// What an epoch of this round belongs to.
fn epoch_context<'a>(
    m: &Migration<'a>,
    source: &'a Arc<dyn HintSource>,
    round: &Arc<Round>,
) -> EpochContext<'a> {
    let (round, observer) = (round.clone(), m.observer.clone());
    EpochContext { vm: m.vm, cfg: m.cfg, source, round, observer }
}

/// Protects the words of `todo` that are not yet protected.
fn protect(m: &mut Migration<'_>, todo: &Bitmap, guarded: &AtomicBitmap) -> Result<(), Error> {
    let mut todo = todo.clone();
    todo.and_not(&guarded.snapshot());
    for (first, nr) in todo.runs() {
        let end = (first + nr) as usize;
        for start in (first as usize..end).step_by(PROTECT_WORDS) {
            let words = start..end.min(start + PROTECT_WORDS);
            protect_words(&*m.vm.log, guarded, m.nr_pages, words)
                .map_err(Error::machine("write-protect guest memory"))?;
            m.tick(None)?;
        }
    }
    Ok(())
}

/// What is in the balloon now.
fn ballooned(m: &mut Migration<'_>) -> Bitmap {
    let mut ballooned = m.map();
    if let Some(hints) = &m.vm.hints {
        hints.ballooned(&mut ballooned);
        m.tell(&Event::Ballooned(&ballooned));
    }
    ballooned
}

/// Sends for a slice. False: there is nothing left up to the end.
fn send_slice(
    m: &mut Migration<'_>,
    round: &Arc<Round>,
    cursor: &mut usize,
    (guarded, halfway): (Option<&AtomicBitmap>, &Halfway),
) -> Result<bool, Error> {
    let until = Instant::now() + m.cfg.slice;
    while Instant::now() < until && !halfway.is_due(round) {
        if !m.sender.send_chunk(&mut m.peer.writer, round, cursor, guarded)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sends all that is left, from the first page on.
fn sweep(
    m: &mut Migration<'_>,
    round: &Arc<Round>,
    guarded: Option<&AtomicBitmap>,
) -> Result<(), Error> {
    let mut cursor = 0;
    while m.sender.send_chunk(&mut m.peer.writer, round, &mut cursor, guarded)? {
        m.tick(Some(round))?;
    }
    Ok(())
}
