//! The guest, and a balloon driver that does what Linux's does (or, where the budget says so,
//! worse).
//!
//! After each config interrupt, at any time later, Linux's work item runs. It looks at the id; with
//! a new one it looks again for the one to announce, whatever it finds there, hints block after
//! block as long as a look between two blocks finds the same, then says STOP. DONE at the start of
//! the work item makes it give everything back. It reads the field only if there was an interrupt
//! since it last did. Between all of this the guest takes hinted pages back when it is short of
//! memory, whatever became of the hint.

use wherry_devices::virtio::balloon::constants::{CMD_DONE, CMD_FIRST_ID, CMD_STOP};

use super::memory::Memory;
use super::scenario::Scenario;
use super::state::State;
use super::terms::{Action, Chain, Mask, Wrong};
use crate::mutant::{Mutant, on};

/// Nothing more comes from the driver by itself.
pub(super) fn quiet(state: &State) -> bool {
    !state.driver.work && state.driver.idle()
}

/// What guest and driver may do.
pub(super) fn steps(s: &Scenario, state: &State, out: &mut Vec<Action>) {
    if state.engine.vcpus_paused || !s.driver {
        return;
    }
    let (d, mem, left) = (&state.driver, &state.mem, &state.left);
    let ended = state.ended();
    if d.work && d.idle() {
        out.push(Action::Work);
    }
    let loops = d.hinting && (d.received == d.active || d.replaying);
    if d.stale && (d.starting || loops) {
        out.push(Action::Look);
    }
    if d.starting && state.queue.len() < s.ring {
        out.push(Action::Announce);
    }
    if d.giving_back {
        out.push(Action::GiveBack);
    }
    let room = state.queue.len() < s.ring;
    if d.hinting && room {
        out.push(Action::DriverStop);
    }
    if ended {
        return;
    }
    if loops && room {
        let free = |block: Mask| mem.free & block == block;
        if left.hints > 0 {
            out.extend(s.blocks.iter().filter(|b| free(**b)).map(|b| Action::Hint(*b)));
        }
        if left.hints > 1
            && let [a, b, ..] = s.blocks
            && s.two_segments
            && free(a | b)
        {
            out.push(Action::HintTwo(*a, *b));
        }
        if left.tiny > 0 && mem.free & mem.zero != 0 {
            let page = 1 << (mem.free & mem.zero).trailing_zeros();
            out.push(Action::HintTiny(page));
        }
    }
    if left.shrinks > 0 && mem.held != 0 {
        out.push(Action::Shrink);
    }
    if left.replays > 0 && room && d.idle() && d.active >= CMD_FIRST_ID {
        out.push(Action::Replay);
    }
    for page in s.pages() {
        let told = mem.ballooned & page == 0 || on(Mutant::UsedBeforeTold);
        if left.writes > 0 && told && s.writable & page != 0 {
            out.push(Action::Write(page));
        }
        let used = (mem.free | mem.held | mem.ballooned) & page == 0;
        if left.frees > 0 && used && s.ring_page & page == 0 {
            out.push(Action::Free(page));
        }
        if left.balloon > 0 && s.balloonable & page != 0 {
            if mem.free & page != 0 {
                out.push(Action::Inflate(page));
                out.push(Action::Report(page));
            }
            if mem.ballooned & page != 0 {
                out.push(Action::Deflate(page));
            }
        }
    }
}

/// The guest or its driver does something.
pub(super) fn step(s: &Scenario, state: &mut State, action: Action) {
    let State { mem, driver: d, queue, left, .. } = state;
    match action {
        Action::Work | Action::Look => {
            if std::mem::take(&mut d.stale) {
                d.received = state.device.hints.saved.field;
                state.device.seen = true;
            }
            if action == Action::Work {
                d.work = false;
                d.giving_back = d.received == CMD_DONE && mem.held != 0;
                d.starting = d.received >= CMD_FIRST_ID && d.received != d.active;
            }
        }
        Action::Announce => {
            d.active = d.received;
            (d.starting, d.hinting) = (false, true);
            if d.owed != 0 && d.active == state.engine.regained {
                state.wrong = Some(Wrong::NotReturned(d.owed));
            }
            if d.active == CMD_STOP && state.engine.resting {
                state.wrong = Some(Wrong::HintsUnderStop);
            }
            queue.push(Chain::Command(d.active));
        }
        Action::GiveBack => {
            mem.free |= mem.held;
            (mem.held, d.owed, d.giving_back) = (0, 0, false);
        }
        Action::Shrink => {
            left.shrinks -= 1;
            mem.free |= mem.held;
            (mem.held, d.owed) = (0, 0);
        }
        Action::DriverStop => {
            // Linux replays nothing: one that does looks once more whether there is DONE.
            d.work |= d.replaying;
            (d.hinting, d.replaying) = (false, false);
            queue.push(Chain::Command(CMD_STOP));
        }
        Action::Hint(block) => {
            left.hints -= 1;
            take(s, mem, block);
            d.owed |= if d.active == CMD_DONE { block } else { 0 };
            queue.push(Chain::Blocks(block, 0));
        }
        Action::HintTwo(a, b) => {
            left.hints -= 2;
            take(s, mem, a | b);
            queue.push(Chain::Blocks(a, b));
        }
        Action::HintTiny(page) => {
            left.tiny -= 1;
            queue.push(Chain::Tiny(page));
        }
        Action::Replay => {
            left.replays -= 1;
            (d.hinting, d.replaying) = (true, true);
            queue.push(Chain::Command(d.active));
        }
        Action::Write(page) => {
            left.writes -= 1;
            mem.free &= !page;
            mem.held &= !page;
            d.owed &= !page;
            // In use although the host's set still has it: only where the driver need not tell
            // first.
            if mem.ballooned & page != 0 {
                mem.ballooned &= !page;
                state.device.untold |= page;
            }
            mem.write(page);
        }
        Action::Free(page) => {
            left.frees -= 1;
            mem.free |= page;
        }
        Action::Inflate(page) => {
            left.balloon -= 1;
            mem.free &= !page;
            mem.discard(page);
            mem.ballooned |= page;
            mem.excused |= page;
        }
        Action::Deflate(page) => {
            left.balloon -= 1;
            mem.ballooned &= !page;
            mem.free |= page;
        }
        Action::Report(page) => {
            left.balloon -= 1;
            mem.discard(page);
        }
        _ => {}
    }
}

/// The driver allocates pages, which a kernel that zeroes on allocation zeroes.
fn take(s: &Scenario, mem: &mut Memory, pages: Mask) {
    mem.free &= !pages;
    mem.held |= pages;
    if s.zeroing {
        mem.write_zero(pages);
    }
    mem.excused |= pages;
}
