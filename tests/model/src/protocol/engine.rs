//! The engine of the source: round planner, sender, switchover, undoing. It follows
//! `migration/src/source/rounds.rs` and `switchover.rs` step by step; what became of each page is
//! kept by the product's own `Round`, and undoing is by its own guard.

use wherry_devices::virtio::balloon::constants::CMD_DONE;

use super::bench::HintCall;
use super::device::{self, word_of};
use super::progress::{Method, Pc, Sink};
use super::round::{self, Bits, RoundState};
use super::scenario::Scenario;
use super::state::State;
use super::terms::{Action, Mask, Wrong};
use super::undo;
use crate::mutant::{Mutant, on};

/// What the engine may do.
pub(super) fn steps(s: &Scenario, state: &State, out: &mut Vec<Action>) {
    let e = &state.engine;
    let free = state.unlocked();
    let epoch = e.sink.is_some() && !e.sweeping;
    match e.pc {
        Pc::End => return,
        // These want the device's lock.
        Pc::Stop if on(Mutant::HintAfterClose) => out.push(Action::Engine),
        Pc::Publish | Pc::RenewStart | Pc::Stop | Pc::PauseDevices | Pc::UndoDone if !free => {}
        // And these wait for those inside the gate, who are inside the lock.
        Pc::Close if on(Mutant::HintAfterClose) => out.push(Action::Engine),
        Pc::RenewClose | Pc::SwitchClose | Pc::EarlyClose | Pc::Close if !free => {}
        Pc::Decide => {
            if e.round.number < s.rounds {
                out.push(Action::NextRound);
            }
            out.push(Action::SwitchOver);
        }
        // The mistake: waiting, for ever, until the driver has hinted something.
        Pc::Send if on(Mutant::WaitsWithoutLoop) && epoch && state.driver.active == 0 => {}
        _ => out.push(Action::Engine),
    }
    if e.pc == Pc::Send && epoch {
        let flagged = e.sink.as_ref().is_some_and(|sink| sink.not_zeroing);
        if state.left.bursts > 0 && !e.resting && !e.returning && free {
            out.push(Action::Rest);
        }
        if e.resting || e.returning && device::looked(state) {
            out.push(Action::Renew);
        }
        if flagged && free {
            out.push(Action::Switch);
        }
        if s.stop_early && free {
            out.push(Action::StopEarly);
        }
    }
    let own = !matches!(e.pc, Pc::HandOff | Pc::UndoDone | Pc::UndoResume | Pc::UndoLog);
    if s.fail && own {
        out.push(Action::Fail);
    }
}

/// The engine does something.
pub(super) fn step(s: &Scenario, state: &mut State, action: Action) {
    match action {
        Action::Rest if device::call(state, HintCall::Rest) => {
            state.left.bursts -= 1;
            state.engine.resting = true;
        }
        // It has not begun, or is through.
        Action::Rest => {}
        Action::Renew if state.engine.returning => {
            if device::returned(state) {
                state.engine.pc = Pc::Publish;
            }
        }
        Action::Renew => state.engine.pc = Pc::RenewClose,
        Action::Switch => {
            device::call(state, HintCall::Done);
            state.driver.owed = state.mem.held;
            state.engine.pc = Pc::SwitchClose;
        }
        Action::StopEarly => {
            device::call(state, HintCall::Done);
            state.driver.owed = state.mem.held;
            state.engine.pc = Pc::EarlyClose;
        }
        Action::NextRound => state.engine.pc = Pc::PlanLater,
        Action::SwitchOver => state.engine.pc = Pc::PauseVcpus,
        Action::Fail => fail(state),
        _ => state.engine.pc = next(s, state),
    }
}

/// The guard's order of undoing is the product's.
fn fail(state: &mut State) {
    let e = &mut state.engine;
    e.undo = undo::order(state.mem.log_on, e.vcpus_paused);
    e.pc = Pc::UndoDone;
}

/// The next step, and what comes after it.
fn next(s: &Scenario, state: &mut State) -> Pc {
    match state.engine.pc {
        Pc::Log
        | Pc::Populated
        | Pc::Protect
        | Pc::ProtectLate
        | Pc::SwitchProtect
        | Pc::Holes
        | Pc::Plan => prepare(s, state),
        Pc::Publish
        | Pc::RenewClose
        | Pc::RenewStart
        | Pc::SwitchClose
        | Pc::EarlyClose
        | Pc::Stop
        | Pc::Close => hints(s, state),
        Pc::Send | Pc::Claimed | Pc::Guard | Pc::Read | Pc::GuardLate => send(s, state),
        Pc::Account | Pc::Halfway | Pc::Harvest | Pc::Decide | Pc::PlanLater => {
            between_rounds(s, state)
        }
        Pc::PauseVcpus | Pc::PauseDevices | Pc::LastHarvest | Pc::Save | Pc::HandOff => {
            switch_over(s, state)
        }
        Pc::UndoDone | Pc::UndoResume | Pc::UndoLog | Pc::End => undo_next(state),
    }
}

/// Round one is prepared: the log is on, what must be is protected, all pages are sorted.
fn prepare(s: &Scenario, state: &mut State) -> Pc {
    match state.engine.pc {
        Pc::Log => {
            let mem = &mut state.mem;
            // What the VMM wrote before says nothing more.
            (mem.log_on, mem.dirty, mem.vmm_dirty, mem.written) = (true, s.all(), 0, 0);
            Pc::Populated
        }
        Pc::Populated => {
            let e = &mut state.engine;
            e.populated = state.mem.populated;
            e.ballooned = state.device.ballooned(state.mem.ballooned);
            e.todo = match s.hints && !s.checked {
                true => s.all_words(),
                false => round::words_with_a_hole(s, e.populated),
            };
            e.known = e.todo;
            if on(Mutant::PublishBeforeProtect) && s.hints {
                e.known = 0;
                e.round = RoundState::of_all(s, s.all(), 0, 0);
                return Pc::Publish;
            }
            Pc::Protect
        }
        Pc::Protect | Pc::ProtectLate | Pc::SwitchProtect => protect_next(s, state),
        Pc::Holes => {
            if !on(Mutant::HolesBeforeProtect) {
                state.engine.populated = state.mem.populated;
            }
            Pc::Plan
        }
        Pc::Plan => {
            let early = on(Mutant::BalloonBeforeProtect);
            let now = state.device.ballooned(state.mem.ballooned);
            let e = &mut state.engine;
            let ballooned = if early { e.ballooned } else { now };
            e.round = RoundState::of_all(s, e.populated, ballooned, e.known);
            if s.hints && s.driver || on(Mutant::WaitsWithoutLoop) { Pc::Publish } else { Pc::Send }
        }
        other => other,
    }
}

/// Ids are published, renewed and given up; the sink is closed before anybody relies on it.
fn hints(s: &Scenario, state: &mut State) -> Pc {
    match state.engine.pc {
        Pc::Publish => {
            let e = &mut state.engine;
            let checked = s.checked && e.round.number == 1 && !on(Mutant::PublishBeforeProtect);
            let switched = e.sink.is_some();
            let method = if checked && !switched {
                Method::CheckedZero { early: e.guarded }
            } else {
                Method::Protected
            };
            e.sink = Some(Sink::new(method));
            (e.sweeping, e.resting) = (false, false);
            let again = std::mem::take(&mut e.returning);
            if !again {
                e.cursor = 0;
            }
            let late = on(Mutant::PublishBeforeProtect) && e.round.number == 1;
            device::call(state, HintCall::Start);
            if again {
                state.engine.regained = state.device.hints.saved.field;
            }
            if late { Pc::ProtectLate } else { Pc::Send }
        }
        Pc::RenewClose => {
            if let Some(sink) = &mut state.engine.sink {
                sink.closed = true;
            }
            Pc::RenewStart
        }
        Pc::RenewStart => {
            let e = &mut state.engine;
            if let Some(sink) = &mut e.sink {
                // The probe goes on where it was.
                (sink.closed, sink.not_zeroing) = (false, false);
                if let Method::CheckedZero { early } = &mut sink.method {
                    *early = e.guarded;
                }
            }
            e.resting = false;
            device::call(state, HintCall::Start);
            Pc::Send
        }
        Pc::SwitchClose => {
            let e = &mut state.engine;
            e.todo = s.all_words() & !e.guarded;
            if on(Mutant::SwitchWithoutProtect) {
                e.todo = 0;
            }
            Pc::SwitchProtect
        }
        Pc::EarlyClose => {
            let e = &mut state.engine;
            // A later round may ask again, once the driver has what it hinted.
            e.protected_hints = matches!(&e.sink, Some(sink) if sink.method == Method::Protected);
            (e.sink, e.sweeping, e.returning) = (None, true, false);
            e.cursor = 0;
            Pc::Send
        }
        Pc::Stop => {
            // The mistake: hints that are under way go on.
            let (todo, sink) = (state.device.todo.clone(), state.device.sink);
            device::call(state, HintCall::Stop);
            if on(Mutant::HintAfterClose) {
                (state.device.todo, state.device.sink) = (todo, sink);
            }
            Pc::Close
        }
        Pc::Close => {
            let e = &mut state.engine;
            e.protected_hints = matches!(&e.sink, Some(sink) if sink.method == Method::Protected);
            match on(Mutant::HintAfterClose) {
                true => e.sink.iter_mut().for_each(|sink| sink.closed = true),
                false => e.sink = None,
            }
            (e.sweeping, e.returning, e.cursor) = (true, false, 0);
            e.halfway = true;
            if on(Mutant::NoSweep) { Pc::Account } else { Pc::Send }
        }
        other => other,
    }
}

/// A word is claimed, protected, read and sent.
fn send(s: &Scenario, state: &mut State) -> Pc {
    match state.engine.pc {
        Pc::Send => claim(s, state),
        Pc::Claimed => {
            let e = &mut state.engine;
            let (_, word) = word_of(s, e.claimed);
            if e.round.number > 1 || e.guarded & word != 0 || on(Mutant::SendBeforeProtect) {
                return Pc::Read;
            }
            state.mem.protect(s.words(word));
            Pc::Guard
        }
        Pc::Guard => {
            let (_, word) = word_of(s, state.engine.claimed);
            state.engine.guarded |= word;
            Pc::Read
        }
        Pc::Read => read(s, state),
        Pc::GuardLate => {
            let (_, word) = word_of(s, state.engine.claimed);
            state.mem.protect(s.words(word));
            state.engine.guarded |= word;
            Pc::Send
        }
        other => other,
    }
}

/// A round ends, and another is planned.
fn between_rounds(s: &Scenario, state: &mut State) -> Pc {
    match state.engine.pc {
        Pc::Account => {
            if !state.engine.round.accounts(s) {
                state.wrong = Some(Wrong::Accounting);
            }
            if state.engine.vcpus_paused { Pc::Save } else { Pc::Harvest }
        }
        Pc::Halfway => {
            let unclaimed = state.engine.round.to_send;
            let found = harvest(state, unclaimed);
            let e = &mut state.engine;
            e.written = if on(Mutant::HalfwayForgets) { 0 } else { found & !unclaimed };
            e.halfway = true;
            Pc::Send
        }
        Pc::Harvest => {
            let dirty = harvest(state, 0);
            state.engine.dirty = dirty | std::mem::take(&mut state.engine.written);
            Pc::Decide
        }
        Pc::PlanLater => {
            let ballooned = state.device.ballooned(state.mem.ballooned);
            let e = &mut state.engine;
            e.round = RoundState::of_dirty(s, e.round.number + 1, e.dirty, ballooned);
            (e.sweeping, e.cursor) = (false, 0);
            begin_later(s, state)
        }
        other => other,
    }
}

/// The machine stops, the rest is sent, the destination runs.
fn switch_over(s: &Scenario, state: &mut State) -> Pc {
    match state.engine.pc {
        Pc::PauseVcpus => {
            state.engine.vcpus_paused = true;
            Pc::PauseDevices
        }
        Pc::PauseDevices => {
            state.engine.devices_paused = !on(Mutant::PausedLoop);
            Pc::LastHarvest
        }
        Pc::LastHarvest => {
            let last = harvest(state, 0);
            state.engine.dirty |= last;
            Pc::PlanLater
        }
        Pc::Save => {
            state.wrong = compare(s, state);
            Pc::HandOff
        }
        Pc::HandOff => {
            // The destination's device is restored from the saved state; rings and interrupt come
            // with it.
            device::call(state, HintCall::Restore);
            let e = &mut state.engine;
            (e.vcpus_paused, e.devices_paused) = (false, false);
            // The guest of interest is the destination's now.
            state.mem.log_on = false;
            Pc::End
        }
        other => other,
    }
}

/// The guard undoes what it has noted.
fn undo_next(state: &mut State) -> Pc {
    match state.engine.pc {
        Pc::UndoDone => {
            if state.engine.undo & undo::DONE != 0 {
                device::call(state, HintCall::Done);
            }
            Pc::UndoResume
        }
        Pc::UndoResume => {
            let e = &mut state.engine;
            if e.undo & undo::RESUME != 0 {
                (e.vcpus_paused, e.devices_paused) = (false, false);
            }
            Pc::UndoLog
        }
        Pc::UndoLog => {
            if state.engine.undo & undo::LOG_OFF != 0 {
                state.mem.log_on = false;
            }
            Pc::End
        }
        other => other,
    }
}

/// Protects the next word of those to be protected.
fn protect_next(s: &Scenario, state: &mut State) -> Pc {
    let e = &mut state.engine;
    if e.todo != 0 {
        let word = 1 << e.todo.trailing_zeros();
        e.todo &= !word;
        e.guarded |= word;
        state.mem.protect(s.words(word));
    }
    match (e.todo, e.pc) {
        (0, Pc::Protect) => Pc::Holes,
        (0, Pc::ProtectLate) => Pc::Send,
        // Switched: sends on, and publishes when the driver has its memory back.
        (0, _) => {
            e.sink = Some(Sink { closed: true, ..Sink::new(Method::Protected) });
            (e.returning, e.cursor) = (true, 0);
            Pc::Send
        }
        (_, same) => same,
    }
}

fn begin_later(s: &Scenario, state: &mut State) -> Pc {
    let e = &mut state.engine;
    if s.later && e.protected_hints && !e.vcpus_paused {
        if state.device.hints.saved.field != CMD_DONE {
            return Pc::Publish;
        }
        // Not before the driver has what it hinted in the round before.
        e.sink = Some(Sink { closed: true, ..Sink::new(Method::Protected) });
        e.returning = true;
        return Pc::Send;
    }
    if !on(Mutant::HintAfterClose) {
        e.sink = None;
    }
    e.sweeping = true;
    Pc::Send
}

/// Claims the next word with pages to send; at the end of the round, goes on to what follows.
fn claim(s: &Scenario, state: &mut State) -> Pc {
    let e = &mut state.engine;
    let left = (e.cursor..s.nr_words()).find(|w| e.round.to_send & s.word(*w) != 0);
    let Some(word) = left else {
        return if e.sink.is_some() && !e.sweeping { Pc::Stop } else { Pc::Account };
    };
    let over = e.sink.is_none() || on(Mutant::HalfwayInEpoch);
    let left = (0..s.nr_words()).filter(|w| e.round.to_send & s.word(*w) != 0).count() as u32;
    if e.round.number == 1 && over && !e.halfway && 2 * left <= s.nr_words() {
        return Pc::Halfway;
    }
    e.claimed = e.round.claim(s, word);
    e.cursor = word + 1;
    Pc::Claimed
}

/// Reads what was claimed and sends it.
fn read(s: &Scenario, state: &mut State) -> Pc {
    let e = &mut state.engine;
    let pages = e.claimed;
    let zero = pages & state.mem.zero;
    let content = pages & !zero;
    // The destination's RAM is zero where it never got content.
    let told = zero & e.content;
    if !on(Mutant::ZeroNotTold) {
        state.mem.zero_dest(told);
    }
    e.content = (e.content & !told) | content;
    state.mem.copy(content);
    e.round.with(s, |round, bits: Bits| {
        round.mark_zero(u64::from(zero.count_ones()));
        for (w, mask) in bits(content) {
            round.mark_sent(w, mask);
        }
    });
    let (_, word) = word_of(s, pages);
    let unprotected = e.round.number == 1 && e.guarded & word == 0;
    if on(Mutant::SendBeforeProtect) && unprotected {
        return Pc::GuardLate;
    }
    e.claimed = 0;
    Pc::Send
}

/// Takes the dirty set; what is in it is protected again. Marks of pages that are read `later` need
/// not be of a write.
fn harvest(state: &mut State, later: Mask) -> Mask {
    let mem = &mut state.mem;
    let vmm = if on(Mutant::VmmWrites) { 0 } else { mem.vmm_dirty };
    let dirty = mem.dirty | vmm;
    (mem.dirty, mem.vmm_dirty) = (0, 0);
    let unwritten = dirty & !mem.written & !later;
    mem.written = 0;
    if unwritten != 0 {
        state.wrong = Some(Wrong::Resent(unwritten));
    }
    dirty
}

/// The guest is paused: compares both sides.
fn compare(s: &Scenario, state: &State) -> Option<Wrong> {
    let mem = &state.mem;
    let differ = s.all() & !mem.same;
    let free = mem.free | mem.held | mem.ballooned;
    if differ & !free != 0 {
        return Some(Wrong::Lost(differ & !free));
    }
    let wrong = differ & !mem.excused;
    (wrong != 0).then_some(Wrong::Differs(wrong))
}
