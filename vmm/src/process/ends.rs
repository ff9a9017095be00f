//! What a VM's process opens before it is confined, and keeps.

use std::sync::Arc;

use anyhow::Context;
use wherry_rootfs::Reader;

use super::manager::Manager;
use crate::config::SerialSink;
use crate::confine::{Needs, Use};
use crate::console::{self, Console};
use crate::control::NameClaim;
use crate::disks::Disks;
use crate::kvm::KvmDevice;
use crate::memory::Backing;
use crate::net::Nets;
use crate::proc_file::ProcFile;
use crate::vsock::Vsock;

/// What a host has for a guest.
#[derive(Default)]
pub(super) struct Ends {
    pub(super) nets: Nets,
    pub(super) disks: Arc<Disks>,
    pub(super) vsock: Vsock,
    pub(super) memory: Backing,
    pub(super) kvm: KvmDevice,
    pub(super) reader: Reader,
    pub(super) manager: Manager,
    pub(super) statm: ProcFile,
}

impl Ends {
    /// With what every VM has open.
    pub(super) fn open(
        nets: Nets,
        disks: Arc<Disks>,
        vsock: Vsock,
        memory: Backing,
    ) -> anyhow::Result<Self> {
        let (kvm, manager) = (KvmDevice::default(), Manager::from_env());
        kvm.get()?;
        let statm = ProcFile::open("/proc/self/statm");
        Ok(Self { nets, disks, vsock, memory, kvm, reader: Reader::default(), manager, statm })
    }
}

/// The console's sink, without a thread.
pub(super) fn open_console(sink: &SerialSink) -> anyhow::Result<console::Opened> {
    Console::open(sink).with_context(|| format!("cannot open the serial console {sink}"))
}

/// What every VM keeps.
pub(super) fn needs(claim: &NameClaim, memory: &Backing) -> anyhow::Result<Needs> {
    let mut needs = Needs::default();
    needs.folder(claim.folder(), Use::Sockets)?;
    if let Some(folder) = memory.folder() {
        needs.folder(folder, Use::Memory)?;
    }
    Ok(needs)
}
