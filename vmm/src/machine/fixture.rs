//! Machines for tests: without a kernel, on KVM where there is one.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_rootfs::Reader;
use wherry_tests::needs::KVM;

use super::{Description, Kernel, MachineHooks};
use crate::boot::source::Source;
use crate::config::{SerialSink, devices};
use crate::console::Console;
use crate::kvm::{KvmDevice, open_kvm};
use crate::memory::Backing;
use crate::net::Nets;
use crate::vsock::Vsock;

/// Of 128 MiB; with a balloon also a source of randomness. `None` without a KVM, which is said.
pub fn description(nr_vcpus: u32, balloon: Option<&BalloonConfig>) -> Option<Description> {
    KVM.or_not_run(open_kvm())?;
    let kernel = Kernel { path: "none".into(), initrd: None, cmdline: String::new() };
    let devices = devices(balloon, balloon.is_some(), &[], vec![]).unwrap();
    Some(Description::new(128 << 20, nr_vcpus, devices, kernel).unwrap())
}

/// Nobody looks at it, and it has neither networks nor disks.
pub fn hooks() -> MachineHooks {
    let (console, _) = Console::open(&SerialSink::None).unwrap().start().unwrap();
    let (nets, disks) = (Nets::default(), Arc::default());
    let (vsock, memory) = (Vsock::default(), Backing::default());
    MachineHooks {
        console,
        kvm: KvmDevice::default(),
        reader: Reader::default(),
        memory,
        nets,
        vsock,
        disks,
        wake: Arc::default(),
    }
}

/// A kernel on a file server that is gone, until what is returned first is dropped.
pub fn file_that_hangs() -> (Sender<()>, Source) {
    let (gone, end) = channel();
    (gone, Source::Hangs(Arc::new(Mutex::new(end))))
}
