//! The ring, the device behind its lock, and the hint sink on the device's thread.
//!
//! What a chain means, and which of its blocks reach the sink, is decided by the product's own
//! `Balloon::handle`. The sink's checked-zero way is told here step by step, so that the others can
//! come in between; `threads` runs the product's.

use wherry_devices::virtio::balloon::constants::{CMD_FIRST_ID, CMD_STOP};
use wherry_migration::hinting::sink::does_not_zero;

use super::bench::{self, HintCall, Outcome};
use super::progress::{Method, Pc};
use super::scenario::Scenario;
use super::state::{Look, State};
use super::terms::{Action, Chain, Mask, Wrong};
use crate::mutant::{Mutant, on};

/// The engine calls the device, whose lock is free. Returns whether the field changed.
pub(super) fn call(state: &mut State, call: HintCall) -> bool {
    let (hints, changed) = bench::call(&state.device.hints, call);
    let device = &mut state.device;
    device.hints = hints;
    device.seen &= !changed;
    if changed {
        state.driver.interrupt();
    }
    match call {
        HintCall::Start => {
            device.sink = true;
            (device.current, device.open, device.stopped) = (hints.saved.field, false, false);
        }
        HintCall::Rest => {}
        HintCall::Stop | HintCall::Done | HintCall::Restore => {
            device.sink = false;
            (device.current, device.open) = (0, false);
        }
    }
    changed
}

/// Whether the engine would learn something by asking whether the driver takes its memory back.
pub(super) fn looked(state: &State) -> bool {
    let emptied = state.queue.is_empty() && state.unlocked();
    emptied && state.device.seen || on(Mutant::PublishBeforeReturn)
}

/// By the product's `Hinting::returned`, with an empty hint queue.
pub(super) fn returned(state: &mut State) -> bool {
    if on(Mutant::PublishBeforeReturn) || on(Mutant::OneLookIsEnough) {
        return true;
    }
    let device = &mut state.device;
    let (returned, told, hints) = bench::returned(&device.hints, device.seen);
    device.hints = hints;
    if told {
        device.seen = false;
        state.driver.interrupt();
    }
    returned
}

pub(super) fn has_work(state: &State) -> bool {
    !state.device.todo.is_empty() || !state.queue.is_empty()
}

/// Neither paused nor without an event loop.
pub(super) fn may_work(state: &State) -> bool {
    !state.engine.devices_paused
}

/// Nobody keeps it from working.
pub(super) fn can_work(s: &Scenario, state: &State) -> bool {
    let sending = matches!(state.engine.pc, Pc::Claimed | Pc::Guard | Pc::Read);
    let waits = on(Mutant::SendersMutex) && sending && !state.device.todo.is_empty();
    may_work(state) && s.driver && !waits
}

pub(super) fn steps(s: &Scenario, state: &State, out: &mut Vec<Action>) {
    if has_work(state) && can_work(s, state) {
        out.push(Action::Device);
    }
}

pub(super) fn step(s: &Scenario, state: &mut State) {
    if state.device.todo.is_empty() {
        let chain = state.queue.remove(0);
        let outcome = bench::handle(&state.device.hints, state.device.sink, &chain);
        state.wrong = judge(state, &chain, &outcome);
        state.device.hints = outcome.hints;
        state.device.todo = outcome.blocks;
    } else if let Some(look) = hint(s, state) {
        state.device.look = look;
        return;
    } else {
        state.device.todo.remove(0);
        state.device.look = Look::Start;
    }
    if state.device.todo.is_empty() {
        // The used ring.
        state.mem.vmm_write(s.ring_page);
    }
}

/// Compares what the device made of a chain with the specification.
fn judge(state: &mut State, chain: &Chain, outcome: &Outcome) -> Option<Wrong> {
    if outcome.used != 0 {
        return Some(Wrong::UsedLength);
    }
    let device = &mut state.device;
    match *chain {
        Chain::Command(CMD_STOP) => {
            device.stopped |= device.open;
            device.open = false;
        }
        Chain::Command(id) => {
            device.open = id >= CMD_FIRST_ID && id == device.current && !device.stopped;
        }
        Chain::Blocks(..) | Chain::Tiny(_) => {}
    }
    let due: &[Mask] = match chain {
        Chain::Blocks(a, 0) if device.open => &[*a],
        Chain::Blocks(a, b) if device.open => &[*a, *b],
        _ => &[],
    };
    if outcome.blocks.len() > due.len() {
        return Some(Wrong::StaleHint);
    }
    (outcome.blocks != due).then_some(Wrong::DroppedHint)
}

/// One step of the sink with the first block. `None`: it is through.
fn hint(s: &Scenario, state: &mut State) -> Option<Look> {
    let engine = &mut state.engine;
    let pages = *state.device.todo.first()?;
    let (word, words) = word_of(s, pages);
    let sink = engine.sink.as_mut()?;
    match state.device.look {
        Look::Start => {
            if sink.closed && !on(Mutant::HintAfterClose) {
                return None;
            }
            let early = match sink.method {
                Method::Protected => {
                    engine.round.with(s, |round, bits| {
                        for (w, mask) in bits(pages) {
                            round.clear_hinted(w, mask);
                        }
                    });
                    return None;
                }
                Method::CheckedZero { .. } if sink.not_zeroing => return None,
                Method::CheckedZero { early } if on(Mutant::EarlyIsGuarded) => {
                    early | engine.guarded
                }
                Method::CheckedZero { early } => early,
            };
            if words.count_ones() > 1 {
                // The model's blocks of several words are hinted word by word.
                let mut rest = pages & !s.word(word);
                state.device.todo[0] = pages & s.word(word);
                while rest != 0 {
                    let (next, _) = word_of(s, rest);
                    state.device.todo.insert(1, rest & s.word(next));
                    rest &= !s.word(next);
                }
                return Some(Look::Start);
            }
            if early & words != 0 {
                engine.round.with(s, |round, bits| {
                    for (w, mask) in bits(pages) {
                        round.clear_hinted(w, mask);
                    }
                });
                return None;
            }
            let guarded = engine.guarded & words != 0 && !on(Mutant::ProtectTwice);
            if pages != s.word(word) || guarded {
                return None;
            }
            let taken = engine.round.claim(s, word);
            (taken != 0).then_some(Look::Claimed(taken))
        }
        Look::Claimed(taken) => {
            if engine.guarded & words != 0 && !on(Mutant::ProtectTwice) {
                return Some(Look::PutBack(taken));
            }
            if on(Mutant::LookBeforeProtect) {
                return Some(Look::TooEarly(taken, zero_prefix(taken, state.mem.zero)));
            }
            if !on(Mutant::LogNotCleared) {
                state.mem.protect(s.word(word));
            }
            Some(Look::Protected(taken))
        }
        Look::Protected(taken) => {
            engine.guarded |= words;
            Some(Look::Noted(taken))
        }
        Look::TooEarly(taken, zero) => {
            state.mem.protect(s.word(word));
            engine.guarded |= words;
            skip(s, state, taken, zero)
        }
        Look::Noted(taken) => {
            let zero = zero_prefix(taken, state.mem.zero);
            skip(s, state, taken, zero)
        }
        Look::PutBack(rest) => {
            engine.round.with(s, |round, bits| {
                for (w, mask) in bits(rest) {
                    round.put_back(w, mask);
                }
            });
            None
        }
    }
}

/// Pages found zero are skipped, the others go back; the probe learns from it.
fn skip(s: &Scenario, state: &mut State, taken: Mask, zero: Mask) -> Option<Look> {
    let engine = &mut state.engine;
    engine.round.with(s, |round, bits| {
        for (w, mask) in bits(zero) {
            round.mark_hinted(w, mask);
        }
    });
    let sink = engine.sink.as_mut()?;
    match taken == zero {
        true => sink.zero_blocks = sink.zero_blocks.saturating_add(1),
        false => sink.content_blocks = sink.content_blocks.saturating_add(1),
    }
    let (content, zero_ones) = (sink.content_blocks.into(), sink.zero_blocks.into());
    sink.not_zeroing |= s.probe && does_not_zero(content, zero_ones);
    (taken != zero).then_some(Look::PutBack(taken & !zero))
}

/// The pages of `taken` that are zero, up to the first that is not.
fn zero_prefix(taken: Mask, zero: Mask) -> Mask {
    let content = taken & !zero;
    let before = if content == 0 { Mask::MAX } else { (1 << content.trailing_zeros()) - 1 };
    taken & before
}

/// The first word of some pages, and all of their words as a set.
pub(super) fn word_of(s: &Scenario, pages: Mask) -> (u32, u8) {
    let touched = (0..s.nr_words()).filter(|w| s.word(*w) & pages != 0);
    let words: u8 = touched.fold(0, |all, w| all | 1 << w);
    (words.trailing_zeros(), words)
}
