//! What disks' threads do when this host has no room.

use std::sync::{Arc, Mutex};

use wherry_devices::host::DiskFull;

use crate::life::wake::Wake;
use crate::sync::lock;

/// Ids of disks, since anybody looked.
pub type Ids = Arc<Mutex<Vec<String>>>;

/// Has the run loop pause the guest. A thread behind a disk that hangs outlives its VM with this,
/// and may do far less than it takes to put a VM away, so this has nothing of one but a list and a
/// signal.
pub struct OnFull {
    pub ids: Ids,
    pub wake: Arc<Wake>,
}

impl DiskFull for OnFull {
    fn disk_full(&self, id: &str) -> bool {
        lock(&self.ids).push(id.to_owned());
        self.wake.poke();
        true
    }
}
