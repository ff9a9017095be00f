//! Commands and a machine that is paused, on KVM where there is one.

use std::hash::{DefaultHasher, Hash, Hasher};

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::super::{Description, Kernel, MachineHooks};
use super::*;
use crate::config::BalloonOptions;

fn paused() -> Option<(Controller, Arc<Machine>)> {
    let kernel = Kernel { path: "none".into(), initrd: None, cmdline: String::new() };
    let description = Description::new(128 << 20, 1, BalloonOptions::default(), kernel).ok()?;
    let (console, _) = Console::open(&SerialSink::None).unwrap();
    let identity = Identity { name: "vm".into(), kernel: None, serial: "none".into(), reboot: true };
    let controller = Controller::new(identity, console.clone());
    let hooks = MachineHooks { console, wake: Arc::new(|| ()) };
    let machine = Arc::new(Machine::build(&description, hooks).ok()?);
    controller.owner().arrive(machine.clone(), false).unwrap();
    Some((controller, machine))
}

/// Memory and all of the state that time alone does not change.
fn picture(machine: &Machine) -> (u64, String) {
    let mut hash = DefaultHasher::new();
    for region in machine.ram().memory().iter() {
        let mut bytes = vec![0; usize::try_from(region.len()).unwrap()];
        machine.ram().memory().read_slice(&mut bytes, region.start_addr()).unwrap();
        bytes.hash(&mut hash);
    }
    let s = machine.save(false).unwrap();
    (hash.finish(), format!("{:?} {:?} {:?}", s.serial, s.power, s.balloon))
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
    vm.owner().migrate(&CancelToken::new()).unwrap();
    vm.owner().event(Event::Hold).unwrap();
    for error in [vm.stop().unwrap_err(), vm.balloon_set(1 << 20).unwrap_err()] {
        assert!(error.message.contains("is being handed over"), "{}", error.message);
    }
    assert!(vm.resume(true).unwrap_err().message.contains("migrating"));
    assert_eq!(vm.migrate(&MigrateRequest::new("unix:x"), &mut |_| ()).unwrap_err().code, ErrorCode::Busy);
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
