//! Machines for tests: without a kernel, on KVM where there is one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_tests::needs::KVM;

use super::{Description, Kernel, MachineHooks};
use crate::config::{SerialSink, devices};
use crate::console::Console;
use crate::kvm::open_kvm;
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
    let (console, _) = Console::open(&SerialSink::None).unwrap();
    let (nets, disks) = (Nets::default(), Arc::default());
    let (vsock, memory) = (Vsock::default(), Backing::default());
    MachineHooks { console, memory, nets, vsock, disks, wake: Arc::new(|| ()) }
}

/// A file that opening waits for, as for one on a file server that is gone: somebody has a lease on
/// it (fcntl(2)), and Linux asks them first.
pub fn file_that_hangs(path: &Path) -> File {
    let file = File::create(path).unwrap();
    let fd = file.as_raw_fd();
    // SAFETY: neither call takes a pointer. The second leaves nobody to be sent a signal.
    let leased = unsafe {
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) == 0
            && libc::fcntl(fd, libc::F_SETOWN, 0) == 0
    };
    assert!(leased, "{}", std::io::Error::last_os_error());
    file
}
