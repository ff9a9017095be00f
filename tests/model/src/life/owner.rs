//! The VM's side: its owner, its clients, its run loop.

use wherry_vmm::life::{Act, End, Event, Gate, Life, Locks, Phase, Refusal, locks, step};

use super::{CANCELLED, Command, Engine, Mistake, OPEN, System, There, Wire, World};

impl System {
    pub(super) fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// What the owner does before it looks at any event.
    fn catch_up(&self, w: &mut World) {
        if w.ended.is_some() && !self.is(Mistake::EndSeenTooLate) {
            self.end(w);
        }
        if w.killed {
            let _ = self.apply(w, Event::End(End::Kill));
        }
    }

    fn end(&self, w: &mut World) {
        if let Some(end) = w.ended {
            let _ = self.apply(w, Event::End(end));
        }
    }

    pub(super) fn event(&self, w: &mut World, event: Event) -> Result<(), Refusal> {
        self.catch_up(w);
        self.apply(w, event)?;
        self.catch_up(w);
        Ok(())
    }

    fn apply(&self, w: &mut World, event: Event) -> Result<(), Refusal> {
        let (next, act) = step(w.life, event)?;
        self.act_on(w, act, event)?;
        w.life = next;
        Ok(())
    }

    pub(super) fn command(&self, w: &mut World, command: Command) {
        let was = w.clone();
        let event = match command {
            Command::Pause => Event::Pause,
            Command::Resume => Event::Resume { force: false },
            Command::Force => Event::Resume { force: true },
            Command::Stop => Event::Touch,
            Command::Migrate => Event::Migrate,
            Command::Kill => {
                w.killed = true;
                return;
            }
            Command::Cancel => {
                if w.engine != Engine::Idle {
                    if w.token == OPEN {
                        w.token = CANCELLED;
                    }
                    w.cancel_ok |= w.token == CANCELLED || self.is(Mistake::CancelledTooLate);
                }
                return;
            }
        };
        if self.is(Mistake::ResumePassesHold)
            && command == Command::Resume
            && matches!(w.life, Life::Migrating { phase: Phase::Held, .. })
        {
            w.vcpus = true;
            return;
        }
        let touched_late = self.is(Mistake::TouchedWhileHeld)
            && command == Command::Stop
            && matches!(w.life, Life::Migrating { phase: Phase::Held, .. });
        if touched_late {
            w.touched_late = true;
            return;
        }
        if self.event(w, event).is_err() {
            return;
        }
        if command == Command::Migrate && w.disk.take(false).is_err() {
            // What another has is not handed over.
            self.engine_ended(w, false);
            return;
        }
        match command {
            Command::Pause => w.wish = false,
            Command::Resume | Command::Force => {
                w.wish = true;
                w.forced |= was.life == Life::Unknown;
                w.past_lock = !w.disk.claim.is_ours();
            }
            Command::Stop => w.touched_late |= w.engine >= Engine::Held,
            Command::Migrate => {
                (w.engine, w.token, w.cancel_ok, w.touched_late) =
                    (Engine::Rounds, OPEN, false, false);
                (w.there, w.wire) = (There::Nothing, Wire::Empty);
                (w.handed_off, w.began) = (false, false);
            }
            _ => {}
        }
    }

    /// The same with the lock let go between the steps.
    pub(super) fn begin(&self, w: &mut World, client: usize, command: Command) {
        let event =
            if command == Command::Pause { Event::Pause } else { Event::Resume { force: false } };
        if let (Ok((next, act)), Some(client)) = (step(w.life, event), w.clients.get_mut(client)) {
            client.under_way = Some((next, act, false));
        }
    }

    pub(super) fn next(&self, w: &mut World, nr: usize) {
        let Some(client) = w.clients.get_mut(nr) else { return };
        let Some((next, act, acted)) = client.under_way else { return };
        client.under_way = (!acted).then_some((next, act, true));
        if acted {
            w.life = next;
            w.wish = next == Life::Running;
        } else {
            // The machine as it was: it stopped and started for whoever asked.
            match act {
                Act::Start => w.vcpus = true,
                Act::Stop => w.vcpus = false,
                _ => {}
            }
        }
    }

    pub(super) fn reboot(&self, w: &mut World) {
        if w.life == Life::Rebooting {
            return self.arrive(w);
        }
        if self.event(w, Event::Reboot).is_ok() {
            // The old machine, and all that it said, goes.
            (w.gate, w.hold, w.vcpus) = (Gate::default(), None, false);
            w.this_ended = false;
            if !self.is(Mistake::EndOutlivesMachine) {
                w.ended = None;
            }
        }
    }

    pub(super) fn arrive(&self, w: &mut World) {
        let dead = w.ended;
        if let Some(end) = dead
            && !self.is(Mistake::DeadArrives)
        {
            let _ = self.event(w, Event::Stillborn(end));
            return;
        }
        if self.is(Mistake::NotedBeforeStarted) {
            w.to_start = true;
            if let Ok((next, _)) = step(w.life, Event::Arrived { run: true }) {
                w.life = next;
            }
            return;
        }
        if self.event(w, Event::Arrived { run: true }).is_ok() {
            w.wish = true;
            w.dead_arrived = dead.is_some();
        }
    }

    pub(super) fn look(&self, w: &mut World) {
        if std::mem::take(&mut w.to_start) {
            let _ = self.act_on(w, Act::Start, Event::Arrived { run: true });
            return;
        }
        self.catch_up(w);
        self.end(w);
    }

    /// As the product's owner does it.
    fn act_on(&self, w: &mut World, act: Act, event: Event) -> Result<(), Refusal> {
        if act == Act::StopAndCancel && w.token == OPEN && w.engine != Engine::Idle {
            w.token = CANCELLED;
        }
        let before = (w.gate, w.hold.clone());
        let turns = w.gate.apply(&mut w.hold, act)?;
        let how = locks(act, event, turns);
        let looks = act != Act::Release || !self.is(Mistake::ResumedWithoutLock);
        let force = w.disk.claim.is_forced_by(how);
        if how != Locks::AsTheyAre
            && looks
            && w.disk.take(force).is_err()
            && !force
            && how != Locks::Wanted
        {
            (w.gate, w.hold) = before;
            return Err(Refusal::DiskTaken);
        }
        if let Some(run) = turns {
            w.vcpus = run;
        }
        Ok(())
    }
}
