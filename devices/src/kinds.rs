//! The kinds of devices that there are.

use std::sync::{Arc, Mutex};

use crate::device::Kind;
use crate::power::{self, Power};
use crate::serial::{self, Serial};
use crate::virtio::balloon::{self, BalloonHandle};
use crate::virtio::rng;

/// All kinds. A new device is a folder and a line here.
pub const KINDS: &[&Kind] = &[&serial::KIND, &power::KIND, &balloon::KIND, &rng::KIND];

/// Devices with which somebody does more than the list does: given out once, when they are built.
#[derive(Default)]
pub struct Handles {
    /// For the console.
    pub serial: Option<Arc<Mutex<Serial>>>,
    /// For the power button.
    pub power: Option<Arc<Mutex<Power>>>,
    /// For hints, targets and statistics.
    pub balloon: Option<BalloonHandle>,
}
