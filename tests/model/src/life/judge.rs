//! What may happen next, and what must never be.

use wherry_vmm::life::{End, Life};

use super::{Action, COMMANDS, Engine, System, There, Wire, World, Wrong};

impl System {
    /// What is wrong in this state; `last`: nothing can happen any more.
    pub(super) fn judge(&self, w: &World, last: bool) -> Option<Wrong> {
        let runs = w.vcpus && w.ended.is_none();
        let there = matches!(w.there, There::Runs);
        let arrived = matches!(w.there, There::Runs | There::Stands);
        let ended_here = matches!(w.life, Life::Ended(end) if end != End::Kill);
        let stopped = matches!(w.life, Life::Migrated | Life::Unknown | Life::Ended(_));
        if runs && there && !w.forced {
            return Some(Wrong::Two);
        }
        if runs && w.handed_off && !w.forced {
            return Some(Wrong::RunsAfterHandOff);
        }
        if w.vcpus && (Engine::Held..=Engine::Moved).contains(&w.engine) {
            return Some(Wrong::RunsWhileHeld);
        }
        if w.this_ended
            && !w.forced
            && (arrived || (w.vcpus && w.engine == Engine::Idle && stopped))
        {
            return Some(Wrong::EndedGuestGoesOn);
        }
        if w.dead_arrived {
            return Some(Wrong::DeadArrived);
        }
        if w.touched_late && arrived {
            return Some(Wrong::Lost);
        }
        if arrived && !w.forced && w.sent_run != w.wish {
            return Some(Wrong::Lost);
        }
        let idle = w.clients.iter().all(|c| c.under_way.is_none()) && !w.to_start;
        if idle && w.life == Life::Running && (!w.vcpus || !w.wish) {
            return Some(Wrong::Lost);
        }
        if idle && w.life == Life::Paused && w.vcpus {
            return Some(Wrong::Lost);
        }
        if w.cancel_ok && arrived {
            return Some(Wrong::CancelledAndMoved);
        }
        if w.life == Life::Unknown && !w.began {
            return Some(Wrong::UnknownForNothing);
        }
        if ended_here && !w.this_ended {
            return Some(Wrong::EndedForNothing);
        }
        let must_be_over = w.killed || w.this_ended;
        if last && must_be_over && !matches!(w.life, Life::Ended(_) | Life::Migrated) {
            return Some(Wrong::Hangs);
        }
        None
    }

    pub(super) fn steps(&self, w: &World, out: &mut Vec<Action>) {
        if w.wrong.is_some() {
            return;
        }
        if w.life == Life::Receiving && w.engine == Engine::Idle && !w.to_start {
            out.push(Action::Arrive);
        }
        for (nr, client) in (0u8..).zip(&w.clients) {
            if client.under_way.is_some() {
                out.push(Action::Next(nr));
            } else if client.left > 0 {
                out.extend(COMMANDS.map(|command| Action::Client(nr, command)));
                // Clients that can do the same are the same client.
                if w.clients.iter().all(|c| c == client) {
                    break;
                }
            }
        }
        if w.guest_ends > 0 && w.vcpus && w.ended.is_none() {
            out.extend([End::PowerOff, End::Reset, End::Fatal].map(Action::Guest));
        }
        // A machine that is built and not yet in charge.
        if w.faults > 0
            && matches!(w.life, Life::Receiving | Life::Rebooting)
            && w.ended.is_none()
            && !w.to_start
        {
            out.push(Action::DieUnborn);
        }
        out.push(Action::Look);
        if matches!(w.life, Life::Ended(End::Reset) | Life::Rebooting) && w.engine == Engine::Idle {
            out.push(Action::Reboot);
        }
        if !matches!(w.engine, Engine::Idle | Engine::Waiting) {
            out.push(Action::Engine);
        }
        // A peer that is gone for good is noticed without any fault.
        if w.engine == Engine::Waiting && (w.wire == Wire::Lost || w.there == There::Crashed) {
            out.push(Action::Fail);
        }
        if matches!(w.wire, Wire::HandOff | Wire::Running) {
            out.push(Action::Deliver);
        }
        if w.faults > 0 {
            match w.engine {
                Engine::Idle => {}
                Engine::Rounds | Engine::Held | Engine::Committed => {
                    out.extend([Action::Fail, Action::Panic, Action::Die]);
                }
                Engine::Sending => {
                    out.extend([Action::SendPart, Action::SendNothing, Action::Panic, Action::Die]);
                }
                Engine::Waiting => out.extend([Action::Panic, Action::Die]),
                Engine::Moved | Engine::Undo | Engine::Ending => out.push(Action::Die),
            }
            if matches!(w.wire, Wire::HandOff | Wire::Running) {
                out.push(Action::Lose);
            }
            if !matches!(w.there, There::Crashed) && w.engine != Engine::Idle {
                out.push(Action::Crash);
            }
        }
    }
}
