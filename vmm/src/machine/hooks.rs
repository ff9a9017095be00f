//! What a machine needs from outside.

use std::sync::Arc;

use wherry_rootfs::Reader;

use crate::console::Console;
use crate::disks::Disks;
use crate::kvm::KvmDevice;
use crate::life::wake::Wake;
use crate::memory::Backing;
use crate::net::Nets;
use crate::vsock::Vsock;

/// What a machine needs from its process.
#[derive(Clone)]
pub struct MachineHooks {
    /// Where COM1 goes.
    pub console: Console,
    /// What runs it.
    pub kvm: KvmDevice,
    /// What reads the disk that it boots from.
    pub reader: Reader,
    /// What its memory is made of.
    pub memory: Backing,
    /// What its network devices are connected to.
    pub nets: Nets,
    /// Where its sockets end.
    pub vsock: Vsock,
    /// Its disks on this host.
    pub disks: Arc<Disks>,
    /// Told that the guest has ended itself, or that a disk is full.
    pub wake: Arc<Wake>,
}
