//! Round one, with its hints, and the rounds on the dirty set.
//!
//! Order of every round: plan → publish an id → send, hints arriving → STOP, epoch closed → sweep
//! what hints put back → check the accounting → harvest. The module docs of [`crate::hinting`] say
//! why each step stands where it does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bitmap::{AtomicBitmap, Bitmap};
use crate::config::{HintMode, HintPolicy};
use crate::error::{Error, Phase};
use crate::hinting::policy::{Action, Asking};
use crate::hinting::sink::{Sink, protect_words, word_map};
use crate::hinting::worth::{Worth, free_and_populated, worthwhile};
use crate::observe::Event;
use crate::report::{Reason, Report};
use crate::round::{Plan, Round};
use crate::traits::HintSource;
use crate::units::{PAGE_SIZE, millis};
use crate::wire::{Kind, RoundStart};

use super::epoch::Epoch;
use super::session::Session;

/// Words protected in one call when a lot is to be protected: 1 GiB.
const PROTECT_WORDS: usize = 4096;
/// Asking for holes looks at each page of RAM (40 ns), reading a page costs some 600 ns: from this
/// part of RAM on it costs less than reading what is dirty, and a dirty set smaller than that in
/// pages is not worth the while.
const ASK_FOR_HOLES: (u64, u64) = (16, 4096);
/// A later round asks for hints only if it lasts longer than this: shorter ones are over before the
/// driver has answered.
const ROUND_FOR_HINTS: Duration = Duration::from_millis(100);
/// Pages sent from which a round says how well dirty pages compress.
const ENOUGH_TO_TELL: u64 = 64;
/// Runs round one. Returns the dirty set that the second round has to send.
pub(super) fn round_one(session: &mut Session<'_>, report: &mut Report) -> Result<Bitmap, Error> {
    session.start_log()?;
    let guarded = Arc::new(word_map(session.nr_pages));
    let populated = session.populated()?;
    let (source, mode) = decide(session, &populated, report);
    // Before the driver takes any of it.
    let free = source.as_ref().and_then(|s| s.guest_free_bytes());
    let free = free.map_or(0, |free| free_and_populated(populated.count(), session.nr_pages, free));
    let wanted = source.is_some();

    #[cfg(test)]
    if session.mutated(crate::tests::Mutation::PublishBeforeProtect) {
        return mutant_round_one(session, report, &guarded, source);
    }

    // Words with a hole, or all of them for the protected way, are protected before anything is
    // decided about them.
    let all = source.is_some() && mode == HintMode::Protected;
    let mut todo = Bitmap::full(guarded.len());
    if !all {
        for (word, pages) in populated.words().iter().enumerate() {
            let first = word as u64 * 64;
            let full = (session.nr_pages - first).min(64) == u64::from(pages.count_ones());
            if full {
                todo.clear(word as u64);
            }
        }
    }
    protect(session, &todo, &guarded)?;
    let populated = session.populated()?;
    let plan = plan_round_one(session, &populated, &todo);

    session.enter(Phase::Rounds);
    let round = Arc::new(Round::new(1, session.nr_pages, &plan));
    session.begin(&round, &plan);
    let epoch = match source {
        None => None,
        Some(source) => {
            let (ram, log) = (&session.vm.ram, &session.vm.log);
            let (sink, mode) = if mode == HintMode::Protected {
                (Sink::protected(&round, ram, log), mode)
            } else {
                let probe = mode == HintMode::Auto;
                let sink = Sink::checked_zero(&round, ram, log, &guarded, probe);
                (sink, HintMode::CheckedZero)
            };
            let judges = session.cfg.hints == HintPolicy::Auto;
            let asking = Asking::new(free, judges);
            Epoch::open(session, &source, &round, sink, mode, (Duration::MAX, asking))
        }
    };
    if wanted && epoch.is_none() {
        report.hints = Reason::DriverGone.into();
    }
    run(session, &round, epoch, Some(&guarded), report)
}

/// Runs a round on `dirty`. Returns the next dirty set.
pub(super) fn next_round(
    session: &mut Session<'_>,
    dirty: &Bitmap,
    report: &mut Report,
) -> Result<Bitmap, Error> {
    let plan = plan_later(session, dirty, Guest::Runs)?;
    let number = report.rounds.len() as u32 + 1;
    let pages = plan.to_send.count();
    let round = Arc::new(Round::new(number, session.nr_pages, &plan));
    session.begin(&round, &plan);
    #[cfg(test)]
    crate::tests::round_begins(&round);
    let time = session.time_for(pages);
    let epoch = match &session.vm.hints {
        Some(source) if session.protected_hints && time > ROUND_FOR_HINTS => {
            let sink = Sink::protected(&round, &session.vm.ram, &session.vm.log);
            // Most of this round's pages are in use: do not wait for the first hint.
            let wait = Duration::ZERO;
            let asking = Asking::new(0, session.cfg.hints == HintPolicy::Auto);
            Epoch::open(session, source, &round, sink, HintMode::Protected, (wait, asking))
        }
        _ => None,
    };
    let next = run(session, &round, epoch, None, report)?;
    if !session.cfg.compression.is_none()
        && let Some(done) = report.rounds.last().filter(|done| done.sent >= ENOUGH_TO_TELL)
    {
        session.dirty_packing = (done.sent * PAGE_SIZE as u64) as f64 / done.bytes.max(1) as f64;
    }
    Ok(next)
}

/// Sends the pages of a plan with the guest paused: no hints, no harvest.
pub(super) fn last_round(
    session: &mut Session<'_>,
    dirty: &Bitmap,
    report: &mut Report,
) -> Result<(), Error> {
    let plan = plan_later(session, dirty, Guest::IsPaused)?;
    let number = report.rounds.len() as u32 + 1;
    let round = Arc::new(Round::new(number, session.nr_pages, &plan));
    session.begin(&round, &plan);
    let before = session.bytes();
    announce(session, &round)?;
    session.slice(&round, false);
    sweep(session, &round, None)?;
    session.sync(&round)?;
    session.slice(&round, true);
    session.close_streams()?;
    let mut done = round.account()?;
    done.bytes = session.bytes() - before;
    report.rounds.push(done);
    Ok(())
}

impl Session<'_> {
    /// A round is planned.
    fn begin(&mut self, round: &Arc<Round>, plan: &Plan) {
        self.held = Duration::ZERO;
        self.tell(&Event::Round(round, plan));
    }
}

fn announce(session: &mut Session<'_>, round: &Round) -> Result<(), Error> {
    let start = RoundStart { round: round.number };
    session.writer.send_control(Kind::Round, "round", &start)
}

/// Sends all that is left, from the first page on.
fn sweep(
    session: &mut Session<'_>,
    round: &Round,
    guarded: Option<&AtomicBitmap>,
) -> Result<(), Error> {
    let mut cursor = 0;
    while session.send_chunk(round, &mut cursor, guarded)? {
        session.tick(Some(round))?;
    }
    Ok(())
}

/// Whether to ask for hints, and how; says why in the report.
fn decide(
    session: &Session<'_>,
    populated: &Bitmap,
    report: &mut Report,
) -> (Option<Arc<dyn HintSource>>, HintMode) {
    let mode = session.cfg.hint_mode;
    let mut no = |why: Reason| {
        report.hints = why.into();
        (None, mode)
    };
    let Some(source) = &session.vm.hints else {
        return no(Reason::NoBalloon);
    };
    if session.cfg.hints == HintPolicy::Off {
        return no(Reason::NotWanted);
    }
    if !source.available() {
        return no(Reason::NoDriver);
    }
    if session.cfg.hints == HintPolicy::Auto {
        let worth = Worth {
            populated: populated.count(),
            nr_pages: session.nr_pages,
            guest_free_bytes: source.guest_free_bytes(),
            link_rate: session.memory_rate(),
        };
        if let Err(why) = worthwhile(&worth) {
            return no(why);
        }
    }
    report.hints = Reason::On.into();
    (Some(source.clone()), mode)
}

/// Protects the words of `todo` that are not yet protected.
fn protect(session: &mut Session<'_>, todo: &Bitmap, guarded: &AtomicBitmap) -> Result<(), Error> {
    let mut todo = todo.clone();
    todo.and_not(&guarded.snapshot());
    for (first, nr) in todo.runs() {
        let end = (first + nr) as usize;
        let mut start = first as usize;
        while start < end {
            let stop = end.min(start + PROTECT_WORDS);
            protect_words(&*session.vm.log, session.nr_pages, start..stop)
                .map_err(Error::machine("write-protect guest memory"))?;
            for word in start..stop {
                guarded.set(word as u64);
            }
            start = stop;
            session.tick(None)?;
        }
    }
    Ok(())
}

/// Sorts all pages: what is in the balloon or a hole, in words that are protected, needs no
/// sending.
fn plan_round_one(session: &mut Session<'_>, populated: &Bitmap, protected: &Bitmap) -> Plan {
    let mut known = Bitmap::new(session.nr_pages);
    for (first, nr) in protected.runs() {
        known.set_range(first * 64, nr * 64);
    }
    let mut ballooned = Bitmap::new(session.nr_pages);
    if let Some(hints) = &session.vm.hints {
        hints.ballooned(&mut ballooned);
        session.tell(&Event::Ballooned(&ballooned));
        ballooned.and(&known);
    }
    let mut hole = known;
    hole.and_not(populated);
    hole.and_not(&ballooned);
    let mut to_send = Bitmap::full(session.nr_pages);
    to_send.and_not(&hole);
    to_send.and_not(&ballooned);
    Plan { to_send, ballooned, hole }
}

/// Whether the guest runs while its memory is looked at.
#[derive(PartialEq, Eq)]
enum Guest {
    Runs,
    IsPaused,
}

/// Sorts a harvest, whose pages are protected again: the same reasoning holds for holes and the
/// balloon as in round one.
///
/// With the guest paused nobody asks for holes: the time for that grows with all of RAM, is not
/// foretold, and what is dirty has to be read in any case.
fn plan_later(session: &mut Session<'_>, dirty: &Bitmap, guest: Guest) -> Result<Plan, Error> {
    let mut to_send = dirty.clone();
    let mut ballooned = Bitmap::new(session.nr_pages);
    if let Some(hints) = &session.vm.hints {
        hints.ballooned(&mut ballooned);
        session.tell(&Event::Ballooned(&ballooned));
        ballooned.and(dirty);
        to_send.and_not(&ballooned);
    }
    let mut hole = Bitmap::new(session.nr_pages);
    let (part, least) = ASK_FOR_HOLES;
    if guest == Guest::Runs && to_send.count() >= least.max(session.nr_pages / part) {
        let populated = session.populated()?;
        hole = to_send.clone();
        hole.and_not(&populated);
        to_send.and_not(&hole);
        session.send_zeroed(&hole)?;
    }
    Ok(Plan { to_send, ballooned, hole })
}

/// Sends a round while its hints arrive, then closes the epoch, sweeps, accounts, harvests.
fn run(
    session: &mut Session<'_>,
    round: &Arc<Round>,
    mut epoch: Option<Epoch>,
    guarded: Option<&AtomicBitmap>,
    report: &mut Report,
) -> Result<Bitmap, Error> {
    let before = session.bytes();
    let mut cursor = 0;
    let mut mode = epoch.as_ref().map(|e| e.mode);
    let mut asked = None;
    announce(session, round)?;
    loop {
        session.tick(Some(round))?;
        session.tell(&Event::Hints(report.hints));
        if let Some(now) = &mut epoch {
            let action = if now.sink.not_zeroing() {
                Action::TakeBack
            } else {
                now.act(round, session.memory_rate())
            };
            // Why to ask no more, and whether a later round may ask again.
            let over = match action {
                Action::End(why) => Some((why, why != Reason::DoesNotPay)),
                Action::TakeBack => {
                    take_back(session, now, guarded)?;
                    mode = Some(now.mode);
                    // What was put back may lie behind the cursor.
                    cursor = 0;
                    continue;
                }
                // Another driver may be there by the next round.
                _ => (!now.turn(session, round)).then_some((Reason::DriverGone, true)),
            };
            if let Some((why, again)) = over {
                report.hints = why.into();
                // Not DONE: taking memory back dirties the guest's page structures, and it all
                // comes back in the end.
                now.close(session);
                session.protected_hints = again && now.mode == HintMode::Protected;
                asked = epoch.take().map(Epoch::into_parts);
                continue;
            }
            if round.remaining() > 0 && action == Action::Hold {
                let patience = now.patience(session.cfg);
                session.interrupt.cancel.sleep(patience);
                session.held += patience;
                continue;
            }
        }
        let until = Instant::now() + session.cfg.slice;
        let mut more = true;
        while more && Instant::now() < until {
            more = session.send_chunk(round, &mut cursor, guarded)?;
        }
        if !more {
            break;
        }
    }
    if let Some(epoch) = epoch {
        epoch.close(session);
        session.protected_hints = epoch.mode == HintMode::Protected;
        asked = Some(epoch.into_parts());
    }
    sweep(session, round, guarded)?;
    session.sync(round)?;
    if let Some((asking, sink)) = asked.filter(|_| round.number == 1) {
        say_unsaved(&asking, &sink, round, report);
    }
    let mut done = round.account()?;
    session.slice(round, true);
    let dirty = session.harvest()?;
    done.bytes = session.bytes() - before;
    done.hint_mode = mode;
    done.held_ms = millis(session.held);
    done.overridden = round.overridden(&dirty);
    done.dirty_at_end = dirty.count();
    done.reckon(session.memory_rate());
    session.hinting.add(&done.hint_figures());
    report.rounds.push(done);
    Ok(dirty)
}

/// The guest does not zero what it hints, or holds what could not be honoured: it gets its memory
/// back, and everything is protected before it is asked again.
fn take_back(
    session: &mut Session<'_>,
    epoch: &mut Epoch,
    guarded: Option<&AtomicBitmap>,
) -> Result<(), Error> {
    epoch.take_back(session);
    match guarded {
        Some(guarded) => protect(session, &Bitmap::full(guarded.len()), guarded),
        None => Ok(()),
    }
}

/// What was expected of hints and did not come is not lost silently.
fn say_unsaved(asking: &Asking, sink: &Sink, round: &Round, report: &mut Report) {
    let (bytes, much) = Epoch::unsaved(asking, sink, round);
    report.expected_unsaved_bytes = bytes;
    if much {
        report.hints.unnamed_bytes = Some(bytes);
    }
}

/// Round one as it must not be: the id is published, and only then is memory protected.
#[cfg(test)]
fn mutant_round_one(
    session: &mut Session<'_>,
    report: &mut Report,
    guarded: &Arc<AtomicBitmap>,
    source: Option<Arc<dyn HintSource>>,
) -> Result<Bitmap, Error> {
    let plan = Plan::of(Bitmap::full(session.nr_pages));
    let round = Arc::new(Round::new(1, session.nr_pages, &plan));
    let sink = Sink::protected(&round, &session.vm.ram, &session.vm.log);
    let epoch = match source {
        None => None,
        Some(s) => {
            let asking = (Duration::ZERO, Asking::new(0, false));
            Epoch::open(session, &s, &round, sink, HintMode::Protected, asking)
        }
    };
    protect(session, &Bitmap::full(guarded.len()), guarded)?;
    run(session, &round, epoch, Some(guarded), report)
}
