//! What may happen next, and what must never be.

use wherry_vmm::life::{End, Life};

use super::disk::Holder;
use super::{Action, CANCELLED, COMMANDS, Engine, System, There, Wire, World, Wrong};

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
        if let Some(wrong) = Self::judge_disk(w, runs, there, arrived) {
            return Some(wrong);
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

    /// `--force` past a lock excuses what it says; that nobody knows where the guest is does not.
    fn judge_disk(w: &World, runs: bool, there: bool, arrived: bool) -> Option<Wrong> {
        let disk = &w.disk;
        let stranger = disk.holder == Holder::Stranger;
        if [runs && !w.past_lock, there, stranger].into_iter().filter(|writes| *writes).count() > 1
        {
            return Some(Wrong::TwoWrite);
        }
        if (runs && !w.past_lock && disk.holder != Holder::Source)
            || (there && disk.holder != Holder::Destination)
            || (!w.crashed && disk.claim.is_ours() != (disk.holder == Holder::Source))
        {
            return Some(Wrong::Unlocked);
        }
        if w.handed_off && disk.holder == Holder::Source && !w.forced {
            return Some(Wrong::LockedAfterHandOff);
        }
        if (arrived && disk.read_early) || (runs && !w.past_lock && disk.is_news()) {
            return Some(Wrong::OldDisk);
        }
        None
    }

    /// What the engine notices without any fault: a peer that is gone for good, or a cancel.
    pub(super) fn fails_by_itself(&self, w: &World) -> bool {
        let gone = w.wire == Wire::Lost || matches!(w.there, There::Crashed | There::Gone);
        match w.engine {
            Engine::Unlocked => gone || w.token == CANCELLED,
            Engine::Waiting => gone,
            _ => false,
        }
    }

    fn others(&self, w: &World, out: &mut Vec<Action>) {
        if w.wire != Wire::Empty && w.wire != Wire::Lost {
            out.push(Action::Deliver);
        }
        if self.may_notice(w) {
            out.push(Action::Notice);
        }
        match w.disk.holder {
            Holder::Nobody if w.strangers > 0 => {
                out.extend([true, false].map(|writes| Action::StrangerLocks { writes }));
            }
            Holder::Stranger => out.push(Action::StrangerLeaves),
            _ => {}
        }
        if w.faults > 0
            && w.there != There::Crashed
            && (w.engine != Engine::Idle || w.disk.holder == Holder::Destination)
        {
            out.push(Action::Crash);
        }
    }

    pub(super) fn steps(&self, w: &World, out: &mut Vec<Action>) {
        if w.wrong.is_some() {
            return;
        }
        self.others(w, out);
        if w.crashed {
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
        if !matches!(w.engine, Engine::Idle | Engine::Unlocked | Engine::Waiting) {
            out.push(Action::Engine);
        }
        if self.fails_by_itself(w) {
            out.push(Action::Fail);
        }
        if w.engine == Engine::Retrying && !w.disk.is_to_be_had() {
            out.push(Action::GiveUp);
        }
        if w.faults > 0 {
            match w.engine {
                Engine::Idle => {}
                Engine::Rounds
                | Engine::Held
                | Engine::Unlocked
                | Engine::Loaded
                | Engine::Committed => {
                    out.extend([Action::Fail, Action::Panic, Action::Die]);
                }
                Engine::Sending => {
                    out.extend([Action::SendPart, Action::SendNothing, Action::Panic, Action::Die]);
                }
                Engine::Waiting => out.extend([Action::Panic, Action::Die]),
                Engine::Moved | Engine::Undo | Engine::Retrying | Engine::Ending => {
                    out.push(Action::Die);
                }
            }
            if w.wire != Wire::Empty && w.wire != Wire::Lost {
                out.push(Action::Lose);
            }
            if w.engine != Engine::Idle {
                out.push(Action::CrashHere);
            }
        }
    }
}
