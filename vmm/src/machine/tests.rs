//! A machine that stands still, on KVM where there is one.

use kvm_bindings::kvm_clock_data;
use wherry_devices::host::Host as _;
use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::DirtyLog as _;

use super::*;
use crate::kvm::open_kvm;
use crate::memory::Backing;

/// On a host whose TSC is unstable KVM lets a guest's TSC stand still while its vCPU does not run.
/// Here its clock jumps, which looks the same: an hour passes on it, and none on the TSCs. What is
/// saved follows from what they were when the vCPUs parked.
#[test]
fn a_tsc_that_stands_still_in_a_pause_is_made_up_for() {
    let Some(description) = fixture::description(2, None) else { return };
    let machine = Machine::build(&description, fixture::hooks()).unwrap();
    machine.halt().unwrap();
    let save = || machine.save(true, u16::MAX).unwrap();
    let before = save();
    const HOUR: u64 = 3_600_000_000_000;
    let clock = before.vm.clock_ns + HOUR;
    machine.vm.set_clock(&kvm_clock_data { clock, ..Default::default() }).unwrap();
    let went_on = || {
        let pairs = before.vcpus.iter().zip(save().vcpus);
        let ticks = pairs.map(|(before, after)| after.tsc.wrapping_sub(before.tsc));
        ticks.map(|n| n / u64::from(description.cpu.tsc_khz)).collect::<Vec<_>>()
    };
    let ms = went_on();
    assert!(ms.iter().all(|ms| *ms > 3_590_000), "by {ms:?} ms in an hour");
    // Once they have run, what they show is right again.
    machine.go();
    machine.halt().unwrap();
    let ms = went_on();
    assert!(ms.iter().all(|ms| *ms < 3_590_000), "by {ms:?} ms, for a pause that is over");
}

#[test]
fn kvms_log_has_every_page_at_first_and_a_harvest_takes_them() {
    let Some(description) = fixture::description(1, None) else { return };
    let machine = Machine::build(&description, fixture::hooks()).unwrap();
    machine.halt().unwrap();
    let pages = description.ram_bytes / 4096;
    let harvest = || {
        let mut dirty = Bitmap::new(pages);
        machine.log.harvest(&mut dirty).unwrap();
        dirty.count()
    };
    machine.log.start().unwrap();
    machine.log.protect(0, 128).unwrap();
    // Twice into the same room: what was there before does not count.
    assert_eq!([harvest(), harvest()], [pages - 128, 0]);
    machine.log.stop().unwrap();
}

/// The thread may do less than it takes to put a VM away, and behind a disk that hangs it ends
/// last.
#[test]
fn what_a_disks_thread_has_of_its_vm_does_not_keep_it() {
    let Some(description) = fixture::description(1, None) else { return };
    let kvm = open_kvm().unwrap();
    let (vm, ram) = Machine::create_vm_and_ram(&description, &kvm, &Backing::Memfd).unwrap();
    let hooks = fixture::hooks();
    let ending = Arc::new(Ending::new(hooks.wake.clone()));
    let host = MachineHost { vm: &vm, ram: &ram, ending: &ending, hooks: &hooks };
    let full = host.disk_full();
    let disks = Arc::downgrade(&hooks.disks);
    drop(hooks);
    assert!(disks.upgrade().is_none());
    assert!(full.disk_full("disk0"));
}
