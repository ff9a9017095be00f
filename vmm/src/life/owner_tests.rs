//! Commands that meet: each order is forced by a machine that stands still in the middle of what it
//! does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, OnceLock, Weak};
use std::thread;

use super::*;
use crate::life::Phase;

/// A machine that says when it halts or goes, and does it only then.
#[derive(Default)]
struct Fake {
    owner: OnceLock<Weak<Owner<Fake>>>,
    gate: Mutex<Gate>,
    ended: Mutex<Option<End>>,
    runs: AtomicBool,
    /// A device has work that does not end.
    busy: AtomicBool,
    /// Somebody else has one of its disks.
    taken: AtomicBool,
    /// How often it was asked for its disks.
    asked: AtomicUsize,
    /// Met at the beginning and at the end of the next `halt` or `go`.
    meet: Mutex<Option<Arc<Barrier>>>,
}

impl Fake {
    fn turn(&self, runs: bool) {
        let owner = self.owner.get().and_then(Weak::upgrade);
        let alone = owner.is_none_or(|owner| owner.inner.try_lock().is_err());
        let meet = lock(&self.meet).take();
        if let Some(meet) = &meet {
            meet.wait();
            meet.wait();
        }
        assert!(alone, "done without the lock: others come between");
        self.runs.store(runs, SeqCst);
    }

    fn start_from_outside(&self) -> Result<Option<bool>, Refusal> {
        lock(&self.gate).apply(&mut None, Act::Start)
    }

    fn runs(&self) -> bool {
        self.runs.load(SeqCst)
    }

    /// The next change of "runs" stops before it happens, and after this was met twice goes on.
    fn stop_at_next(&self) -> Arc<Barrier> {
        let meet = Arc::new(Barrier::new(2));
        *lock(&self.meet) = Some(meet.clone());
        meet
    }
}

impl Vcpus for Fake {
    fn gate(&self) -> &Mutex<Gate> {
        &self.gate
    }

    fn halt(&self) -> Result<(), Refusal> {
        self.turn(false);
        if self.busy.load(SeqCst) { Err(Refusal::Unfinished) } else { Ok(()) }
    }

    fn ready(&self, how: Locks) -> Result<(), Refusal> {
        self.asked.fetch_add(1, SeqCst);
        if self.taken.load(SeqCst) && how != Locks::Forced {
            Err(Refusal::DiskTaken)
        } else {
            Ok(())
        }
    }

    fn go(&self) {
        self.turn(true);
    }

    fn ended(&self) -> Option<End> {
        *lock(&self.ended)
    }
}

fn running() -> (Arc<Owner<Fake>>, Arc<Fake>) {
    let (owner, machine) = (Arc::new(Owner::default()), Arc::new(Fake::default()));
    machine.owner.set(Arc::downgrade(&owner)).unwrap();
    owner.arrive(machine.clone(), true).unwrap();
    (owner, machine)
}

/// Up to the moment before the hand-off.
fn held(owner: &Owner<Fake>) {
    owner.migrate(&CancelToken::new()).unwrap();
    owner.event(Event::Hold).unwrap();
}

#[test]
fn a_guest_whose_disk_somebody_else_has_stays_paused_until_a_person_says_otherwise() {
    for run in [true, false] {
        let (owner, machine) = running();
        if !run {
            owner.event(Event::Pause).unwrap();
        }
        held(&owner);
        machine.taken.store(true, SeqCst);
        // The migration has failed.
        assert_eq!(owner.event(Event::Release).is_err(), run, "it would write beside another");
        // Whoever waits for the disk asks again; a command meanwhile is refused and not lost.
        assert!(owner.event(Event::Pause).is_err() || !run);
        if run {
            assert_eq!(owner.event(Event::Release), Err(Refusal::DiskTaken));
        }
        assert_eq!(owner.engine_ended(false), (Life::Paused, None));
        let resume = |force| owner.event(Event::Resume { force });
        assert_eq!(resume(false), Err(Refusal::DiskTaken));
        assert_eq!((owner.life(), machine.runs()), (Life::Paused, false));
        if run {
            machine.taken.store(false, SeqCst);
            assert_eq!(resume(false), Ok(Life::Running));
        } else {
            assert_eq!(resume(true), Ok(Life::Running));
        }
        assert!(machine.runs());
    }
}

#[test]
fn resume_takes_the_disk_of_a_guest_that_runs_without_it() {
    let (owner, machine) = running();
    let asked = || machine.asked.swap(0, SeqCst);
    assert_eq!(asked(), 1);
    for taken in [true, false] {
        machine.taken.store(taken, SeqCst);
        assert_eq!(owner.event(Event::Resume { force: false }), Ok(Life::Running));
        assert_eq!((asked(), machine.runs()), (1, true));
    }
}

#[test]
fn a_lock_that_somebody_has_outweighs_the_word_that_the_guest_runs_nowhere_else() {
    let (owner, machine) = running();
    held(&owner);
    owner.event(Event::HandOver).unwrap();
    assert_eq!(owner.engine_ended(false), (Life::Unknown, None));
    machine.taken.store(true, SeqCst);
    assert_eq!(owner.event(Event::Resume { force: true }), Err(Refusal::DiskTaken));
    assert_eq!((owner.life(), machine.runs()), (Life::Unknown, false));
    machine.taken.store(false, SeqCst);
    assert_eq!(owner.event(Event::Resume { force: true }), Ok(Life::Running));
}

#[test]
fn a_device_that_does_not_come_to_rest_fails_the_switchover_and_the_guest_goes_on() {
    let (owner, machine) = running();
    machine.busy.store(true, SeqCst);
    assert_eq!(owner.event(Event::Pause), Err(Refusal::Unfinished));
    assert_eq!((owner.life(), machine.runs()), (Life::Running, true));
    owner.migrate(&CancelToken::new()).unwrap();
    let before = owner.life();
    assert_eq!(owner.event(Event::Hold), Err(Refusal::Unfinished));
    assert_eq!((owner.life(), machine.runs()), (before, true));
    assert_eq!(owner.event(Event::Release), Ok(before), "nothing is held");
    owner.engine_ended(false);
    assert_eq!((owner.life(), machine.runs()), (Life::Running, true));
    // It is over: nobody waits for it.
    *lock(&machine.ended) = Some(End::PowerOff);
    assert_eq!((owner.life(), machine.runs()), (Life::Ended(End::PowerOff), false));
}

#[test]
fn pause_beside_migrate_then_resume_never_runs_what_was_handed_over() {
    let (owner, machine) = running();
    let meet = machine.stop_at_next();
    let pausing = thread::spawn({
        let owner = owner.clone();
        move || owner.event(Event::Pause)
    });
    meet.wait();
    // The machine is being paused. A migration that begins now waits for it and finds a paused VM.
    let migrating = thread::spawn({
        let owner = owner.clone();
        move || owner.migrate(&CancelToken::new()).map(|(_, run)| run)
    });
    meet.wait();
    assert_eq!(pausing.join().unwrap(), Ok(Life::Paused));
    assert_eq!(migrating.join().unwrap(), Ok(false), "it arrives paused");
    let refused = owner.event(Event::Resume { force: false });
    assert!(matches!(refused, Err(Refusal::State(Life::Migrating { .. }))), "{refused:?}");
    owner.event(Event::Hold).unwrap();
    owner.event(Event::HandOver).unwrap();
    for force in [false, true] {
        assert!(owner.event(Event::Resume { force }).is_err());
    }
    assert_eq!(owner.engine_ended(false).0, Life::Unknown);
    assert_eq!(owner.event(Event::Resume { force: false }), Err(Refusal::State(Life::Unknown)));
    assert!(!machine.runs());
    owner.event(Event::Resume { force: true }).unwrap();
    assert!(machine.runs());
}

#[test]
fn a_resume_that_meets_a_migrate_counts() {
    let (owner, machine) = running();
    owner.event(Event::Pause).unwrap();
    let meet = machine.stop_at_next();
    let resuming = thread::spawn({
        let owner = owner.clone();
        move || owner.event(Event::Resume { force: false })
    });
    meet.wait();
    let migrating = thread::spawn({
        let owner = owner.clone();
        move || owner.migrate(&CancelToken::new()).map(|(_, run)| run)
    });
    meet.wait();
    assert_eq!(resuming.join().unwrap(), Ok(Life::Running));
    assert_eq!(migrating.join().unwrap(), Ok(true), "the guest runs on where it arrives");
}

#[test]
fn a_machine_that_is_held_is_started_by_nobody_else() {
    let (owner, machine) = running();
    held(&owner);
    assert_eq!(machine.start_from_outside(), Err(Refusal::BeingHandedOver));
    owner.event(Event::HandOver).unwrap();
    assert_eq!(machine.start_from_outside(), Err(Refusal::State(Life::Unknown)));
    assert!(!machine.runs());
    assert_eq!(owner.engine_ended(true), (Life::Migrated, None));
    assert_eq!(machine.start_from_outside(), Err(Refusal::State(Life::Unknown)), "for good");
}

#[test]
fn a_hand_off_is_refused_if_the_machine_ran_since_it_was_held() {
    let (owner, machine) = running();
    held(&owner);
    // What no command can do any more: somebody starts the machine behind its owner's back, and
    // stops and even holds it again.
    for act in [Act::StartAnyway, Act::Stop, Act::Hold] {
        lock(machine.gate()).apply(&mut None, act).unwrap();
        assert!(owner.event(Event::HandOver).is_err(), "after {act:?}");
    }
}

#[test]
fn a_failed_migration_leaves_the_guest_as_it_was() {
    for paused in [false, true] {
        let (owner, machine) = running();
        if paused {
            owner.event(Event::Pause).unwrap();
        }
        held(&owner);
        owner.event(Event::HandOver).unwrap();
        owner.event(Event::TakeBack).unwrap();
        owner.event(Event::Release).unwrap();
        let (life, ended) = owner.engine_ended(false);
        assert_eq!((life, ended), (if paused { Life::Paused } else { Life::Running }, None));
        assert_eq!(machine.runs(), !paused);
        owner.event(Event::Resume { force: false }).unwrap();
        assert!(machine.runs());
    }
}

#[test]
fn a_guest_that_has_ended_is_not_migrated_and_does_not_run_again() {
    let (owner, machine) = running();
    *lock(&machine.ended) = Some(End::PowerOff);
    let refused = owner.migrate(&CancelToken::new()).err();
    assert_eq!(refused, Some(Refusal::State(Life::Ended(End::PowerOff))));
    assert!(!machine.runs());

    // In the middle of a migration: the last exit of a vCPU that was being stopped.
    let (owner, machine) = running();
    let cancel = CancelToken::new();
    owner.migrate(&cancel).unwrap();
    let meet = machine.stop_at_next();
    let holding = thread::spawn({
        let owner = owner.clone();
        move || owner.event(Event::Hold)
    });
    meet.wait();
    *lock(&machine.ended) = Some(End::PowerOff);
    meet.wait();
    holding.join().unwrap().unwrap();
    assert!(cancel.is_cancelled());
    assert!(owner.event(Event::HandOver).is_err());
    owner.event(Event::Release).unwrap();
    assert_eq!(owner.engine_ended(false), (Life::Ended(End::PowerOff), Some(End::PowerOff)));
    assert!(!machine.runs());

    // Seen by nobody before the engine has ended.
    let (owner, machine) = running();
    owner.migrate(&CancelToken::new()).unwrap();
    *lock(&machine.ended) = Some(End::PowerOff);
    assert_eq!(owner.engine_ended(false), (Life::Ended(End::PowerOff), Some(End::PowerOff)));
    assert!(!machine.runs());
}

#[test]
fn a_machine_that_died_before_it_was_in_charge_does_not_arrive() {
    let dead = || {
        let machine = Arc::new(Fake::default());
        *lock(&machine.ended) = Some(End::Fatal);
        machine
    };
    let over = Life::Ended(End::Fatal);
    for run in [true, false] {
        let (owner, machine) = (Owner::<Fake>::default(), dead());
        assert_eq!(owner.arrive(machine.clone(), run), Err(Refusal::State(over)));
        assert!(!machine.runs() && owner.machine().0.is_none());
        assert_eq!(owner.life(), over);
    }
    // The one that is built after a reset.
    let (owner, machine) = running();
    *lock(&machine.ended) = Some(End::Reset);
    owner.event(Event::Reboot).unwrap();
    owner.clear();
    let next = dead();
    assert_eq!(owner.arrive(next.clone(), true), Err(Refusal::State(over)));
    assert!(!next.runs());
    assert_eq!(owner.life(), over);
}

#[test]
fn what_a_machine_said_does_not_reach_the_next() {
    let (owner, machine) = running();
    *lock(&machine.ended) = Some(End::Reset);
    assert_eq!(owner.life(), Life::Ended(End::Reset));
    owner.event(Event::Reboot).unwrap();
    owner.clear();
    assert_eq!(owner.event(Event::Pause), Err(Refusal::State(Life::Rebooting)));
    let next = Arc::new(Fake::default());
    owner.arrive(next.clone(), true).unwrap();
    // The old one is still about.
    *lock(&machine.ended) = Some(End::PowerOff);
    assert_eq!(owner.life(), Life::Running);
    assert!(next.runs());
}

#[test]
fn a_vm_that_is_killed_while_it_reboots_or_receives_ends() {
    let (owner, machine) = running();
    *lock(&machine.ended) = Some(End::Reset);
    assert_eq!(owner.event(Event::Reboot), Ok(Life::Rebooting));
    owner.clear();
    owner.kill();
    assert!(owner.killed_within(Duration::from_secs(60)));
    let next = Arc::new(Fake::default());
    assert!(owner.arrive(next.clone(), true).is_err() && !next.runs());
    assert_eq!(owner.life(), Life::Ended(End::Kill));

    let owner = Owner::<Fake>::default();
    owner.kill();
    let arrived = Arc::new(Fake::default());
    assert!(owner.arrive(arrived.clone(), true).is_err() && !arrived.runs());
}

#[test]
fn kill_and_cancel_get_through_while_the_machine_is_being_stopped() {
    let (owner, machine) = running();
    let cancel = CancelToken::new();
    owner.migrate(&cancel).unwrap();
    let meet = machine.stop_at_next();
    let holding = thread::spawn({
        let owner = owner.clone();
        move || owner.event(Event::Hold)
    });
    meet.wait();
    // Neither of these waits for the one that is stopping the machine.
    assert_eq!(owner.cancel(), Some(true));
    owner.kill();
    meet.wait();
    assert!(holding.join().unwrap().is_ok());
    assert!(matches!(
        owner.life(),
        Life::Migrating { ended: Some(End::Kill), phase: Phase::Held, .. }
    ));
    owner.event(Event::Release).unwrap();
    assert_eq!(owner.engine_ended(false).0, Life::Ended(End::Kill));
    assert!(!machine.runs());
}

#[test]
fn commands_that_would_be_lost_are_refused_by_name() {
    let (owner, _machine) = running();
    let touched = |owner: &Owner<Fake>| owner.touch(Event::Touch, |_| ()).map(|_| ());
    assert_eq!(touched(&owner), Ok(()));
    owner.migrate(&CancelToken::new()).unwrap();
    assert_eq!(touched(&owner), Ok(()), "the state that is sent later has it");
    owner.event(Event::Hold).unwrap();
    assert_eq!(touched(&owner), Err(Refusal::BeingHandedOver));
    owner.event(Event::HandOver).unwrap();
    assert_eq!(touched(&owner), Err(Refusal::BeingHandedOver));
    owner.engine_ended(false);
    assert_eq!(touched(&owner), Err(Refusal::State(Life::Unknown)));
}

#[test]
fn an_engine_that_dies_is_not_guessed_about() {
    let (owner, machine) = running();
    owner.migrate(&CancelToken::new()).unwrap();
    assert_eq!(owner.engine_ended(false).0, Life::Running);
    held(&owner);
    assert_eq!(
        owner.engine_ended(false).0,
        Life::Paused,
        "held by nobody: here, and a person resumes it"
    );
    assert!(!machine.runs());
    owner.event(Event::Resume { force: false }).unwrap();
    assert!(machine.runs());
    held(&owner);
    owner.event(Event::HandOver).unwrap();
    assert_eq!(owner.engine_ended(false).0, Life::Unknown);
}

#[test]
fn the_run_loop_wakes_for_each_end() {
    let (owner, machine) = running();
    let waiting = thread::spawn({
        let owner = owner.clone();
        move || owner.wait(|life| matches!(life, Life::Ended(_)).then_some(life))
    });
    *lock(&machine.ended) = Some(End::Fatal);
    owner.poke();
    assert_eq!(waiting.join().unwrap(), Life::Ended(End::Fatal));
}
