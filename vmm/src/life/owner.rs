//! The one owner of "who runs": the state of a VM and its machine, under one lock.
//!
//! Every change of state is done under the lock without a gap: look, decide ([`step`]), act on the
//! machine, note. The guest's own end is looked at first, so no decision is made on a machine that
//! is over already.
//!
//! Three things do not wait for that lock, so that they get through whatever holds it: the guest's
//! end (a slot of the machine), `kill` (a flag), and `cancel` (the token's atomic).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use wherry_migration::CancelToken;

use super::wake::Wake;
use super::{Act, End, Event, Gate, Hold, Life, Locks, Phase, Refusal, locks, step};
use crate::sync::lock;

/// A machine as its owner sees it.
pub trait Vcpus: Send + Sync {
    /// The machine's own wall.
    fn gate(&self) -> &Mutex<Gate>;

    /// Stops vCPUs, then devices. Returns when they stand still.
    ///
    /// # Errors
    /// [`Refusal::Unfinished`]. The machine stands still all the same, as far as it can:
    /// [`go`](Self::go) lets it go on.
    fn halt(&self) -> Result<(), Refusal>;

    /// Takes back what a machine that goes on must have to itself.
    ///
    /// # Errors
    /// [`Refusal::DiskTaken`]. It must not go.
    fn ready(&self, how: Locks) -> Result<(), Refusal>;

    /// Starts devices, then vCPUs.
    fn go(&self);

    /// What the guest did to end itself.
    fn ended(&self) -> Option<End>;
}

struct Inner<M> {
    life: Life,
    machine: Option<Arc<M>>,
    hold: Option<Hold>,
}

/// See the module's text.
pub struct Owner<M> {
    inner: Mutex<Inner<M>>,
    wake: Arc<Wake>,
    cancel: Mutex<Option<CancelToken>>,
}

impl<M: Vcpus> Default for Owner<M> {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner { life: Life::Receiving, machine: None, hold: None }),
            wake: Arc::default(),
            cancel: Mutex::new(None),
        }
    }
}

impl<M: Vcpus> Owner<M> {
    /// The state, with everything in it that the guest did.
    pub fn life(&self) -> Life {
        let mut inner = lock(&self.inner);
        self.catch_up(&mut inner);
        inner.life
    }

    /// The machine in charge, if there is one, and the state.
    pub fn machine(&self) -> (Option<Arc<M>>, Life) {
        let mut inner = lock(&self.inner);
        self.catch_up(&mut inner);
        (inner.machine.clone(), inner.life)
    }

    /// Lets an event happen. Returns the state after it.
    ///
    /// # Errors
    /// It is refused; nothing has changed.
    pub fn event(&self, event: Event) -> Result<Life, Refusal> {
        self.touch(event, |_| ()).map(|(life, ())| life)
    }

    /// As [`event`](Self::event), and runs `work` on the machine before anything else can happen.
    /// `work` must not wait.
    ///
    /// # Errors
    /// As there, and if there is no machine.
    pub fn touch<T>(&self, event: Event, work: impl FnOnce(&M) -> T) -> Result<(Life, T), Refusal> {
        let mut inner = lock(&self.inner);
        self.catch_up(&mut inner);
        self.apply(&mut inner, event)?;
        // A guest may have ended itself while it was stopped.
        self.catch_up(&mut inner);
        let done = inner.machine.as_deref().map(work).ok_or(Refusal::State(inner.life))?;
        let life = inner.life;
        drop(inner);
        self.poke();
        Ok((life, done))
    }

    /// Puts a machine in charge and, if it is to `run`, starts it.
    ///
    /// # Errors
    /// The VM was ended meanwhile, or the machine is over already: then it never was in charge.
    pub fn arrive(&self, machine: Arc<M>, run: bool) -> Result<(), Refusal> {
        let mut inner = lock(&self.inner);
        self.catch_up(&mut inner);
        if let Some(end) = machine.ended() {
            self.apply(&mut inner, Event::Stillborn(end))?;
            return Err(Refusal::State(inner.life));
        }
        let before = inner.machine.replace(machine);
        inner.hold = None;
        let arrived = self.apply(&mut inner, Event::Arrived { run });
        if arrived.is_err() {
            inner.machine = before;
        }
        arrived
    }

    /// Begins a migration that `cancel` cancels. Returns the machine, and whether its guest runs.
    ///
    /// # Errors
    /// Not in this state.
    pub fn migrate(&self, cancel: &CancelToken) -> Result<(Arc<M>, bool), Refusal> {
        let mut inner = lock(&self.inner);
        self.catch_up(&mut inner);
        let machine = inner.machine.clone().ok_or(Refusal::State(inner.life))?;
        self.apply(&mut inner, Event::Migrate)?;
        *lock(&self.cancel) = Some(cancel.clone());
        Ok((machine, matches!(inner.life, Life::Migrating { run: true, .. })))
    }

    /// Ends a migration. Returns the state before and after, and how the guest ended meanwhile.
    pub fn engine_ended(&self, moved: bool) -> (Life, Option<End>) {
        let mut inner = lock(&self.inner);
        self.catch_up(&mut inner);
        *lock(&self.cancel) = None;
        let ended = match inner.life {
            Life::Migrating { ended, .. } => ended,
            _ => None,
        };
        // Only a migration ends one: refused means that it has ended already.
        let _ = self.apply(&mut inner, Event::EngineEnded { moved });
        let life = inner.life;
        drop(inner);
        self.poke();
        (life, ended)
    }

    /// Whether a hand-off has begun.
    pub fn handed_over(&self) -> bool {
        matches!(lock(&self.inner).life, Life::Migrating { phase: Phase::HandingOver, .. })
    }

    /// Cancels the migration under way. `None` if there is none; false if it is too late.
    pub fn cancel(&self) -> Option<bool> {
        lock(&self.cancel).as_ref().map(CancelToken::cancel)
    }

    /// Takes the machine away: it is over, or being built anew.
    pub fn clear(&self) {
        lock(&self.inner).machine = None;
    }

    /// Ends the VM as soon as that can be. Never waits.
    pub fn kill(&self) {
        self.wake.kill();
    }

    /// Wakes the run loop.
    pub fn poke(&self) {
        self.wake.poke();
    }

    /// What wakes it.
    pub fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    /// Waits until `ready` of the state gives something; looks again whenever something happened.
    pub fn wait<T>(&self, mut ready: impl FnMut(Life) -> Option<T>) -> T {
        loop {
            if let Some(done) = ready(self.life()) {
                return done;
            }
            self.wake.wait();
        }
    }

    /// Waits for `time`, less if the VM is killed. Whether it was.
    pub fn killed_within(&self, time: Duration) -> bool {
        self.wake.killed_within(time)
    }

    /// What the guest and `kill` did since anybody looked.
    fn catch_up(&self, inner: &mut Inner<M>) {
        let killed = self.wake.is_killed().then_some(End::Kill);
        let ended = inner.machine.as_ref().and_then(|m| m.ended());
        for end in [ended, killed].into_iter().flatten() {
            // An end is never refused.
            let _ = self.apply(inner, Event::End(end));
        }
    }

    fn apply(&self, inner: &mut Inner<M>, event: Event) -> Result<(), Refusal> {
        let (next, act) = step(inner.life, event)?;
        // The machine's own wall: what it says is final.
        self.act(inner, act, event)?;
        inner.life = next;
        Ok(())
    }

    fn act(&self, inner: &mut Inner<M>, act: Act, event: Event) -> Result<(), Refusal> {
        if act == Act::StopAndCancel
            && let Some(cancel) = &*lock(&self.cancel)
        {
            cancel.cancel();
        }
        let Some(machine) = &inner.machine else { return Ok(()) };
        // Locked until the machine has done it.
        let mut gate = lock(machine.gate());
        let before = (*gate, inner.hold.clone());
        let turns = gate.apply(&mut inner.hold, act)?;
        let how = locks(act, event, turns);
        if how != Locks::AsTheyAre
            && let Err(refusal) = machine.ready(how)
            && how != Locks::Wanted
        {
            (*gate, inner.hold) = before;
            return Err(refusal);
        }
        match turns {
            Some(true) => machine.go(),
            Some(false) => {
                // One that is to go on, here or elsewhere, does so as before; one that is over
                // does not.
                if let Err(refusal) = machine.halt()
                    && matches!(event, Event::Pause | Event::Hold)
                {
                    (*gate, inner.hold) = before;
                    machine.go();
                    return Err(refusal);
                }
            }
            None => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
