//! Commands and a machine that is paused, on KVM where there is one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::net::UnixListener;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
use wherry_devices::virtio::balloon::BalloonConfig;

use super::*;
use crate::config::SerialSink;
use crate::disks::tests::{disks, image};
use crate::kvm::open_kvm;
use crate::machine::{MachineHooks, fixture};
use crate::memory::Backing;

fn controller() -> Controller {
    controller_of(Disks::default())
}

fn controller_of(disks: Disks) -> Controller {
    let (console, _) = Console::open(&SerialSink::None).unwrap().start().unwrap();
    let settings = VmSettings {
        name: "vm".into(),
        serial: "none".into(),
        vsock: Vsock::default(),
        nets: Nets::default(),
    };
    let controller = Controller::new(settings, console, Arc::new(disks));
    controller.reboots.store(true, Ordering::SeqCst);
    controller
}

/// `None` without a KVM.
fn paused() -> Option<(Controller, Arc<Machine>)> {
    paused_with(Disks::default())
}

fn paused_with(disks: Disks) -> Option<(Controller, Arc<Machine>)> {
    let description = fixture::description(1, Some(&BalloonConfig::default()))?;
    let controller = controller_of(disks);
    let (console, disks) = (controller.console.clone(), controller.disks.clone());
    let hooks = MachineHooks { console, disks, ..fixture::hooks() };
    let machine = Arc::new(Machine::build(&description, hooks).unwrap());
    controller.owner.arrive(machine.clone(), false).unwrap();
    Some((controller, machine))
}

#[test]
fn memory_for_which_the_cpu_has_no_addresses_is_refused_before_it_is_made() {
    let Some((_, machine)) = paused() else { return };
    let mut description = machine.description().clone();
    description.ram_bytes = 1 << 53;
    let refused = Machine::create_vm_and_ram(&description, &open_kvm().unwrap(), &Backing::Memfd)
        .err()
        .expect("it has 8 PiB of memory")
        .to_string();
    assert!(
        refused.contains("8589934592 MiB of guest RAM") && refused.contains("-bit"),
        "{refused}"
    );
}

/// Memory and all of the state that time alone does not change.
fn picture(machine: &Machine) -> (u64, String) {
    let mut hash = DefaultHasher::new();
    for region in machine.ram().memory().iter() {
        let mut bytes = vec![0; usize::try_from(region.len()).unwrap()];
        machine.ram().memory().read_slice(&mut bytes, region.start_addr()).unwrap();
        bytes.hash(&mut hash);
    }
    let s = machine.save(false, u16::MAX).unwrap();
    (hash.finish(), format!("{:?}", s.devices))
}

#[test]
fn no_command_changes_memory_or_state_of_a_paused_machine() {
    let Some((vm, machine)) = paused() else { return };
    let before = picture(&machine);
    vm.info();
    vm.pause().unwrap();
    vm.balloon_stats().unwrap();
    assert_eq!(vm.stop().unwrap_err().code, ErrorCode::InvalidState);
    let refused = vm.balloon_set(64 << 20).unwrap_err();
    assert_eq!(refused.message, "cannot set the balloon of a VM that is paused");
    assert_eq!(vm.migrate_cancel().unwrap_err().code, ErrorCode::InvalidState);
    let request = MigrateRequest::new("unix:/nowhere/at/all");
    let failed = vm.migrate(&request, &mut |_| ()).unwrap_err();
    assert_eq!(failed.code, ErrorCode::MigrationFailed);
    assert_eq!(picture(&machine), before);
    assert_eq!(vm.info().state, VmState::Paused);
}

#[test]
fn commands_say_why_they_are_refused_while_the_guest_is_handed_over() {
    let Some((vm, _machine)) = paused() else { return };
    vm.owner.migrate(&CancelToken::new()).unwrap();
    vm.owner.event(Event::Hold).unwrap();
    for error in [vm.stop().unwrap_err(), vm.balloon_set(1 << 20).unwrap_err()] {
        assert!(error.message.contains("is being handed over"), "{}", error.message);
    }
    assert!(vm.resume(true).unwrap_err().message.contains("migrating"));
    assert_eq!(
        vm.migrate(&MigrateRequest::new("unix:x"), &mut |_| ()).unwrap_err().code,
        ErrorCode::Busy
    );
}

#[test]
fn a_vm_that_reboots_says_so_until_its_next_machine_is_there() {
    let Some((vm, machine)) = paused() else { return };
    machine.ending.note(End::Reset, "");
    for step in 0..3 {
        match step {
            0 => {}
            1 => drop(vm.owner.event(Event::Reboot).unwrap()),
            _ => vm.replace(machine.description()),
        }
        let info = vm.info();
        assert_eq!((info.state.as_str(), info.ram_bytes), ("rebooting", 128 << 20), "step {step}");
        assert_eq!(info.kernel, Some(machine.description().shown_kernel()), "step {step}");
        let errors = [
            vm.pause().unwrap_err(),
            vm.resume(false).unwrap_err(),
            vm.stop().unwrap_err(),
            vm.balloon_set(1 << 20).unwrap_err(),
            vm.migrate(&MigrateRequest::new("unix:x"), &mut |_| ()).unwrap_err(),
        ];
        for error in errors {
            assert!(
                error.message.ends_with(" a VM that is rebooting"),
                "step {step}: {}",
                error.message
            );
        }
    }
    let error = vm.balloon_stats().unwrap_err();
    assert!(error.message.ends_with("a VM that is rebooting"), "{}", error.message);
}

#[test]
fn cancel_says_what_became_of_the_migration() {
    let said = |vm: &Controller| vm.migrate_cancel().unwrap_err();
    for moved in [true, false] {
        let Some((vm, _machine)) = paused() else { return };
        assert_eq!(said(&vm).message, "no migration is under way");
        vm.owner.migrate(&CancelToken::new()).unwrap();
        vm.owner.event(Event::Hold).unwrap();
        vm.owner.event(Event::HandOver).unwrap();
        vm.owner.engine_ended(moved);
        let error = said(&vm);
        assert!(error.message.starts_with("it is too late to cancel: "), "{}", error.message);
        assert_eq!(error.code == ErrorCode::MigrationUnknown, !moved, "{}", error.message);
    }
    let Some((vm, machine)) = paused() else { return };
    machine.ending.note(End::PowerOff, "");
    assert_eq!(said(&vm).message, "no migration is under way: the VM has ended");
}

#[test]
fn what_is_said_of_a_guest_that_ended_while_it_migrated_is_true() {
    let Some((vm, _machine)) = paused() else { return };
    let said = |end| vm.ended_meanwhile(end, "");
    let off = said(End::PowerOff);
    assert_eq!(off.message, "the guest powered off while it migrated");
    assert_eq!(off.hint.as_deref(), Some("`vm` has ended; nothing runs at the destination"));
    assert_eq!(said(End::Kill).message, "the VM was killed while it migrated");
    assert!(said(End::Reset).hint.unwrap().contains("starts again here"));
}

/// Migrates to a peer that hangs up after `then`, when the engine has said its first word.
fn migrate_in_vain(
    vm: &Controller,
    trace: bool,
    tell: &mut dyn FnMut(Update),
    then: impl FnOnce() + Send,
) -> ControlError {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("peer");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut peer = listener.accept().unwrap().0;
            peer.read_exact(&mut [0]).unwrap();
            then();
        });
        let request = MigrateRequest::new(format!("unix:{}", path.display()));
        vm.migrate(&MigrateRequest { trace, ..request }, tell).unwrap_err()
    })
}

#[test]
fn what_ended_the_guest_in_the_middle_of_a_migration_is_said() {
    for (end, text) in [
        (End::PowerOff, "the guest powered off while it migrated"),
        (End::Fatal, "the guest crashed while it migrated: lost its way"),
        (End::Kill, "the VM was killed while it migrated"),
    ] {
        let Some((vm, machine)) = paused() else { return };
        let error = migrate_in_vain(&vm, false, &mut |_| (), || {
            match end {
                End::Kill => vm.kill(),
                _ => machine.ending.note(end, "lost its way"),
            }
            // The run loop looks, which cancels the migration.
            vm.owner.life();
        });
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::MigrationFailed, text));
        assert_eq!(vm.owner.life(), Life::Ended(end));
    }
}

#[test]
fn a_migration_that_panics_leaves_the_guest_here() {
    let Some((vm, _machine)) = paused() else { return };
    let error = migrate_in_vain(&vm, true, &mut |_| panic!("injected"), || ());
    assert!(error.message.contains("panicked"), "{}", error.message);
    assert_eq!((error.code, vm.info().state), (ErrorCode::MigrationFailed, VmState::Paused));
    let error = migrate_in_vain(&vm, false, &mut |_| (), || ());
    assert!(!error.message.contains("panicked"), "it can be tried again: {}", error.message);
}

#[test]
fn one_console_too_many_is_refused_before_it_is_granted() {
    let vm = controller();
    let mut users = Vec::new();
    let refused = loop {
        let (ours, theirs) = UnixStream::pair().unwrap();
        if let Err(refused) = vm.check_console() {
            break refused;
        }
        vm.attach_console(ours).unwrap();
        users.push(theirs);
    };
    assert_eq!(refused.code, ErrorCode::Busy);
    assert_eq!(refused.message, format!("{} consoles are attached already", users.len()));
    assert!(refused.hint.unwrap().contains("Ctrl-]"));
    users.pop();
    vm.check_console().unwrap();
}

#[test]
fn a_guest_whose_disk_somebody_else_has_does_not_migrate_and_says_so_until_it_is_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let config = image(temp.path(), "a", 8);
    let Some((vm, _machine)) = paused_with(disks(&config)) else { return };
    let stranger = disks(&config);
    vm.disks.describe().unwrap();
    vm.disks.let_go().unwrap();
    stranger.describe().unwrap();
    let migrate = || vm.migrate(&MigrateRequest::new("unix:/nowhere/at/all"), &mut |_| ());
    let refused = migrate().unwrap_err();
    assert_eq!(refused.code, ErrorCode::DiskTaken, "{}", refused.message);
    assert_eq!(vm.info().state, VmState::LockLost);
    assert_eq!(vm.resume(false).unwrap_err().code, ErrorCode::DiskTaken);
    drop(stranger);
    // It gets as far as the peer that is not there.
    assert_eq!(migrate().unwrap_err().code, ErrorCode::MigrationFailed);
    assert_eq!(vm.info().state, VmState::Paused);
}

#[test]
fn a_migration_is_cancelled_that_still_reads_what_the_guest_boots() {
    let Some(mut description) = fixture::description(1, None) else { return };
    let (gone, source) = fixture::file_that_hangs();
    description.reset.sources.kernel = Some(source);
    description.reset.boots = true;
    let vm = controller();
    let machine = Arc::new(Machine::build(&description, fixture::hooks()).unwrap());
    vm.owner.arrive(machine, false).unwrap();
    let request = MigrateRequest::new("unix:/nowhere/at/all");
    let result = std::thread::scope(|scope| {
        let migrating = scope.spawn(|| vm.migrate(&request, &mut |_| ()));
        while !matches!(vm.owner.life(), Life::Migrating { .. }) {
            std::thread::sleep(Duration::from_millis(1));
        }
        vm.migrate_cancel().unwrap();
        migrating.join().unwrap()
    });
    let error = result.unwrap_err();
    assert_eq!(error.code, ErrorCode::Cancelled);
    assert!(error.message.contains("what the guest boots"), "{error}");
    assert_eq!(vm.info().state, VmState::Paused);
    drop(gone);
}
