//! The engine, its network and the destination; and how each of them fails.

use wherry_vmm::life::{End, Event, Life, Phase};

use super::disk::Holder;
use super::{Action, CANCELLED, COMMITTED, Engine, Mistake, System, There, Wire, World};

impl System {
    pub(super) fn engine(&self, w: &mut World) {
        let cancelled = w.token == CANCELLED;
        w.engine = match w.engine {
            Engine::Rounds if cancelled => Engine::Undo,
            Engine::Rounds
                if self.is(Mistake::UnlockedBeforePause) && w.disk.holder == Holder::Source =>
            {
                w.disk.let_go();
                Engine::Rounds
            }
            Engine::Rounds => match self.event(w, Event::Hold) {
                Ok(()) => {
                    w.sent_run = matches!(w.life, Life::Migrating { run: true, .. });
                    Engine::Held
                }
                Err(_) => Engine::Undo,
            },
            Engine::Held if cancelled => Engine::Undo,
            Engine::Held => {
                w.disk.unflushed &= self.is(Mistake::UnlockedBeforeFlush);
                w.disk.let_go();
                w.wire = Wire::State;
                Engine::Unlocked
            }
            Engine::Loaded if cancelled => Engine::Undo,
            Engine::Loaded => {
                w.token = COMMITTED;
                Engine::Committed
            }
            Engine::Committed if self.is(Mistake::HandOffUnsaid) => Engine::Sending,
            Engine::Committed => match self.event(w, Event::HandOver) {
                Ok(()) => {
                    w.began = true;
                    Engine::Sending
                }
                Err(_) => Engine::Undo,
            },
            Engine::Sending => {
                (w.handed_off, w.wire) = (true, Wire::HandOff);
                Engine::Waiting
            }
            Engine::Moved => {
                let _ = self.event(w, Event::Hold);
                self.engine_ended(w, true);
                Engine::Idle
            }
            Engine::Undo => self.undo(w),
            Engine::Retrying => {
                let back = match w.life {
                    Life::Migrating { run: true, .. } => self.event(w, Event::Release).is_ok(),
                    _ => w.disk.take(false).is_ok(),
                };
                if back { Engine::Ending } else { Engine::Retrying }
            }
            Engine::Ending => {
                self.engine_ended(w, false);
                Engine::Idle
            }
            other => other,
        };
    }

    /// The guest goes on here, unless a byte of the hand-off left.
    fn undo(&self, w: &mut World) -> Engine {
        if !w.handed_off {
            let _ = self.event(w, Event::Release);
            if self.is(Mistake::RunsAfterFailure) {
                w.vcpus = w.ended.is_none();
            }
        } else if self.is(Mistake::TakenBackTooLate) {
            let _ = w.disk.take(false);
        }
        let Life::Migrating { phase, ended: None, .. } = w.life else { return Engine::Ending };
        let here = phase != Phase::HandingOver;
        if here && !w.disk.claim.is_ours() { Engine::Retrying } else { Engine::Ending }
    }

    pub(super) fn engine_ended(&self, w: &mut World, moved: bool) {
        let _ = self.event(w, Event::EngineEnded { moved });
    }

    pub(super) fn fault(&self, w: &mut World, action: Action) {
        w.faults -= 1;
        match action {
            Action::SendPart => {
                (w.handed_off, w.wire, w.engine) = (true, Wire::Lost, Engine::Undo);
            }
            Action::SendNothing => {
                w.began = self.event(w, Event::TakeBack).is_err();
                w.engine = Engine::Undo;
            }
            Action::Lose => w.wire = Wire::Lost,
            Action::Crash => {
                w.there = There::Crashed;
                w.disk.free(Holder::Destination);
            }
            Action::CrashHere => {
                (w.crashed, w.vcpus, w.engine) = (true, false, Engine::Idle);
                w.life = Life::Ended(End::Kill);
                w.disk.free(Holder::Source);
            }
            Action::Panic if self.is(Mistake::PanicGuessed) => {
                let _ = self.event(w, Event::Release);
                (w.life, w.engine) = (Life::Unknown, Engine::Idle);
            }
            Action::Fail | Action::Panic => w.engine = Engine::Undo,
            Action::Die => {
                self.engine_ended(w, false);
                w.engine = Engine::Idle;
                // A guest that was held stays paused, and the state says so.
                w.wish &= w.life != Life::Paused;
            }
            _ => {}
        }
    }

    pub(super) fn deliver(&self, w: &mut World) {
        let late = self.is(Mistake::LoadedBeforeLocked);
        match w.wire {
            Wire::State if w.there == There::Nothing => {
                if late || w.disk.lock(Holder::Destination) {
                    w.disk.read_early = w.disk.unflushed;
                    (w.there, w.wire) = (There::Loaded, Wire::Loaded);
                } else {
                    (w.there, w.wire) = (There::Gone, Wire::Lost);
                }
            }
            Wire::Loaded => {
                w.wire = Wire::Empty;
                if w.engine == Engine::Unlocked {
                    w.engine = Engine::Loaded;
                }
            }
            Wire::HandOff if w.there == There::Loaded => {
                if late {
                    w.disk.lock(Holder::Destination);
                }
                w.there = if w.sent_run { There::Runs } else { There::Stands };
                if w.sent_run {
                    w.disk.write();
                }
                w.wire = Wire::Running;
            }
            Wire::Running => {
                w.wire = Wire::Empty;
                if w.engine == Engine::Waiting {
                    w.engine = Engine::Moved;
                }
            }
            _ => w.wire = Wire::Lost,
        }
    }

    /// Whether the destination can know that nothing comes any more.
    pub(super) fn may_notice(&self, w: &World) -> bool {
        let under_way = (Engine::Unlocked..=Engine::Waiting).contains(&w.engine);
        w.there == There::Loaded && w.wire != Wire::HandOff && (w.wire == Wire::Lost || !under_way)
    }
}
